import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

let anna, ben

const the = chat(async the => {
  ;[anna, ben] = await the.pair("anna", "ben")
  await anna.say("Are you coming to the concert on Thursday, or is it too late for the children?")
  await ben.say("We are coming, all four of us.")
})

// Presses Tab until what has the focus is what is looked for.
async function tabTo(page, selector) {
  for (let i = 0; i < 40; i++) {
    await page.keyboard.press("Tab")
    if (await page.evaluate(selector => document.activeElement.matches(selector), selector)) return
  }
  assert.fail(`no Tab leads to ${selector}`)
}

const focusIn = (page, selector) => page.evaluate(selector => document.activeElement.closest(selector) !== null, selector)

test("everything can be done with the keyboard alone: log in, open a conversation, write, look at the safety number", async () => {
  const {page} = await the.person("anna").arrive()
  await page.goto(the.server.url + "/login")
  await tabTo(page, "#name")
  await page.keyboard.type("anna")
  await tabTo(page, "#password")
  await page.keyboard.type(anna.password)
  await page.keyboard.press("Enter")
  await page.waitForSelector("[data-phx-main].phx-connected")

  await tabTo(page, ".conversation")
  await page.keyboard.press("Enter")
  await page.waitForSelector(".composer")
  // One may write at once.
  await until("the text field has the focus", () => focusIn(page, ".composer textarea"))
  the.said.add("Written without a mouse.")
  await page.keyboard.type("Written without a mouse.")
  await page.keyboard.press("Enter")
  await ben.sees("Written without a mouse.")

  await tabTo(page, ".conversation-header .title")
  await page.keyboard.press("Enter")
  await page.waitForSelector("#details-dialog")
  await tabTo(page, ".people a")
  await page.keyboard.press("Enter")
  await page.waitForSelector("#safety-dialog .qr svg")

  // The focus is in the dialog and does not leave it, in either direction.
  await until("the focus is in the dialog", () => focusIn(page, "#safety-dialog"))
  const seen = new Set()
  for (const key of ["Tab", "Shift+Tab"]) {
    for (let i = 0; i < 12; i++) {
      await page.keyboard.press(key)
      assert.ok(await focusIn(page, "#safety-dialog"))
      seen.add(await page.evaluate(() => document.activeElement.textContent.trim()))
    }
  }
  assert.ok(seen.has("Scan their code"))
  assert.ok(seen.has("The digits are the same"))

  await page.keyboard.press("Escape")
  await page.waitForSelector("#safety-dialog", {state: "detached"})
  await until("one may write on", () => focusIn(page, ".composer textarea"))
  await page.context().close()
})

test("a dialog that closes gives the focus back to what opened it", async () => {
  const {page} = anna
  await page.focus("[aria-label=Settings]")
  await page.keyboard.press("Enter")
  await page.waitForSelector("#settings-dialog")
  await until("the focus is in the dialog", () => focusIn(page, "#settings-dialog"))
  await page.keyboard.press("Escape")
  await page.waitForSelector("#settings-dialog", {state: "detached"})
  await until("the focus is back", () => focusIn(page, "[aria-label=Settings]"))
})

test("whatever can be pressed or filled in has a name", async () => {
  const nameless = page => page.$$eval("button, a, input:not([type=hidden]), textarea, select", elements =>
    elements.filter(element => {
      const labels = element.labels ? Array.from(element.labels, label => label.textContent) : []
      return [element.getAttribute("aria-label"), element.textContent, ...labels].every(name => !name?.trim())
    }).map(element => element.outerHTML))

  const conversation = anna.path === "/" ? (await anna.enter("Ben"), anna.path) : anna.path
  const other = the.server.sql("SELECT id FROM users WHERE name = 'ben'")[0].id
  for (const path of ["/", "/new", "/settings", "/protection", conversation, `${conversation}/details`, `${conversation}/safety/${other}`]) {
    await anna.go(path)
    assert.deepEqual(await nameless(anna.page), [], path)
  }
  for (const path of ["/account", "/recovery", "/recovery/try"]) {
    await anna.page.goto(the.server.url + path)
    assert.deepEqual(await nameless(anna.page), [], path)
  }
  const visitor = await the.person("visitor").arrive()
  for (const path of ["/login", "/signup", "/recover"]) {
    await visitor.page.goto(the.server.url + path)
    assert.deepEqual(await nameless(visitor.page), [], path)
  }
  await visitor.leave()
  await anna.go(conversation)
})

test("a page whose scripts did not load takes no message, which would stand in its address", async () => {
  const conversation = anna.path
  await anna.page.route("**/app.js", route => route.abort())
  await anna.page.goto(the.server.url + conversation)
  assert.ok(await anna.field.isDisabled())
  assert.ok(await anna.page.getByLabel("Send").isDisabled())
  await anna.page.unroute("**/app.js")
  await anna.go(conversation)
  assert.ok(await anna.field.isEnabled())
})

