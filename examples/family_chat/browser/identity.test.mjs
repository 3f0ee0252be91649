import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"

let anna, ben, cleo, everyone

const the = chat(async the => {
  everyone = await the.people("anna", "ben", "cleo")
  ;[anna, ben, cleo] = everyone
  await the.family("Home", everyone)
  for (const person of everyone) await person.say(`${person.display} is here.`)
  await anna.sees("Cleo is here.")
  await cleo.addContact(ben)
  await anna.enter("Ben")
  await ben.enter("Anna")
  await anna.say("Hello Ben.")
  await ben.say("Hello Anna.")
  await anna.sees("Hello Ben.")
})

// What the camera of another phone would see of a person's screen.
async function codeOf(person, other) {
  await person.seesSafetyNumber(other)
  const buffer = await person.page.locator(".qr").screenshot()
  await person.closeDialog()
  return {name: "code.png", mimeType: "image/png", buffer}
}

const scan = (person, file) => person.page.setInputFiles("#scanner input", file)

async function renewKeys(person) {
  await person.page.goto(the.server.url + "/account")
  await person.page.fill("#keys_password", person.password)
  await person.page.getByRole("button", {name: "set up my keys anew"}).click()
  await person.page.getByText("You have new keys.").waitFor()
  await person.go("/settings")
}

const warning = person => person.page.locator(".identity-warning", {hasText: "The safety number with Ben has changed."})

const lock = async person => (await person.page.textContent("#lock")).trim()

const waitingForBen = () => the.server.sql(`
  SELECT count(*) AS count FROM envelopes JOIN users u ON u.id = recipient_id
  WHERE u.name = 'ben' AND message_id IS NOT NULL AND state <> 'opened'`)[0].count

test("both sides see the same digits, sixty of them, and others see others", async () => {
  const digits = []
  for (const [person, other] of [[anna, ben], [ben, anna], [cleo, ben]]) {
    if (person === cleo) await cleo.enter("Ben")
    await person.seesSafetyNumber(other)
    digits.push(await person.digits())
    await person.closeDialog()
  }
  assert.match(digits[0], /^(\d{5} ){11}\d{5}$/)
  assert.equal(digits[0], digits[1])
  assert.notEqual(digits[0], digits[2])
})

test("the code of somebody else's conversation is another code, and verifies nothing", async () => {
  const code = await codeOf(cleo, ben)
  await anna.seesSafetyNumber(ben)
  await scan(anna, code)
  await anna.page.getByText("This is another code. Do not trust this conversation before you have spoken.").waitFor()
  assert.equal(await anna.page.locator("#verified").count(), 0)
  await anna.closeDialog()
  assert.equal(await lock(anna), "Encrypted")
})

test("a picture without a code, a code of something else and a file that is no picture are told apart", async () => {
  await anna.seesSafetyNumber(ben)
  const status = anna.page.locator("#scanner [role=status]")

  await scan(anna, {name: "screen.png", mimeType: "image/png", buffer: await cleo.page.screenshot()})
  await status.getByText("There is no code in this picture.").waitFor()

  await scan(anna, {name: "letter.txt", mimeType: "image/png", buffer: Buffer.from("not a picture")})
  await status.getByText("This is no picture.").waitFor()

  const gif = await anna.page.evaluate(async () => {
    const {encodeQR} = await import("/vendor/qr/index.js")
    return Array.from(encodeQR("https://example.com/menu", "gif", {scale: 6, border: 4}))
  })
  await scan(anna, {name: "menu.gif", mimeType: "image/gif", buffer: Buffer.from(gif)})
  await anna.page.getByText("This is not a safety number.").waitFor()
  await anna.closeDialog()
})

test("the code on the other screen verifies, and the lock says so from then on", async () => {
  const code = await codeOf(ben, anna)
  await anna.seesSafetyNumber(ben)
  await scan(anna, code)
  await anna.page.getByText("It is the same code: nobody is between you.").waitFor()
  await anna.page.locator("#verified").waitFor()
  await anna.closeDialog()
  assert.equal(await lock(anna), "Encrypted, verified")
  await anna.reload()
  assert.equal(await lock(anna), "Encrypted, verified")
  // Each says it for themselves.
  assert.equal(await lock(ben), "Encrypted")
})

test("new keys of one show in the open safety number of the other at once", async () => {
  await anna.seesSafetyNumber(ben)
  const digits = await anna.digits()
  const code = await anna.page.innerHTML(".qr")

  // Cleo is in the middle of a sentence, with room for a few lines only.
  await cleo.enter("Home")
  await cleo.page.setViewportSize({width: 1000, height: 460})
  await cleo.field.fill("I am just wri")

  await renewKeys(ben)
  await anna.page.getByText("This number is another one than before.").waitFor()
  assert.notEqual(await anna.digits(), digits)
  assert.notEqual(await anna.page.innerHTML(".qr"), code)
  assert.equal(await anna.page.locator("#verified").count(), 0)
  await anna.closeDialog()
})

test("a warning takes neither the focus nor the end of the conversation away", async () => {
  await warning(cleo).waitFor()
  await cleo.page.keyboard.type("ting to you.")
  assert.equal(await cleo.field.inputValue(), "I am just writing to you.")
  await cleo.page.waitForFunction(() => {
    const timeline = document.querySelector(".timeline")
    return timeline.scrollHeight > timeline.clientHeight && timeline.scrollHeight - timeline.scrollTop - timeline.clientHeight < 2
  })
  await cleo.field.fill("")
  await cleo.page.setViewportSize(cleo.options.viewport)
})

