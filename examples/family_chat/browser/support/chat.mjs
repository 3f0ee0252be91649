// A server, a browser, and the people at it.

import assert from "node:assert/strict"
import {after, before, test} from "node:test"
import {chromium} from "playwright-core"
import {Person} from "./person.mjs"
import {Server} from "./server.mjs"

const flags = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync"
]

export class Chat {
  constructor(...server) {
    this.server = new Server(...server)
    // What people wrote, and what went wrong in their pages.
    this.said = new Set()
    this.faults = []
  }

  async open() {
    this.browser = await chromium.launch({executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: flags})
    await this.server.start()
  }

  async close() {
    await this.browser?.close()
    this.server.remove()
  }

  person(name, options) { return new Person(this, name, options) }

  // People with accounts, each at a page.
  async people(...names) {
    // The first account is the one that may look at the dashboard.
    const people = names.map(name => this.person(name))
    await Promise.all(people.map(person => person.arrive()))
    const [first, ...others] = people
    await first.signUp()
    await Promise.all(others.map(person => person.signUp()))
    return people
  }

  // Two contacts who have their conversation open, and its address.
  async pair(...names) {
    const [one, other] = await this.people(...names)
    await one.addContact(other)
    await other.enter(one.display)
    return [one, other, one.path]
  }

  // A conversation of all of them, which everyone has open.
  async family(title, people) {
    const [first, ...others] = people
    for (const other of others) await first.addContact(other)
    const path = await first.beginFamily(title, others)
    await Promise.all(others.map(person => person.enter(title)))
    return path
  }
}

// For the tests of a file: started before the first, gone after the last.
export function chat(prepare, ...server) {
  const chat = new Chat(...server)
  before(async () => {
    await chat.open()
    await prepare(chat)
  })
  after(() => chat.close())
  return chat
}

// What is true after whatever a file has done; its last tests.
export function whateverHappened(chat) {
  test("nothing that was written is readable in the database or in the server's log", async () => {
    const files = chat.server.files()
    const readable = text => files.filter(({bytes}) => bytes.includes(text)).map(({name}) => name)

    // What is not secret is found.
    assert.ok(readable("Anna").includes("chat.db") || readable("Anna").includes("chat.db-wal"))
    assert.ok(readable("Running FamilyChatWeb.Endpoint").includes("log"))

    assert.ok(chat.said.size > 0)
    assert.deepEqual([...chat.said].filter(text => readable(text).length > 0), [])
  })

  test("no page had an error, and none was kept from loading something", () => assert.deepEqual(chat.faults, []))
}
