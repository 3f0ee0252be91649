import assert from "node:assert/strict"
import {mkdtempSync, readFileSync, rmSync} from "node:fs"
import {tmpdir} from "node:os"
import {join} from "node:path"
import {after, test} from "node:test"
import {fileURLToPath} from "node:url"
import {chat, whateverHappened} from "./support/chat.mjs"
import {until} from "./support/until.mjs"

const folder = mkdtempSync(join(tmpdir(), "family-chat-tap-"))
const tap = join(folder, "pubsub")
after(() => rmSync(folder, {recursive: true, force: true}))

let anna, ben, cleo, key

// What goes over the connections of a person's page, in both directions.
const frames = new Map()

function listen(person) {
  const heard = []
  frames.set(person, heard)
  person.page.on("websocket", socket => {
    for (const event of ["framereceived", "framesent"]) socket.on(event, ({payload}) => heard.push(payload.toString()))
  })
  return person.go("/")
}

const heard = (person, text) => frames.get(person).filter(frame => frame.includes(text)).length

const secrets = ["The safe is behind the painting.", "The combination is four seven one one.", "Nobody else may know."]

const the = chat(async the => {
  ;[anna, ben, cleo] = await the.people("anna", "ben", "cleo")
  key = readFileSync(join(the.server.folder, "key"), "utf8").trim()
  // Cleo knows both, and is a member of a conversation with each.
  for (const person of [anna, ben]) await cleo.addContact(person)
  await anna.addContact(ben)
  for (const person of [anna, ben, cleo]) await listen(person)
  await anna.enter("Ben")
  await ben.enter("Anna")
}, {FAMILY_CHAT_TAP: tap}, `-r ${fileURLToPath(new URL("support/tap.exs", import.meta.url))}`)

test("what two people write reaches nobody else's browser", async () => {
  for (const text of secrets) {
    await anna.say(text)
    await anna.seesTicks(text, "✓✓")
  }
  // Cleo's page is awake, and hears what is for her.
  await cleo.enter("Anna")
  await anna.enter("Cleo")
  await anna.say("Hello Cleo.")
  await cleo.sees("Hello Cleo.")
  assert.ok(heard(cleo, "Hello Cleo.") > 0)

  for (const text of secrets) {
    assert.ok(heard(anna, text) > 0)
    assert.ok(heard(ben, text) > 0)
    assert.equal(heard(cleo, text), 0)
  }
  assert.equal(heard(ben, "Hello Cleo."), 0)
  assert.equal(await cleo.unread("Ben"), 0)
})

test("what the pages of a server tell each other does not say what is written", () => {
  const told = readFileSync(tap, "utf8")
  assert.ok(told.includes("{:envelope, "))
  assert.ok(told.includes("{:opened, "))
  for (const text of the.said) assert.ok(!told.includes(text))
})

test("the key is neither in the database nor in the log", () => {
  for (const {bytes} of the.server.files()) {
    assert.ok(!bytes.includes(key))
    assert.ok(!bytes.includes(Buffer.from(key, "base64")))
  }
})

test("a password is not in the database, and a copy of the table of sessions logs nobody in", async () => {
  for (const person of [anna, ben, cleo])
    for (const {bytes} of the.server.files()) assert.ok(!bytes.includes(person.password))

  const hashes = the.server.sql("SELECT hex(token_hash) AS hash FROM user_tokens").map(({hash}) => hash)
  assert.ok(hashes.length >= 3)
  const [cookie] = await anna.context.cookies()
  for (const hash of hashes) assert.ok(!cookie.value.includes(Buffer.from(hash, "hex").toString("base64url")))
})

test("the cookie of a session is out of reach of scripts", async () => {
  assert.equal(await anna.page.evaluate(() => document.cookie), "")
  const cookies = await anna.context.cookies()
  assert.deepEqual(cookies.map(({name, httpOnly, sameSite}) => ({name, httpOnly, sameSite})),
    [{name: "_family_chat", httpOnly: true, sameSite: "Lax"}])
})

test("what was sent is not kept in the browser", async () => {
  const kept = await anna.page.evaluate(() => JSON.stringify([Object.entries(sessionStorage), Object.entries(localStorage)]))
  for (const text of the.said) assert.ok(!kept.includes(text))
})

test("a page loads and runs nothing from elsewhere, and stands in no frame", async () => {
  const policy = (await anna.context.request.get(the.server.url)).headers()["content-security-policy"]
  assert.match(policy, /default-src 'self'/)
  assert.match(policy, /frame-ancestors 'none'/)
  assert.doesNotMatch(policy, /unsafe/)

  const ran = await anna.page.evaluate(() => {
    const script = document.createElement("script")
    script.textContent = "window.injected = true"
    document.body.append(script)
    return window.injected === true
  })
  assert.equal(ran, false)
  await until("the browser complains of it", () => the.faults.length > 0)
  the.faults.splice(0)
})

test("a form of another site logs nobody out", async () => {
  const answer = await anna.context.request.post(the.server.url + "/logout", {form: {}, maxRedirects: 0})
  assert.equal(answer.status(), 403)
  await anna.go("/")
  assert.equal(anna.path, "/")
})

whateverHappened(the)
