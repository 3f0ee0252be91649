import assert from "node:assert/strict"
import {performance} from "node:perf_hooks"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"

// As many as a conversation may have.
const size = 30
const answers = 5

let people

const the = chat(async the => {
  people = []
  // Some at a time: thirty browsers that start at once wait for each other.
  while (people.length < size) {
    const names = Array.from({length: Math.min(6, size - people.length)}, (_, i) => people.length + i === 0 ? "anna" : `guest${people.length + i}`)
    people.push(...await the.people(...names))
  }
})

const milliseconds = value => `${Math.round(value)} ms`

test("a room of thirty people has everyone in it, online", async t => {
  const begin = performance.now()
  await the.family("The feast", people)
  t.diagnostic(`a room of ${size} is there, and open everywhere, after ${milliseconds(performance.now() - begin)}`)
  await people[0].page.locator("#who", {hasText: "30 people, 30 online"}).waitFor()
})

test("nobody more fits into it", async () => {
  const [one] = await the.people("latecomer")
  await people[0].addContact(one)
  await people[0].enter("The feast")
  await people[0].follow(".conversation-header .title", "#details-dialog")
  await people[0].page.locator(".people li", {hasText: "Latecomer"}).getByText("Add").click()
  await people[0].page.locator(".dialog [role=alert]", {hasText: "at most 30 people"}).waitFor()
  await people[0].closeDialog()
  await one.leave()
})

test("a message reaches all of them, and so do answers of several at once", async t => {
  for (const which of ["first", "second"]) {
    const text = `The ${which} word of the feast`
    const begin = performance.now()
    await people[0].type(text)
    const after = await Promise.all(people.map(async person => {
      await person.sees(text)
      return performance.now() - begin
    }))
    await people[0].seesTicks(text, "✓✓")
    const opened = performance.now() - begin
    after.sort((a, b) => a - b)
    t.diagnostic(`the ${which} message: half of them see it after ${milliseconds(after[size / 2])}, ` +
      `all after ${milliseconds(after.at(-1))}, the ticks are two after ${milliseconds(opened)}`)
  }

  const begin = performance.now()
  const answering = people.slice(1, 1 + answers)
  await Promise.all(people.map(async person => {
    if (answering.includes(person)) await person.type(`${person.display} says hello.`)
    await person.seesMessages(2 + answers)
  }))
  t.diagnostic(`${answers} answers at once: all see all of them after ${milliseconds(performance.now() - begin)}`)
})

test("all of them have it in the same order", async () => {
  const told = await Promise.all(people.map(async person =>
    (await person.messages()).map(({mine, sender, text}) => `${mine ? person.display : sender}: ${text}`)))
  for (const list of told) assert.deepEqual(list, told[0])
  assert.equal(told[0].length, 2 + answers)
})

whateverHappened(the)
