import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let anna, ben, cleo, everyone

const the = chat(async the => {
  everyone = await the.people("anna", "ben", "cleo")
  ;[anna, ben, cleo] = everyone
  await the.family("Home", everyone)
}, {FAMILY_CHAT_TIMERS: "8,3600", FAMILY_CHAT_SWEEP_EVERY: "1"})

async function setTimer(person, label) {
  await person.follow(".conversation-header .title", "#details-dialog")
  await person.page.selectOption("#timer-choice", {label})
  await person.closeDialog()
}

const gone = (person, text) => person.message(text).waitFor({state: "detached"})

// How many rows of each table are about messages.
const left = () => the.server.sql(`
  SELECT (SELECT count(*) FROM messages) AS messages, (SELECT count(*) FROM envelopes) AS envelopes,
    (SELECT count(*) FROM signal_archived_messages) AS archived,
    (SELECT count(*) FROM message_encryption) AS encryption`)[0]

let before

test("whoever sets a timer tells everyone, and it stands in the header", async () => {
  await anna.say("This one stays.")
  await anna.seesTicks("This one stays.", "✓✓")
  before = left()

  await setTimer(anna, "after 8 seconds")
  await anna.page.getByText("You let new messages disappear after 8 seconds.").waitFor()
  for (const person of [ben, cleo]) {
    await person.page.getByText("Anna let new messages disappear after 8 seconds.").waitFor()
    await person.page.locator("#timer", {hasText: "8 seconds"}).waitFor()
  }
})

test("a message with a timer disappears from all screens, and what was there before stays", async () => {
  await anna.say("The present is in the cellar.")
  await Promise.all([ben, cleo].map(person => person.sees("The present is in the cellar.")))
  assert.equal(await ben.message("The present is in the cellar.").locator(".meta svg").count(), 1)

  await Promise.all(everyone.map(person => gone(person, "The present is in the cellar.")))
  for (const person of everyone) await person.sees("This one stays.")
})

test("a reload does not bring it back", async () => {
  for (const person of everyone) {
    await person.reload()
    assert.deepEqual((await person.messages()).map(({text}) => text), ["This one stays."])
  }
})

test("nothing is left of it in the database: no message, no envelope, no copy, no metadata", () =>
  until("it is swept", () => {
    try {
      assert.deepEqual(left(), before)
      return true
    } catch { return false }
  }))

test("who was away sees it for as long, from when it reached them", async () => {
  await cleo.leave()
  await anna.say("The shop opens at nine.")
  await ben.sees("The shop opens at nine.")
  await Promise.all([anna, ben].map(person => gone(person, "The shop opens at nine.")))

  await cleo.arrive()
  await cleo.logIn()
  await cleo.enter("Home")
  await cleo.sees("The shop opens at nine.")
  await gone(cleo, "The shop opens at nine.")
  await cleo.reload()
  assert.deepEqual((await cleo.messages()).map(({text}) => text), ["This one stays."])
})

test("a restart of the server forgets no timer", async () => {
  await ben.say("I have paid the bill.")
  await the.server.kill()
  await the.server.start()
  for (const person of everyone) await person.live()
  await Promise.all(everyone.map(person => gone(person, "I have paid the bill.")))
})

test("without a timer messages stay again", async () => {
  await setTimer(ben, "never")
  await anna.page.getByText("Ben let messages stay.").waitFor()
  await ben.say("This one stays, too.")
  await anna.sees("This one stays, too.")
  await until("all others are swept", () => left().messages === 2)
  for (const person of everyone) {
    await person.reload()
    assert.deepEqual((await person.messages()).map(({text}) => text), ["This one stays.", "This one stays, too."])
  }
})

whateverHappened(the)
