import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let anna, ben, cleo, david, emma, finn, family

const the = chat(async the => {
  ;[anna, ben, cleo, david, emma, finn] = await the.people("anna", "ben", "cleo", "david", "emma", "finn")
  await anna.addContact(ben)
  family = [anna, ben, cleo, david, emma, finn]
})

test("two people who are contacts find each other without a reload", async () => {
  await ben.enter("Anna")
  await anna.say("Hello Ben, are you there?")
  await ben.sees("Hello Ben, are you there?")
  await ben.say("Here I am.")
  await anna.sees("Here I am.")
})

test("a name nobody has, and one's own, are no contacts", async () => {
  await anna.follow("[aria-label='New conversation']", "#new-dialog")
  for (const [name, answer] of [["nobody", "nobody here has this name"], ["anna", "that is you"]]) {
    await anna.page.fill("#contact-name", name)
    await anna.page.click("#add-contact button")
    await anna.page.locator(".dialog [role=alert]", {hasText: answer}).waitFor()
  }
  await anna.closeDialog()
})

test("a conversation of six appears at all of them", async () => {
  await the.family("The family", family)
  for (const person of family) {
    assert.match(await person.page.textContent("#who"), /^6 people, 6 online$/)
    assert.match(await person.page.textContent("#items"), /began “The family”/)
  }
})

test("a message of one is seen by all five others, and its tick becomes two", async () => {
  await anna.say("Dinner on Sunday at seven?")
  await Promise.all([ben, cleo, david, emma, finn].map(person => person.sees("Dinner on Sunday at seven?")))
  await anna.seesTicks("Dinner on Sunday at seven?", "✓✓")

  const [line] = (await cleo.messages()).filter(line => line.text === "Dinner on Sunday at seven?")
  assert.deepEqual(line, {kind: "message", mine: false, sender: "Anna", text: "Dinner on Sunday at seven?", ticks: null})
})

test("all six write at once, and everyone sees everything", async () => {
  const texts = family.map(person => `${person.display} can come on Sunday.`)
  await Promise.all(family.map((person, i) => person.say(texts[i])))
  for (const person of family) for (const text of texts) await person.sees(text)
  for (const [i, person] of family.entries()) await person.seesTicks(texts[i], "✓✓")
})

test("whoever looks elsewhere has a mark with the number of unread messages, and none after reading", async () => {
  await ben.enter("Anna")
  await cleo.say("I bring the salad.")
  await cleo.say("And bread, of course.")
  await ben.seesUnread("The family", 2)
  assert.equal(await ben.page.title(), "(2) Family chat")

  await ben.enter("The family")
  await ben.seesUnread("The family", 0)
  assert.equal(await ben.page.title(), "Family chat")
  await ben.sees("And bread, of course.")
})

test("what arrives while a page is hidden is unread until it is seen", async () => {
  const hidden = state => ben.page.evaluate(state => {
    Object.defineProperty(document, "visibilityState", {value: state, configurable: true})
    document.dispatchEvent(new Event("visibilitychange"))
  }, state)

  await hidden("hidden")
  let asked = 0
  await until("the server knows", async () => {
    await cleo.say(`Is anybody allergic to nuts? I ask for time ${++asked}.`)
    return await ben.unread("The family") > 0
  })
  await hidden("visible")
  await ben.seesUnread("The family", 0)
})

test("others see who is typing, and that it is over", async () => {
  await david.field.pressSequentially("I wi")
  await emma.page.locator("#typing", {hasText: "David is typing…"}).waitFor()
  await david.say("I will be late.")
  await emma.sees("I will be late.")
  assert.equal(await emma.page.textContent("#typing"), "")

  await david.field.pressSequentially("Or not")
  await emma.page.locator("#typing", {hasText: "David is typing…"}).waitFor()
  await until("he has stopped", async () => await emma.page.textContent("#typing") === "")
  await david.field.fill("")
})

test("who closes the page is not online any more, and one of two tabs keeps them online", async () => {
  const second = await finn.openPage()
  await second.goto(the.server.url)
  await second.waitForSelector("[data-phx-main].phx-connected")
  await second.close()
  await emma.say("Finn has closed a tab.")
  await finn.sees("Finn has closed a tab.")
  assert.match(await emma.page.textContent("#who"), /6 online/)

  await finn.leave()
  await emma.page.locator("#who", {hasText: "5 online"}).waitFor()
})