// The contrast of text with what is behind it, as WCAG counts it. All colours here are opaque.
const contrasts = page => page.evaluate(() => {
  const channels = color => color.match(/[\d.]+/g).map(Number)
  const light = color => {
    const [r, g, b] = channels(color).map(value => value / 255).map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const behind = element => {
    const color = getComputedStyle(element).backgroundColor
    return channels(color)[3] === 0 ? behind(element.parentElement) : color
  }
  const low = []
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  let count = 0
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility() || element.closest(".hidden, script, option")) continue
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))].sort((x, y) => y - x)
    const ratio = (a + 0.05) / (b + 0.05)
    count += 1
    if (ratio < 4.5) low.push(`${element.textContent.trim()}: ${ratio.toFixed(2)}`)
  }
  return {low, count}
})

for (const scheme of ["light", "dark"]) {
  test(`text is legible in ${scheme} colours`, async () => {
    await anna.page.emulateMedia({colorScheme: scheme, reducedMotion: "reduce"})
    const conversation = anna.path
    for (const path of ["/settings", "/protection", "/new", conversation]) {
      await anna.go(path)
      const {low, count} = await contrasts(anna.page)
      assert.ok(count > 5)
      assert.deepEqual(low, [], path)
    }
    for (const path of ["/account", "/recovery", "/recovery/try"]) {
      await anna.page.goto(the.server.url + path)
      const {low, count} = await contrasts(anna.page)
      assert.ok(count > 5)
      assert.deepEqual(low, [], path)
    }
    await anna.go(conversation)
    const paper = await anna.page.evaluate(() => getComputedStyle(document.body).backgroundColor)
    const [red] = paper.match(/\d+/g).map(Number)
    assert.ok(scheme === "light" ? red > 200 : red < 60, paper)
  })
}

test("who has chosen colours keeps them, whatever the device says", async () => {
  await anna.page.emulateMedia({colorScheme: "light"})
  await anna.follow("[aria-label=Settings]", "#settings-dialog")
  await anna.page.getByLabel("dark", {exact: true}).check()
  const dark = () => anna.page.evaluate(() => Number(getComputedStyle(document.body).backgroundColor.match(/\d+/)[0]) < 60)
  assert.ok(await dark())
  await anna.reload()
  assert.ok(await dark())
  await anna.page.getByLabel("as the device").check()
  assert.ok(!await dark())
  await anna.closeDialog()
})

test("on a phone the list and the conversation each have the screen, nothing is cut off, and a finger hits every button", async () => {
  const phone = await the.person("anna", {viewport: {width: 390, height: 844}, isMobile: true, hasTouch: true, deviceScaleFactor: 2}).arrive()
  const {page} = phone
  await phone.logIn()

  const fits = async what => {
    assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= 390), `${what} is too wide`)
    const outside = await page.$$eval("button, a, input:not(.hidden), textarea", elements => elements
      .filter(element => element.checkVisibility())
      .map(element => ({name: element.outerHTML.slice(0, 80), box: element.getBoundingClientRect()}))
      .filter(({box}) => box.left < 0 || box.right > 390.5)
      .map(({name}) => name))
    assert.deepEqual(outside, [], what)
    const small = await page.$$eval("button, .button, .conversation", elements => elements
      .filter(element => element.checkVisibility())
      .map(element => ({name: element.outerHTML.slice(0, 80), box: element.getBoundingClientRect()}))
      .filter(({box}) => box.width < 44 || box.height < 44)
      .map(({name}) => name))
    assert.deepEqual(small, [], what)
  }

  await fits("the list")
  assert.equal(await page.locator(".main").isVisible(), false)
  await page.locator(".conversation").tap()
  await page.waitForSelector(".composer")
  await fits("the conversation")
  assert.equal(await page.locator(".sidebar").isVisible(), false)

  // The keyboard of a phone has no Shift: Enter is a new line, and the button sends.
  await phone.field.fill("From the phone")
  await phone.field.press("Enter")
  assert.equal(await phone.field.inputValue(), "From the phone\n")
  the.said.add("From the phone")
  await page.getByLabel("Send").tap()
  await ben.sees("From the phone")
  assert.ok(await page.locator(".composer").evaluate(composer => composer.getBoundingClientRect().bottom <= 844))

  await phone.seesSafetyNumber(ben)
  await fits("the safety number")
  await page.getByRole("button", {name: "The digits are the same"}).scrollIntoViewIfNeeded()
  assert.ok(await page.getByRole("button", {name: "The digits are the same"}).isVisible())
  await phone.closeDialog()

  await page.getByLabel("All conversations").tap()
  await page.locator(".sidebar").waitFor()
  await phone.leave()
})

whateverHappened(the)
