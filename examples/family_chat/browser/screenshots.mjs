// Makes the pictures of the documentation: node screenshots.mjs docs/images

import {execFileSync} from "node:child_process"
import {mkdirSync, statSync} from "node:fs"
import {join} from "node:path"
import {Chat} from "./support/chat.mjs"

const [directory] = process.argv.slice(2)
mkdirSync(directory, {recursive: true})

const the = new Chat()
// It is evening.
const hours = (18 - new Date().getUTCHours() + 36) % 24 - 12
const timezoneId = `Etc/GMT${hours > 0 ? "-" : "+"}${Math.abs(hours)}`
const size = {viewport: {width: 1100, height: 720}, reducedMotion: "reduce", locale: "en-GB", timezoneId}

// With fewer colours, where there is a tool for that.
async function picture(person, name) {
  const path = join(directory, `${name}.png`)
  await person.page.mouse.move(0, 0)
  await person.page.screenshot({path})
  try { execFileSync("pngquant", ["--force", "--skip-if-larger", "--output", path, "64", path]) } catch { /* It stays as it is. */ }
  console.log(`${path}: ${Math.round(statSync(path).size / 1000)} KB`)
}

const lines = [
  ["clara", "Who is coming on Sunday? I have promised Grandma her favourite soup."],
  ["anna", "All of us! Ben is back from Lisbon on Saturday night."],
  ["ben", "Landing at nine. I am bringing the cheese you all asked for."],
  ["ruth", "Then I bake the plum cake. Tom, are there any plums left on your tree?"],
  ["tom", "More than we can eat. I will drop a basket at yours on Friday."],
  ["lily", "Can I bring Mia? She has never had your soup, Mum."],
  ["clara", "Of course! That makes seven at the table."],
  ["anna", "I do the salad, and this time I remember the dressing. Dinner at seven?"],
  ["ruth", "Seven is perfect. I will be there at six to help."]
]

try {
  await the.open()
  const names = ["anna", "ben", "clara", "ruth", "tom", "lily"]
  const people = Object.fromEntries(names.map(name => [name, the.person(name, size)]))
  for (const person of Object.values(people)) {
    await person.arrive()
    await person.signUp()
  }
  const {anna, ben, clara, ruth} = people
  await clara.addContact(anna)
  await clara.say("Do you still have my big pot?")
  await ben.addContact(anna)
  await ben.say("Is there anything you need from the market there?")
  await anna.enter("Ben")
  await anna.say("Only you, in one piece.")
  await ben.sees("Only you, in one piece.")
  await the.family("Sunday dinner", [anna, ben, clara, ruth, people.tom, people.lily].sort((a, b) => (b === anna) - (a === anna)))
  for (const [name, text] of lines) {
    await people[name].say(text)
    await anna.sees(text)
  }
  await ruth.seesTicks(lines.at(-1)[1], "✓✓")

  await anna.page.reload()
  await anna.live()
  await anna.page.evaluate(() => document.activeElement.blur())
  await picture(anna, "family-conversation")

  await anna.page.emulateMedia({colorScheme: "dark"})
  await picture(anna, "family-conversation-dark")
  await anna.page.emulateMedia({colorScheme: "light"})

  const touch = {viewport: {width: 390, height: 760}, isMobile: true, hasTouch: true, deviceScaleFactor: 1.5}
  const phone = await the.person("anna", {...size, ...touch}).arrive()
  await phone.logIn()
  await phone.enter("Sunday dinner")
  await picture(phone, "phone")
  await phone.leave()

  await anna.seesSafetyNumber(ben)
  await picture(anna, "safety-number")
  await anna.closeDialog()

  // A byte of an envelope that waits for Anna is another one.
  await ruth.enter("Sunday dinner")
  const path = anna.path
  await anna.page.goto("about:blank")
  await ruth.say("One more thing: who brings chairs?")
  await ruth.leave()
  const [{id, body}] = the.server.sql("SELECT id, hex(body) AS body FROM envelopes WHERE state = 'waiting' LIMIT 1")
  const bytes = Buffer.from(body, "hex")
  bytes[bytes.length >> 1] ^= 1
  the.server.sql(`UPDATE envelopes SET body = x'${bytes.toString("hex")}' WHERE id = '${id}'`)
  await anna.go(path)
  await anna.placeholder.waitFor()
  await anna.page.evaluate(() => document.activeElement.blur())
  await picture(anna, "message-not-decrypted")
  await ruth.arrive()
  await ruth.logIn()
  await anna.sees("One more thing: who brings chairs?")

  await ben.page.goto(the.server.url + "/account")
  await ben.page.fill("#keys_password", ben.password)
  await ben.page.getByRole("button", {name: "set up my keys anew"}).click()
  await anna.page.waitForSelector(".identity-warning")
  await ben.go("/")
  await ben.enter("Sunday dinner")
  await ben.say("New phone, new keys. It is really me!")
  await anna.page.getByText("A message is held back").waitFor()
  await anna.page.evaluate(() => document.activeElement.blur())
  await picture(anna, "identity-changed")
} finally {
  await the.close()
}
