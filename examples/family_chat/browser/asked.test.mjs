// Where the password is asked for after a time without use.

import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let anna, ben, conversation

const the = chat(async the => {
  ;[anna, ben, conversation] = await the.pair("anna", "ben")
  await anna.say("Hello Ben.")
}, {FAMILY_CHAT_LOCK_AFTER: "3", FAMILY_CHAT_SWEEP_EVERY: "1", FAMILY_CHAT_ASK_AGAIN: "1"})

const key = name => the.server.sql(`
  SELECT hex(a.data_key) AS key FROM signal_accounts a JOIN users u ON u.id = a.user_id WHERE u.name = '${name}'`)[0].key

test("the page asks for the password, and goes on where it was, with what was being typed", async () => {
  the.said.add("I was just about to say")
  await ben.field.fill("I was just about to say")
  const before = key("ben")
  await ben.page.goto("about:blank")
  await until("the keys are locked", () => key("ben") !== before)
  await anna.say("While nobody was there.")

  await ben.page.goto(the.server.url + conversation)
  assert.equal(ben.path, "/unlock")
  assert.ok(!(await ben.page.content()).includes("Hello Ben."))
  await ben.fill({password: "not the password"})
  assert.match(await ben.page.textContent("[role=alert]"), /not your password/)
  await ben.fill({password: ben.password})
  await ben.live()
  assert.equal(ben.path, conversation)
  await ben.sees("While nobody was there.")
  assert.equal(await ben.field.inputValue(), "I was just about to say")
  await ben.field.press("Enter")
  await anna.sees("I was just about to say")
  await until("the browser keeps nothing of it", () =>
    ben.page.evaluate(() => Object.keys(sessionStorage).every(key => !/^(draft|outbox)/.test(key))))
})

test("an open page whose token is over asks as well, and sends afterwards what was not sent", async () => {
  await the.server.kill()
  await ben.type("Typed while the server was away.")
  the.server.sql("DELETE FROM signal_unlock_tokens WHERE user_id = (SELECT id FROM users WHERE name = 'ben')")
  await the.server.start()
  await ben.page.waitForURL("**/unlock?*")
  await ben.fill({password: ben.password})
  await ben.live()
  assert.equal(ben.path, conversation)
  await anna.live()
  await anna.sees("Typed while the server was away.")
  await ben.sent()
})

test("who does not know the password may leave, and another browser has nothing of it", async () => {
  const before = key("ben")
  await ben.page.goto("about:blank")
  await until("the keys are locked", () => key("ben") !== before)
  await ben.page.goto(the.server.url + "/settings")
  assert.equal(ben.path, "/unlock")
  await ben.page.getByRole("button", {name: "Log out"}).click()
  await ben.page.waitForURL("**/login")
  await ben.logIn()
  await ben.enter("Anna")
  await ben.say("With the password.")
  await anna.sees("With the password.")
})

test("by keyboard alone", async () => {
  const before = key("ben")
  await ben.page.goto("about:blank")
  await until("the keys are locked", () => key("ben") !== before)
  await ben.page.goto(the.server.url + conversation)
  for (let i = 0; i < 10; i++) {
    await ben.page.keyboard.press("Tab")
    if (await ben.page.evaluate(() => document.activeElement.id === "password")) break
  }
  await ben.page.keyboard.type(ben.password)
  await ben.page.keyboard.press("Enter")
  await ben.live()
  await ben.sees("With the password.")
})

whateverHappened(the)