test("who was away has everything after a login, in order and marked unread", async () => {
  for (const text of ["Finn is not here.", "He likes olives, I believe.", "So olives it is."]) await emma.say(text)
  await ben.say("Olives, then.")
  await emma.seesTicks("So olives it is.", "✓")

  await finn.arrive()
  await finn.logIn()
  await finn.seesUnread("The family", 4)
  // They are opened by then.
  await emma.seesTicks("So olives it is.", "✓✓")

  await finn.enter("The family")
  const texts = (await finn.messages()).map(({text}) => text).slice(-4)
  assert.deepEqual(texts, ["Finn is not here.", "He likes olives, I believe.", "So olives it is.", "Olives, then."])
})

test("a reload shows the same messages in the same order, each with its sender", async () => {
  for (const person of family) {
    const before = await person.messages()
    assert.ok(before.length > 10)
    await person.reload()
    assert.deepEqual(await person.messages(), before)
  }
})

test("everyone has the same messages, each from the same person", async () => {
  const told = []
  for (const person of family) {
    const lines = await person.messages()
    told.push(lines.map(({mine, sender, text}) => `${mine ? person.display : sender}: ${text}`))
  }
  for (const list of told) assert.deepEqual(list, told[0])
})

test("earlier messages come in pages of fifty, above what is read", async () => {
  await ben.enter("Anna")
  await anna.enter("Ben")
  const texts = Array.from({length: 61}, (_, i) => `Message ${String(i + 1).padStart(2, "0")} of a long day`)
  for (const text of texts) await anna.type(text)
  await anna.sent()
  await ben.sees(texts[60])

  await ben.reload()
  assert.equal((await ben.messages()).length, 50)
  assert.equal(await ben.page.evaluate(() => {
    const timeline = document.querySelector(".timeline")
    return timeline.scrollHeight - timeline.scrollTop - timeline.clientHeight < 2
  }), true)

  // The line at the top stays where it is on the screen.
  await ben.page.$eval(".timeline", timeline => { timeline.scrollTop = 0 })
  const top = ben.message(texts[11])
  const {y} = await top.boundingBox()
  await ben.page.click(".earlier")
  await ben.sees(texts[0])
  const moved = Math.abs((await top.boundingBox()).y - y)
  assert.ok(moved < 60, `it moved by ${moved} pixels`)

  const all = (await ben.wholeTimeline()).filter(({kind}) => kind === "message").map(({text}) => text)
  assert.deepEqual(all, ["Hello Ben, are you there?", "Here I am.", ...texts])
})

test("a message is text, whatever is in it", async () => {
  const text = `<img src=x onerror="window.hacked = 1"> & <b>bold</b> 'quotes' "double" — ünïcödé 🥧`
  await anna.say(text)
  await ben.sees(text)
  assert.equal(await ben.page.evaluate(() => window.hacked), undefined)
  assert.equal(await ben.page.locator("#items img").count(), 0)
})

test("several lines stay several lines, and a message may have four thousand characters", async () => {
  the.said.add("first line")
  await anna.field.pressSequentially("first line")
  await anna.field.press("Shift+Enter")
  await anna.field.pressSequentially("second line")
  await anna.field.press("Enter")
  await ben.page.locator(".text", {hasText: /first line\nsecond line/}).waitFor()

  const long = "long ".repeat(900)
  await anna.field.fill(long)
  assert.equal((await anna.field.inputValue()).length, 4000)
  await anna.field.press("Enter")
  await ben.page.locator(".text", {hasText: long.slice(0, 3999)}).waitFor()
})

test("the sender can see how a message was encrypted for each of the others", async () => {
  await anna.enter("The family")
  await anna.message("Dinner on Sunday at seven?").locator(".ticks").click()
  await anna.page.waitForSelector("#message-dialog tbody tr")
  const rows = await anna.page.locator("#message-dialog tbody tr").allTextContents()
  assert.equal(rows.length, 5)
  for (const row of rows) assert.match(row, /signal\s+4.*opened/s)
  await anna.closeDialog()
})

test("somebody who joins later sees what is written from then on", async () => {
  const [grace] = await the.people("grace")
  await anna.addContact(grace)
  await anna.enter("The family")
  await anna.follow(".conversation-header .title", "#details-dialog")
  await anna.page.locator(".people li", {hasText: "Grace"}).getByText("Add").click()
  await anna.page.locator(".people li", {hasText: "Grace"}).getByText("Safety number").waitFor()
  await anna.closeDialog()
  await anna.say("Welcome, Grace.")

  await grace.enter("The family")
  assert.deepEqual((await grace.messages()).map(({text}) => text), ["Welcome, Grace."])
  await grace.leave()
})

whateverHappened(the)
