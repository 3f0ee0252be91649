import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let anna, ben, conversation

// Four seconds without an open page are a time without use, here.
const the = chat(async the => {
  ;[anna, ben, conversation] = await the.pair("anna", "ben")
  await anna.say("Hello Ben.")
  await ben.say("Hello Anna.")
}, {FAMILY_CHAT_LOCK_AFTER: "4", FAMILY_CHAT_SWEEP_EVERY: "1"})

// What the database has of the key of a person: the second byte says under what it is sealed.
const sealed = person => {
  const [row] = the.server.sql(`
    SELECT hex(substr(a.data_key, 1, 2)) AS kind, hex(a.data_key) AS key, u.password_hash AS hash
    FROM signal_accounts a JOIN users u ON u.id = a.user_id WHERE u.name = '${person.name}'`)
  return row
}

const waiting = person => the.server.sql(`
  SELECT e.state, length(e.body) AS size FROM envelopes e JOIN users u ON u.id = e.recipient_id
  WHERE u.name = '${person.name}' AND e.message_id IS NOT NULL AND e.state <> 'opened'`)

async function logOut(person) {
  await person.go("/settings")
  await person.page.getByRole("button", {name: "Log out"}).click()
  await person.page.waitForURL("**/login")
}

const texts = async person => (await person.timeline()).filter(({kind}) => kind !== "notice").map(({text}) => text)

test("sign-up puts the keys of an account under its password, and keeps no hash of it", () => {
  for (const person of [anna, ben]) {
    assert.equal(sealed(person).kind, "0111")
    assert.equal(sealed(person).hash, "")
  }
})

const meanwhile = ["The first thing you missed.", "The second thing you missed.", "The third thing you missed."]

test("what is written to somebody who has logged out waits as it came, and is no failure for who wrote it", async () => {
  const before = sealed(ben).key
  await logOut(ben)
  // Locking writes it anew, on all nodes at once.
  await until("the keys are locked", () => sealed(ben).key !== before)
  for (const text of meanwhile) {
    await anna.say(text)
    await anna.seesTicks(text, "✓")
  }
  const rows = waiting(ben)
  assert.deepEqual(rows.map(({state}) => state), ["waiting", "waiting", "waiting"])
  assert.ok(rows.every(({size}) => size > 0))
  assert.equal(await anna.placeholder.count(), 0)
  assert.deepEqual(the.server.sql("SELECT * FROM undelivered"), [])
})

test("at the next login it opens, in order", async () => {
  await ben.logIn()
  await ben.enter("Anna")
  await ben.sees(meanwhile.at(-1))
  assert.deepEqual(await texts(ben), ["Hello Ben.", "Hello Anna.", ...meanwhile])
  for (const text of meanwhile) await anna.seesTicks(text, "✓✓")
  assert.deepEqual(waiting(ben), [])
})

test("a wrong password unlocks nothing", async () => {
  await logOut(ben)
  await anna.say("Only with the password.")
  await ben.fill({name: ben.name, password: "not the password"})
  assert.match(await ben.page.textContent("[role=alert]"), /name or the password is wrong/)
  assert.equal(waiting(ben).length, 1)
  await ben.logIn()
  await ben.enter("Anna")
  await ben.sees("Only with the password.")
})

test("after a restart of the server an open page goes on by itself, and nobody types a password", async () => {
  the.said.add("Half a sentence")
  await ben.field.fill("Half a sentence")
  await the.server.stop()
  await anna.type("Written while it was away.")
  await the.server.start()
  await anna.live()
  await ben.live()
  await ben.sees("Written while it was away.")
  assert.equal(await ben.field.inputValue(), "Half a sentence")
  assert.equal(ben.path, conversation)
  await ben.field.fill("")
  await ben.say("And I am here as well.")
  await anna.sees("And I am here as well.")
})