test("everyone who writes with them is warned, in each conversation, and the lock is none", async () => {
  for (const title of ["Ben", "Home"]) {
    for (const person of [anna, cleo]) {
      await person.enter(title)
      await warning(person).waitFor()
      assert.equal(await lock(person), "Identity changed")
      await person.page.getByText("Ben has set up their keys anew: the safety number has changed.").waitFor()
    }
  }
})

test("the history of who has new keys is gone, and that of the others is not", async () => {
  await ben.go("/")
  await ben.enter("Anna")
  assert.deepEqual(await ben.messages(), [])
  await anna.enter("Ben")
  assert.deepEqual((await anna.messages()).map(({text}) => text), ["Hello Ben.", "Hello Anna."])
})

test("until the new identity is accepted nothing is sent there, and nothing from there is shown", async () => {
  await anna.say("Is that you, Ben?")
  await ben.say("It is me, with new keys.")
  await anna.page.getByText("A message is held back: the identity of Ben has changed.").waitFor()
  assert.equal(await anna.message("It is me, with new keys.").count(), 0)

  // In the conversation of three only Ben is left out.
  await Promise.all(everyone.map(person => person.enter("Home")))
  await cleo.say("Shall we cook on Friday?")
  await anna.sees("Shall we cook on Friday?")
  await cleo.seesTicks("Shall we cook on Friday?", "✓")

  assert.equal(waitingForBen(), 0)
  await ben.reload()
  assert.deepEqual(await ben.messages(), [])
})

test("a reload changes nothing of that, and loses nothing", async () => {
  await anna.enter("Ben")
  await anna.reload()
  await warning(anna).waitFor()
  await anna.sees("Is that you, Ben?")
  await anna.seesTicks("Is that you, Ben?", "✓")
  await anna.page.getByText("A message is held back: the identity of Ben has changed.").waitFor()
})

test("comparing the new code accepts the identity, and what was held back arrives in both directions", async () => {
  await ben.enter("Anna")
  await ben.seesSafetyNumber(anna)
  const digits = await ben.digits()
  await ben.closeDialog()
  const code = await codeOf(ben, anna)

  await anna.page.click(".identity-warning a")
  await anna.page.waitForSelector("#safety-dialog .qr svg")
  assert.equal(await anna.digits(), digits)
  await scan(anna, code)
  await anna.page.locator("#verified").waitFor()
  await anna.closeDialog()

  await ben.sees("Is that you, Ben?")
  await anna.sees("It is me, with new keys.")
  await anna.seesTicks("Is that you, Ben?", "✓✓")
  await ben.seesTicks("It is me, with new keys.", "✓✓")
  assert.equal(await warning(anna).count(), 0)
  assert.equal(await lock(anna), "Encrypted, verified")

  const told = ["Hello Ben.", "Hello Anna.", "Is that you, Ben?", "It is me, with new keys."]
  assert.deepEqual((await anna.messages()).map(({text}) => text), told)
  await anna.reload()
  assert.deepEqual((await anna.messages()).map(({text}) => text), told)
})

test("accepting without comparing sends what was held back, and verifies nothing", async () => {
  await warning(cleo).getByRole("button", {name: "Accept without comparing"}).click()
  await warning(cleo).waitFor({state: "detached"})
  await cleo.seesTicks("Shall we cook on Friday?", "✓✓")
  await ben.enter("Home")
  await ben.sees("Shall we cook on Friday?")
  await cleo.enter("Ben")
  assert.equal(await lock(cleo), "Encrypted")
})

test("the digits that are on the screen are the ones that are accepted", async () => {
  await cleo.seesSafetyNumber(ben)
  const button = cleo.page.getByRole("button", {name: "The digits are the same"})
  // The screen stays as it is, as if the news of the new keys came too late.
  await cleo.page.evaluate(() => {
    const button = Array.from(document.querySelectorAll("#safety-dialog button")).at(-1)
    window.compared = button.getAttribute("phx-value-digits")
  })
  await renewKeys(ben)
  await cleo.page.getByText("This number is another one than before.").waitFor()
  await button.evaluate(button => button.setAttribute("phx-value-digits", window.compared))
  await button.click()
  await cleo.page.getByText("The number has changed meanwhile. Compare again, please.").waitFor()
  assert.equal(await cleo.page.locator("#verified").count(), 0)

  await cleo.page.reload()
  await cleo.live()
  await button.click()
  await cleo.page.locator("#verified").waitFor()
})

test("after all that everyone writes to everyone", async () => {
  await cleo.closeDialog()
  await anna.enter("Home")
  await warning(anna).getByRole("button", {name: "Accept without comparing"}).click()
  await warning(anna).waitFor({state: "detached"})
  await Promise.all(everyone.map(person => person.go("/").then(() => person.enter("Home"))))
  for (const person of everyone) {
    const text = `${person.display} is there again.`
    await person.say(text)
    await person.seesTicks(text, "✓✓")
    for (const other of everyone) await other.sees(text)
  }
  for (const person of everyone) assert.equal(await person.placeholder.count(), 0)
  assert.equal(waitingForBen(), 0)
})

whateverHappened(the)
