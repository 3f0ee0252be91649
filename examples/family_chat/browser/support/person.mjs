// A person at a browser of their own: what they do and what they see.

import {patience, until} from "./until.mjs"

export class Person {
  constructor(chat, name, options = {}) {
    this.chat = chat
    this.name = name
    this.display = name[0].toUpperCase() + name.slice(1)
    this.password = `the password of ${name}`
    this.options = {viewport: {width: 1000, height: 700}, ...options}
  }

  // Opens a browser with nothing in it.
  async arrive() {
    this.context = await this.chat.browser.newContext(this.options)
    this.context.setDefaultTimeout(patience)
    this.page = await this.openPage()
    return this
  }

  // Another tab.
  async openPage() {
    const page = await this.context.newPage()
    page.on("pageerror", error => this.chat.faults.push(`${this.name}: ${error.stack}`))
    page.on("console", message => {
      if (/Content.Security.Policy/i.test(message.text())) this.chat.faults.push(`${this.name}: ${message.text()}`)
    })
    return page
  }

  async leave() { await this.context.close() }

  get path() { return new URL(this.page.url()).pathname }

  async go(path) {
    await this.page.goto(this.chat.server.url + path)
    if (!["/login", "/signup"].includes(this.path)) await this.live()
    return this
  }

  // The page has its connection, and reacts.
  async live() { await this.page.waitForSelector("[data-phx-main].phx-connected") }

  async signUp() {
    await this.go("/signup")
    await this.fill({name: this.name, display_name: this.display, password: this.password})
    await this.live()
    return this
  }

  async logIn() {
    await this.go("/login")
    await this.fill({name: this.name, password: this.password})
    await this.live()
    return this
  }

  async fill(fields) {
    for (const [id, value] of Object.entries(fields)) await this.page.fill(`#${id}`, value)
    await this.page.click("button.primary")
  }

  async reload() {
    await this.page.reload()
    await this.live()
  }

  // A click on a link of the page, which draws the other page in its place.
  async follow(selector, there) {
    await this.page.click(selector)
    await this.page.waitForSelector(there)
  }

  async addContact(other) {
    await this.follow("[aria-label='New conversation']", "#new-dialog")
    await this.page.fill("#contact-name", other.name)
    await this.page.click("#add-contact button")
    await this.inConversation(other.display)
  }

  async beginFamily(title, others) {
    await this.follow("[aria-label='New conversation']", "#new-dialog")
    await this.page.fill("#title", title)
    for (const other of others) await this.page.getByLabel(other.display, {exact: true}).check()
    await this.page.click("#create-family button")
    await this.inConversation(title)
    return this.path
  }

  row(title) { return this.page.locator(".conversation", {has: this.page.locator(`.name:text-is("${title}")`)}) }

  // The rows change places when a message arrives, and another one may be hit.
  async enter(title) {
    await until(`${this.name} is in ${title}`, async () => {
      await this.row(title).click()
      return this.inConversation(title, 3_000).then(() => true, () => false)
    })
  }

  async inConversation(title, timeout = patience) {
    await this.page.waitForSelector(`.conversation-header h2:text-is("${title}")`, {timeout})
  }

  // The number beside a conversation, 0 where there is none.
  async unread(title) {
    return this.row(title).evaluate(row => Number(row.querySelector(".unread")?.textContent ?? 0))
  }

  async seesUnread(title, count) {
    await until(`${this.name} has ${count} unread of ${title}`, async () => await this.unread(title) === count)
  }

  // Types and presses Enter. The page keeps the message until the server has it.
  async type(text) {
    this.chat.said.add(text)
    await this.field.fill(text)
    await this.field.press("Enter")
  }

  get field() { return this.page.locator(".composer textarea") }

  // And waits for that.
  async say(text) {
    await this.type(text)
    await this.sees(text)
    await this.sent()
  }

  async sent() { await until(`all of ${this.name} is sent`, async () => await this.page.locator(".outbox li").count() === 0) }

  message(text) {
    const exactly = this.page.locator(".text").and(this.page.getByText(text, {exact: true}))
    return this.page.locator("#items > li.message", {has: exactly})
  }

  // Only how many, which is quickly asked.
  async seesMessages(count) {
    await this.page.waitForFunction(count => document.querySelectorAll("#items > li.message").length >= count, count)
  }

  async sees(text) { await this.message(text).waitFor() }

  async seesTicks(text, ticks) {
    await until(`${this.name} has ${ticks} at ${text}`, async () =>
      await this.message(text).locator(".ticks").textContent() === ticks)
  }

  // The lines of the timeline as they stand on the screen.
  async timeline() {
    return this.page.$$eval("#items > li", lines => lines.map(line => ({
      kind: ["message", "unopened", "notice"].find(kind => line.classList.contains(kind)),
      mine: line.classList.contains("mine"),
      sender: line.querySelector(".sender")?.textContent ?? null,
      text: line.querySelector(".text").textContent.trim(),
      ticks: line.querySelector(".ticks")?.textContent ?? null
    })))
  }

  async messages() { return (await this.timeline()).filter(line => line.kind === "message") }

  // All there is: scrolls up until there is nothing earlier.
  async wholeTimeline() {
    const earlier = this.page.locator(".earlier")
    while (await earlier.count() > 0) {
      const before = await this.page.locator("#items > li").count()
      await earlier.click()
      await until("earlier messages", async () => await this.page.locator("#items > li").count() > before)
    }
    return this.timeline()
  }

  // The placeholder of a message that did not open.
  get placeholder() { return this.page.locator("#items > li.unopened") }

  async seesSafetyNumber(other) {
    await this.follow(".conversation-header .title", "#details-dialog")
    await this.page.locator(".people li", {hasText: other.display}).getByText("Safety number").click()
    await this.page.waitForSelector("#safety-dialog .qr svg")
  }

  async digits() { return (await this.page.locator("#digits li").allTextContents()).join(" ") }

  async closeDialog() {
    await this.page.click(".dialog [aria-label=Close]")
    await this.page.waitForSelector(".dialog", {state: "detached"})
  }
}