test("with no page open for a while the keys are locked, and the same browser goes on without the password", async () => {
  const before = sealed(ben).key
  await ben.page.goto("about:blank")
  await until("the keys are locked", () => sealed(ben).key !== before)
  await anna.say("Are you still there?")
  await anna.seesTicks("Are you still there?", "✓")
  assert.equal(waiting(ben).length, 1)
  await ben.go(conversation)
  await ben.sees("Are you still there?")
  await anna.seesTicks("Are you still there?", "✓✓")
})

test("with a page open they stay unlocked", async () => {
  const before = sealed(anna).key
  await new Promise(resolve => setTimeout(resolve, 7_000))
  assert.equal(sealed(anna).key, before)
})

test("who logs out in one of two browsers goes on in the other, and the last one locks", async () => {
  const phone = await the.person("ben").arrive()
  await phone.logIn()
  await logOut(phone)
  await anna.say("To the one that is left.")
  await ben.sees("To the one that is left.")

  await phone.logIn()
  const before = sealed(ben).key
  await phone.page.goto(the.server.url + "/account")
  await phone.page.getByRole("button", {name: "Log out everywhere"}).click()
  await phone.page.waitForURL("**/login")
  await ben.page.waitForURL("**/login")
  assert.notEqual(sealed(ben).key, before)
  await phone.leave()
})

test("another password opens what the one before did, and that opens nothing any more", async () => {
  await ben.logIn()
  await ben.page.goto(the.server.url + "/account")
  await ben.page.fill("#password", "not the password")
  await ben.page.fill("#new", "a better password of ben")
  await ben.page.getByRole("button", {name: "Change it"}).click()
  assert.match(await ben.page.textContent("#password-help"), /not your password/)

  await ben.page.fill("#password", ben.password)
  await ben.page.fill("#new", "a better password of ben")
  await ben.page.getByRole("button", {name: "Change it"}).click()
  await ben.page.getByText("You have a new password.").waitFor()

  await logOut(ben)
  await ben.fill({name: ben.name, password: ben.password})
  assert.match(await ben.page.textContent("[role=alert]"), /name or the password is wrong/)
  ben.password = "a better password of ben"
  await ben.logIn()
  await ben.enter("Anna")
  await ben.sees("To the one that is left.")
})

test("what LiveView hands to a page has neither of the two secrets of the cookie", async () => {
  await ben.go("/")
  const tokens = await ben.page.$$eval("[data-phx-session]", roots => roots.flatMap(root => [root.dataset.phxSession, root.dataset.phxStatic]))
  assert.ok(tokens.length > 0)
  const signed = tokens.filter(Boolean).map(token => Buffer.from(token.split(".")[1], "base64url").toString("latin1"))
  assert.ok(signed.some(text => text.includes("ChatLive")))
  for (const text of signed) assert.doesNotMatch(text, /unlock|live_socket_id/)
})

test("a login that crashes tells the log where, and not the password", async () => {
  const before = the.server.log().length
  the.server.sql("ALTER TABLE login_failures RENAME TO failures_of_before")
  const visitor = await the.person("visitor").arrive()
  await visitor.page.goto(the.server.url + "/login")
  await visitor.fill({name: "anna", password: anna.password})
  the.server.sql("ALTER TABLE failures_of_before RENAME TO login_failures")
  await visitor.leave()
  const told = () => the.server.log().slice(before)
  await until("it is reported", () => told().includes("POST /login"))
  assert.match(told(), /FamilyChat.SQL.Failed/)
  assert.ok(!told().includes(anna.password))
})

test("no cookie and no password is in the database or in the log", async () => {
  const cookies = (await ben.context.cookies()).map(({value}) => value)
  const secrets = [...cookies, anna.password, ben.password, "the password of ben"]
  for (const {name, bytes} of the.server.files())
    for (const secret of secrets) assert.ok(!bytes.includes(secret.slice(0, 60)), name)
})

whateverHappened(the)
