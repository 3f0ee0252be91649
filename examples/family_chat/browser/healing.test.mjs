import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let anna, ben, cleo

const the = chat(async the => {
  ;[anna, ben, cleo] = await the.people("anna", "ben", "cleo")
  await the.family("Home", [anna, ben, cleo])
  // Sessions in both directions.
  for (const person of [anna, ben, cleo]) await person.say(`${person.display} is here.`)
  for (const person of [anna, ben, cleo]) await person.seesTicks(`${person.display} is here.`, "✓✓")
})

const idOf = person => the.server.sql(`SELECT id FROM users WHERE name = '${person.name}'`)[0].id

// Changes what waits for somebody, which is one envelope.
function damage(person, change) {
  const rows = the.server.sql(
    `SELECT id, hex(body) AS body FROM envelopes WHERE recipient_id = '${idOf(person)}' AND state = 'waiting'`)
  assert.equal(rows.length, 1)
  const body = change(Buffer.from(rows[0].body, "hex"))
  the.server.sql(`UPDATE envelopes SET body = x'${body.toString("hex")}' WHERE id = '${rows[0].id}'`)
}

function oneBit(body) {
  body[body.length >> 1] ^= 1
  return body
}

const garbage = () => Buffer.from([0])

const placeholder = /could not be decrypted\. Anna is asked to send it again\./

async function away(person, meanwhile) {
  await person.leave()
  await meanwhile()
  await person.arrive()
  await person.logIn()
  await person.enter("Home")
}

const countOf = async (person, text) => (await person.messages()).filter(line => line.text === text).length

test("an envelope that was changed in the database shows a placeholder, and heals when the sender comes back", async () => {
  await away(ben, async () => {
    await anna.say("The key is under the mat.")
    await anna.leave()
    damage(ben, oneBit)
  })
  await ben.placeholder.waitFor()
  assert.match(await ben.placeholder.textContent(), placeholder)
  assert.ok(the.server.log().includes("security: message_tampered"))
  assert.equal(await ben.message("The key is under the mat.").count(), 0)
  // It is nobody else's trouble.
  await cleo.sees("The key is under the mat.")

  await anna.arrive()
  await anna.logIn()
  await ben.sees("The key is under the mat.")
  await anna.enter("Home")
  await anna.seesTicks("The key is under the mat.", "✓✓")
  assert.equal(await ben.placeholder.count(), 0)
})

test("while the sender is there it heals by itself, and stays in its place", async () => {
  await away(ben, async () => {
    await anna.say("I am at the market.")
    damage(ben, oneBit)
    await cleo.say("Bring tomatoes, please.")
  })
  await ben.sees("I am at the market.")
  await anna.seesTicks("I am at the market.", "✓✓")

  for (const look of ["live", "after a reload"]) {
    const texts = (await ben.messages()).map(({text}) => text)
    assert.deepEqual(texts.slice(-2), ["I am at the market.", "Bring tomatoes, please."], look)
    await ben.reload()
  }
})

test("an envelope that is none any more heals", async () => {
  await away(ben, async () => {
    await anna.say("Half past six, not seven.")
    damage(ben, garbage)
    await cleo.say("Half past six is fine.")
  })
  await ben.sees("Half past six, not seven.")
  await anna.seesTicks("Half past six, not seven.", "✓✓")
  await ben.reload()
  assert.deepEqual((await ben.messages()).map(({text}) => text).slice(-2), ["Half past six, not seven.", "Half past six is fine."])
})

test("an envelope of an unknown type heals", async () => {
  await away(ben, async () => {
    await anna.say("The door code is on the fridge.")
    the.server.sql(`UPDATE envelopes SET type = 'nonsense' WHERE recipient_id = '${idOf(ben)}' AND state = 'waiting'`)
  })
  await ben.sees("The door code is on the fridge.")
})

