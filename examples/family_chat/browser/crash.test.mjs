import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let people

const the = chat(async the => {
  people = await the.people("anna", "ben", "cleo", "david", "emma", "finn")
  await the.family("The family", people)
  await people[0].say("Everyone is here.")
  await people[0].seesTicks("Everyone is here.", "✓✓")
})

const texts = (person, what, count) =>
  Array.from({length: count}, (_, i) => `${person.display}, ${what}: ${String(i + 1).padStart(2, "0")}`)

async function typeAll(person, list, meanwhile = () => {}) {
  for (const [i, text] of list.entries()) {
    await person.type(text)
    await meanwhile(i)
  }
}

// Everyone has all of it, each message once, and those of one person in the order in which they were typed.
async function everyoneHas(expected) {
  for (const person of people) {
    await person.sent()
    for (const list of expected.values()) await person.sees(list.at(-1))
  }
  for (const person of people) {
    const lines = (await person.wholeTimeline()).filter(({kind}) => kind === "message")
    for (const [sender, list] of expected) {
      const theirs = lines.filter(line => (line.mine ? person : people.find(({display}) => display === line.sender)) === sender)
      const among = theirs.map(({text}) => text).filter(text => list.includes(text))
      assert.deepEqual(among, list, `${sender.display}'s at ${person.display}`)
    }
    assert.deepEqual(lines.filter(({kind}) => kind === "unopened"), [])
  }
}

test("the server is killed while six people write: every message arrives once, in order, and all pages come back by themselves", async () => {
  const expected = new Map(people.map(person => [person, texts(person, "before and after the crash", 12)]))
  let typed = 0
  let restarted

  await Promise.all([...expected].map(([person, list]) => typeAll(person, list, async () => {
    typed += 1
    if (typed === 30) restarted = the.server.kill().then(() => the.server.start())
  })))
  await restarted

  for (const person of people) await person.live()
  await everyoneHas(expected)
})

test("what is typed while the server is down arrives when it is back", async () => {
  await the.server.kill()
  const expected = new Map(people.map(person => [person, texts(person, "while it was down", 3)]))
  await Promise.all([...expected].map(([person, list]) => typeAll(person, list)))

  for (const [person, list] of expected) {
    assert.equal(await person.page.locator(".outbox li").count(), list.length)
    assert.match(await person.page.locator(".outbox").evaluate(list => getComputedStyle(list.lastElementChild, "::after").content), /not sent yet/)
  }

  await the.server.start()
  for (const person of people) await person.live()
  await everyoneHas(expected)
})

test("whoever is writing when the connection breaks writes on", async () => {
  const [anna, ben] = people
  the.said.add("I am writing and do not look up.")
  await anna.field.focus()
  await anna.page.keyboard.type("I am writing ")
  await the.server.kill()
  await anna.page.waitForSelector("[data-phx-main].phx-error")
  await anna.page.keyboard.type("and do not look up.")
  await anna.page.keyboard.press("Enter")
  await the.server.start()
  await ben.live()
  await ben.sees("I am writing and do not look up.")
})

test("what is typed during an orderly restart arrives, too", async () => {
  const expected = new Map(people.slice(0, 3).map(person => [person, texts(person, "during the restart", 8)]))
  let typed = 0
  let restarted

  await Promise.all([...expected].map(([person, list]) => typeAll(person, list, async () => {
    typed += 1
    if (typed === 6) restarted = the.server.stop().then(() => the.server.start())
  })))
  await restarted

  for (const person of people) await person.live()
  await everyoneHas(expected)
})

test("while another program holds the database nothing is lost", async () => {
  const expected = new Map(people.slice(0, 3).map(person => [person, texts(person, "while it was held", 2)]))
  const release = await the.server.hold()
  try {
    const before = the.server.log().length
    await Promise.all([...expected].map(([person, list]) => typeAll(person, list)))
    // Long enough for the server to lose patience.
    await until("a call fails", () => the.server.log().slice(before).includes("the database failed"))
  } finally {
    await release()
  }
  await everyoneHas(expected)
})

test("what was typed and not sent survives a reload of the page", async () => {
  const [anna, ben] = people
  await the.server.kill()
  await anna.type("Typed before the reload.")
  await anna.page.reload().catch(() => {})
  await the.server.start()
  await anna.go(new URL(ben.page.url()).pathname)
  await ben.live()
  await ben.sees("Typed before the reload.")
  await anna.sent()
})

test("after all of that the history of everyone is the same, before and after a reload", async () => {
  const told = []
  for (const person of people) {
    const read = async () => (await person.wholeTimeline()).filter(({kind}) => kind === "message")
      .map(({mine, sender, text}) => `${mine ? person.display : sender}: ${text}`)
    const live = await read()
    await person.reload()
    assert.deepEqual(await read(), live, person.display)
    told.push(live)
  }
  for (const list of told) assert.deepEqual(list, told[0])
  assert.equal(new Set(told[0]).size, told[0].length)
})

test("every message was opened by all", async () => {
  assert.deepEqual(the.server.sql("SELECT state, count(*) AS count FROM envelopes WHERE state <> 'opened' GROUP BY state"), [])
  assert.deepEqual(the.server.sql("SELECT * FROM undelivered"), [])
})

whateverHappened(the)
