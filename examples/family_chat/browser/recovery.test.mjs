import assert from "node:assert/strict"
import {mkdtempSync, readFileSync, rmSync, writeFileSync} from "node:fs"
import {tmpdir} from "node:os"
import {join} from "node:path"
import {after, test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

const folder = mkdtempSync(join(tmpdir(), "family-chat-kit-"))
after(() => rmSync(folder, {recursive: true, force: true}))
const file = join(folder, "anna.kith")

let anna, ben, conversation, words, digits

const the = chat(async the => {
  ;[anna, ben, conversation] = await the.pair("anna", "ben")
  await anna.say("This is worth keeping.")
  await ben.say("And so is this.")
  await anna.sees("And so is this.")
  await ben.seesSafetyNumber(anna)
  digits = await ben.digits()
  await ben.closeDialog()
})

const kit = () => the.server.sql("SELECT k.* FROM recovery_kits k JOIN users u ON u.id = k.user_id WHERE u.name = 'anna'")[0]

async function fillKit(page, text, path) {
  await page.fill("#words", text)
  await page.setInputFiles("#file", path)
  await page.click("button.primary")
}

test("who has no recovery kit is offered one", async () => {
  await anna.page.click("#offer")
  await anna.page.waitForURL("**/recovery")
  assert.match(await anna.page.textContent("#kit"), /You have none/)
})

test("the words are shown to whoever knows the password, once, and the file is saved with them", async () => {
  await anna.page.fill("#password", "not the password")
  await anna.page.click("button.primary")
  assert.match(await anna.page.textContent("#password-help"), /not your password/)
  assert.equal(await anna.page.locator("#words").count(), 0)

  await anna.page.fill("#password", anna.password)
  const [answer] = await Promise.all([anna.page.waitForNavigation(), anna.page.click("button.primary")])
  assert.match(answer.headers()["cache-control"], /no-store/)
  words = await anna.page.locator("#words li").allTextContents()
  assert.equal(words.length, 12)
  assert.equal(new URL(anna.page.url()).search, "")

  const [download] = await Promise.all([anna.page.waitForEvent("download"), anna.page.getByRole("button", {name: "Save the file"}).click()])
  assert.equal(download.suggestedFilename(), "family-chat-anna.kith")
  await download.saveAs(file)
  const bytes = readFileSync(file)
  assert.ok(bytes.length > 1_000)
  assert.ok(!bytes.includes("worth keeping"))
  await until("it is noted", () => kit()?.tried_at === null)

  // Another look shows other words.
  await anna.page.goto(the.server.url + "/recovery")
  assert.equal(await anna.page.locator("#words").count(), 0)
  assert.match(await anna.page.textContent("#kit"), /saved one, and not tried it/)
})

test("the kit is tried with what was written down, and a wrong word is named", async () => {
  await anna.page.getByRole("link", {name: "Try the one I have"}).click()
  await fillKit(anna.page, words.with(6, "sumer").join(" "), file)
  assert.match(await anna.page.textContent("#words-help"), /Word 7 is none/)
  // What was typed is not sent back.
  assert.equal(await anna.page.inputValue("#words"), "")

  await fillKit(anna.page, words.slice(1).join(" "), file)
  assert.match(await anna.page.textContent("#words-help"), /11 words/)

  const half = join(folder, "half")
  writeFileSync(half, readFileSync(file).subarray(0, 500))
  await fillKit(anna.page, words.join(" "), half)
  assert.match(await anna.page.textContent("#file-help"), /no recovery file, or a part of it is missing/)
  assert.equal(kit().tried_at, null)

  await fillKit(anna.page, words.map((word, i) => `${i + 1}. ${word}`).join("\n"), file)
  await anna.page.waitForSelector("#tried")
  assert.ok(kit().tried_at > 0)

  await anna.go("/settings")
  await anna.page.getByText("Your recovery kit is of").waitFor()
  await anna.closeDialog()
  assert.equal(await anna.page.locator("#offer").count(), 0)
})

const use = async (person, fields, text, path) => {
  await person.page.goto(the.server.url + "/recover")
  for (const [id, value] of Object.entries(fields)) await person.page.fill(`#${id}`, value)
  await fillKit(person.page, text, path)
}

test("whoever has the file and not the words, or the words and not the file, gets nothing", async () => {
  const thief = await the.person("thief").arrive()
  const fields = {name: "anna", password: "the password of a thief"}
  const others = words.with(0, words[1] === "zoo" ? "abandon" : "zoo")
  await use(thief, fields, others.join(" "), file)
  assert.match(await thief.page.textContent(".problem"), /One of the words is another|These words do not open/)
  await use(thief, {...fields, name: "ben"}, words.join(" "), file)
  assert.match(await thief.page.textContent("#file-help"), /not the file of that account/)
  await use(thief, {...fields, name: "nobody"}, words.join(" "), file)
  assert.match(await thief.page.textContent("#file-help"), /not the file of that account/)
  assert.equal(thief.path, "/recover")
  await thief.leave()
})

test("who has forgotten the password comes back with words and file, under a new one", async () => {
  await anna.enter("Ben")
  await anna.say("Written after the kit.")
  await ben.sees("Written after the kit.")
  await anna.go("/settings")
  await anna.page.getByRole("button", {name: "Log out"}).click()
  await anna.page.waitForURL("**/login")
  await ben.say("While you were looking for your paper.")

  const old = anna.password
  anna.password = "another password of anna"
  await anna.page.getByRole("link", {name: "Use your recovery kit"}).click()
  await anna.page.fill("#name", "anna")
  await anna.page.fill("#password", anna.password)
  await fillKit(anna.page, words.with(11, "winte").join(" "), file)
  assert.match(await anna.page.textContent("#words-help"), /Word 12 is none/)
  assert.equal(await anna.page.inputValue("#name"), "anna")
  assert.equal(await anna.page.inputValue("#password"), "")

  await anna.page.fill("#password", anna.password)
  await fillKit(anna.page, words.join(" "), file)
  await anna.live()
  await anna.enter("Ben")
  await anna.sees("While you were looking for your paper.")
  const texts = (await anna.messages()).map(({text}) => text)
  assert.deepEqual(texts, ["This is worth keeping.", "And so is this.", "While you were looking for your paper."])

  const stranger = await the.person("anna").arrive()
  await stranger.go("/login")
  await stranger.fill({name: "anna", password: old})
  assert.match(await stranger.page.textContent("[role=alert]"), /name or the password is wrong/)
  await stranger.leave()
  const [{kind}] = the.server.sql("SELECT hex(substr(data_key, 1, 2)) AS kind FROM signal_accounts a JOIN users u ON u.id = a.user_id WHERE u.name = 'anna'")
  assert.equal(kind, "0111")
})

test("the conversation goes on in both directions, and nobody is warned: the safety number is the same", async () => {
  await anna.say("I have a new password.")
  await ben.sees("I have a new password.")
  await ben.say("And I have noticed nothing.")
  await anna.sees("And I have noticed nothing.")
  await anna.seesTicks("I have a new password.", "✓✓")
  assert.equal(await ben.page.locator(".identity-warning").count(), 0)
  for (const [person, other] of [[ben, anna], [anna, ben]]) {
    await person.seesSafetyNumber(other)
    assert.equal(await person.digits(), digits)
    await person.closeDialog()
  }
  assert.equal(await ben.placeholder.count(), 0)
  await ben.reload()
  await ben.sees("Written after the kit.")
})

test("the kit can be made and tried by keyboard, and on a phone", async () => {
  const phone = await the.person("ben", {viewport: {width: 390, height: 844}, isMobile: true, hasTouch: true}).arrive()
  const {page} = phone
  await phone.logIn()
  for (const path of ["/recovery", "/recovery/try", "/account"]) {
    await page.goto(the.server.url + path)
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390), path)
    const small = await page.$$eval("button, .button", elements => elements
      .map(element => ({name: element.outerHTML, box: element.getBoundingClientRect()}))
      .filter(({box}) => box.width < 44 || box.height < 44 || box.right > 390).map(({name}) => name))
    assert.deepEqual(small, [], path)
  }
  await page.goto(the.server.url + "/recovery")
  const tabTo = async selector => {
    for (let i = 0; i < 20; i++) {
      await page.keyboard.press("Tab")
      if (await page.evaluate(selector => document.activeElement.matches(selector), selector)) return
    }
    assert.fail(`no Tab leads to ${selector}`)
  }
  await tabTo("#password")
  await page.keyboard.type(ben.password)
  await page.keyboard.press("Enter")
  await page.waitForSelector("#words")
  assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390))
  await tabTo("#save-kit button")
  const [download] = await Promise.all([page.waitForEvent("download"), page.keyboard.press("Enter")])
  await download.delete()
  await phone.leave()
})

test("neither the words nor a password are in the database or in the log", () => {
  for (const {name, bytes} of the.server.files()) {
    for (const secret of [words.join(" "), words.join("+"), words.slice(0, 3).join(" "), anna.password, "the password of anna"])
      assert.ok(!bytes.includes(secret), name)
  }
})

whateverHappened(the)