test("a message that is damaged again when it was sent again heals all the same", async () => {
  await ben.leave()
  await anna.say("Twice is bad luck.")
  await anna.leave()
  damage(ben, garbage)
  await ben.arrive()
  await ben.logIn()
  await ben.enter("Home")
  await ben.placeholder.waitFor()
  await ben.leave()

  // Sent again, and changed on the way.
  await anna.arrive()
  await anna.logIn()
  await anna.enter("Home")
  await anna.seesTicks("Twice is bad luck.", "✓")
  damage(ben, oneBit)

  await ben.arrive()
  await ben.logIn()
  await ben.enter("Home")
  await ben.sees("Twice is bad luck.")
  assert.equal(await ben.placeholder.count(), 0)
})

test("a message that is damaged every time is given up, and those after it arrive", async () => {
  the.server.sql(`
    CREATE TRIGGER vandal AFTER INSERT ON envelopes WHEN NEW.recipient_id = '${idOf(ben)}' AND NEW.message_id IS NOT NULL
    BEGIN UPDATE envelopes SET body = x'00' WHERE id = NEW.id; END`)
  const lost = ["Nobody lets this pass.", "Nor this."]
  for (const text of lost) await anna.say(text)
  const givenUp = () => the.server.sql("SELECT message_id FROM undelivered WHERE attempts >= 3").length === lost.length
  await until("it is given up", givenUp)
  the.server.sql("DROP TRIGGER vandal")

  await anna.say("But this.")
  await ben.sees("But this.")
  assert.equal(await ben.placeholder.count(), lost.length)
  for (const text of lost) {
    await anna.seesTicks(text, "✓")
    await cleo.sees(text)
  }
  assert.ok(givenUp())
  // Once, and three times again.
  assert.deepEqual(
    the.server.sql("SELECT count(*) AS tries FROM envelopes WHERE state = 'failed' GROUP BY message_id"), [{tries: 4}, {tries: 4}])
})

test("a damaged session of the recipient is replaced, and the message comes", async () => {
  await away(ben, async () => {
    await anna.say("The pie is in the oven.")
    the.server.sql(`UPDATE signal_sessions SET state = x'00' WHERE user_id = '${idOf(ben)}' AND peer_id = '${idOf(anna)}'`)
  })
  await ben.sees("The pie is in the oven.")
  await anna.seesTicks("The pie is in the oven.", "✓✓")
})

test("a damaged session of the sender costs nothing but a new one", async () => {
  the.server.sql(`UPDATE signal_sessions SET state = x'00' WHERE user_id = '${idOf(anna)}'`)
  await anna.say("It smells wonderful.")
  await Promise.all([ben.sees("It smells wonderful."), cleo.sees("It smells wonderful.")])
  await anna.seesTicks("It smells wonderful.", "✓✓")
})

test("what was sent in such a new session heals, too", async () => {
  the.server.sql(`UPDATE signal_sessions SET state = x'00' WHERE user_id = '${idOf(anna)}'`)
  await away(ben, async () => {
    await anna.say("Come before it is cold.")
    damage(ben, oneBit)
  })
  await ben.sees("Come before it is cold.")
  await anna.seesTicks("Come before it is cold.", "✓✓")
})

test("a message that is damaged in the archive says so, and the others are there", async () => {
  await anna.say("Dessert is a secret.")
  await ben.sees("Dessert is a secret.")
  const before = await ben.messages()

  the.server.sql(`UPDATE signal_archived_messages SET content = x'00' WHERE user_id = '${idOf(ben)}'
    AND position = (SELECT max(position) FROM signal_archived_messages WHERE user_id = '${idOf(ben)}')`)
  await ben.reload()
  await ben.page.getByText("This message is damaged in the database and cannot be shown.").waitFor()
  assert.deepEqual(await ben.messages(), before.slice(0, -1))
})

test("after all that everyone has everything once", async () => {
  for (const person of [ben, cleo]) {
    await person.reload()
    for (const text of ["The key is under the mat.", "I am at the market.", "Half past six, not seven.", "Twice is bad luck.",
      "The pie is in the oven.", "It smells wonderful.", "Come before it is cold."])
      assert.equal(await countOf(person, text), 1, `${person.display}: ${text}`)
  }
})

whateverHappened(the)
