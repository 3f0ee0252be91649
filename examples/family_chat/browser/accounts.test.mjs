import assert from "node:assert/strict"
import {test} from "node:test"
import {chat, whateverHappened} from "./support/chat.mjs"

let anna, ben, cleo, conversation

const the = chat(async the => {
  ;[anna, ben] = await the.people("anna", "ben")
  await anna.addContact(ben)
  conversation = anna.path
  await anna.say("Only Ben and I read this.")
  cleo = await the.person("cleo").arrive()
})

const problem = (person, field) => person.page.textContent(`#${field}-help.problem`)

test("an account takes a proper name and a password of ten characters, and the form says what is wrong", async () => {
  await cleo.go("/signup")
  await cleo.fill({name: "c!", display_name: "Cleo", password: "short"})
  assert.match(await problem(cleo, "name"), /2 to 30 letters/)
  assert.match(await problem(cleo, "password"), /at least 10 characters/)
  // What was right is still there; the password is not sent back.
  assert.equal(await cleo.page.inputValue("#display_name"), "Cleo")
  assert.equal(await cleo.page.inputValue("#password"), "")
  assert.equal(await cleo.page.getAttribute("#name", "aria-invalid"), "true")
})

test("a name that is taken is refused, in capitals too", async () => {
  await cleo.go("/signup")
  await cleo.fill({name: "ANNA", display_name: "Another Anna", password: "a long enough password"})
  assert.match(await problem(cleo, "name"), /taken/)
})

test("a sign-up logs in, and what is shown is what was chosen", async () => {
  await cleo.signUp()
  assert.equal(await cleo.page.textContent(".me"), "Cleo")
  assert.match(await cleo.page.textContent(".empty"), /no conversations yet/)
})

test("a wrong password and an unknown name get the same answer", async () => {
  const visitor = await the.person("visitor").arrive()
  const answers = []
  for (const name of ["anna", "nobody"]) {
    await visitor.go("/login")
    await visitor.fill({name, password: "not the password"})
    answers.push(await visitor.page.textContent("[role=alert]"))
  }
  assert.deepEqual(answers, ["The name or the password is wrong.", "The name or the password is wrong."])
  await visitor.leave()
})

test("nobody who is not logged in sees a page", async () => {
  const visitor = await the.person("visitor").arrive()
  for (const path of ["/", "/settings", conversation]) {
    await visitor.go(path)
    assert.equal(visitor.path, "/login")
  }
  assert.equal((await visitor.context.request.get(the.server.url + "/dashboard/home")).status(), 404)
  await visitor.leave()
})

test("a conversation of others is not shown to somebody who knows its address", async () => {
  for (const path of [conversation, `${conversation}/details`, `${conversation}/safety/somebody`]) {
    await cleo.go(path)
    await cleo.page.waitForURL(the.server.url + "/")
    assert.equal(await cleo.page.locator(".conversation-header").count(), 0)
  }
  assert.ok(!(await cleo.page.content()).includes("Only Ben and I read this."))
})

test("a page that was changed to send to a conversation of others is refused", async () => {
  await cleo.go("/")
  await cleo.addContact(anna)
  await cleo.page.$eval(".composer", (composer, id) => { composer.dataset.conversation = id }, conversation.split("/")[2])
  await cleo.type("I am not one of you.")
  await cleo.page.getByText("This could not be sent.").waitFor()
  assert.deepEqual(the.server.sql("SELECT count(*) AS messages FROM messages"), [{messages: 1}])
})

test("neither passwords nor the tokens of the chat's sessions are in the log", () => {
  const log = the.server.log()
  for (const person of [anna, ben, cleo]) assert.ok(!log.includes(person.password))
  assert.ok(log.includes('"_csrf_token" => "[FILTERED]"'))
  assert.ok(!log.includes('"token" =>'))
})

test("the dashboard is for the first user alone", async () => {
  const status = async person => (await person.context.request.get(the.server.url + "/dashboard/home")).status()
  assert.equal(await status(anna), 200)
  assert.equal(await status(ben), 404)

  await anna.page.goto(the.server.url + "/dashboard/home")
  await anna.page.getByText("System information").first().waitFor()
  await anna.go("/")

  await ben.go("/settings")
  assert.equal(await ben.page.getByText("The dashboard of this server").count(), 0)
})

test("logging out ends the other tabs", async () => {
  await ben.go("/")
  const other = await ben.openPage()
  await other.goto(the.server.url + "/")
  await other.waitForSelector("[data-phx-main].phx-connected")

  await ben.go("/settings")
  await ben.page.getByRole("button", {name: "Log out"}).click()
  await ben.page.waitForURL("**/login")
  await other.waitForURL("**/login")

  await ben.go("/")
  assert.equal(ben.path, "/login")
})

test("the cookie of a session that was ended opens nothing", async () => {
  await ben.logIn()
  const cookies = await ben.context.cookies()
  await ben.go("/settings")
  await ben.page.getByRole("button", {name: "Log out"}).click()
  await ben.page.waitForURL("**/login")

  await ben.context.addCookies(cookies)
  await ben.go("/")
  assert.equal(ben.path, "/login")
})

test("after ten wrong passwords a name has to wait", async () => {
  const guesser = await the.person("guesser").arrive()
  let answer
  for (let attempt = 0; attempt < 11; attempt++) {
    await guesser.go("/login")
    await guesser.fill({name: "cleo", password: `guess number ${attempt}`})
    answer = await guesser.page.textContent("[role=alert]")
  }
  assert.equal(answer, "Too many attempts. Wait a few minutes, please.")

  // The right password does not help now.
  await guesser.go("/login")
  await guesser.fill({name: "cleo", password: cleo.password})
  assert.equal(await guesser.page.textContent("[role=alert]"), "Too many attempts. Wait a few minutes, please.")
  await guesser.leave()
})

whateverHappened(the)
