// The server of the family chat as a process of its own, on a free port, with a database and a key in a temporary
// folder. It can be stopped, killed, and started again on the same database.

import {execFileSync, spawn} from "node:child_process"
import {randomBytes} from "node:crypto"
import {closeSync, mkdtempSync, openSync, readFileSync, readdirSync, rmSync, writeFileSync} from "node:fs"
import {createServer} from "node:net"
import {tmpdir} from "node:os"
import {dirname, join, resolve} from "node:path"
import {fileURLToPath} from "node:url"
import {until} from "./until.mjs"

const here = dirname(fileURLToPath(import.meta.url))
const root = resolve(here, "../../../..")

// What starts it, from the root of the repository. It is compiled already: .ci/chat-test does that once.
const command = process.env.FAMILY_CHAT_SERVER ?? ".ci/chat mix phx.server --no-compile --no-deps-check"

const running = new Set()

// Whatever ends the tests ends the servers.
process.on("exit", () => { for (const server of running) server.remove() })
for (const signal of ["SIGINT", "SIGTERM", "SIGHUP"]) process.on(signal, () => process.exit(1))

export class Server {
  constructor(environment = {}, options = "") {
    this.folder = mkdtempSync(join(tmpdir(), "family-chat-"))
    this.database = join(this.folder, "chat.db")
    this.logFile = join(this.folder, "log")
    this.environment = environment
    this.options = options
    writeFileSync(join(this.folder, "key"), randomBytes(32).toString("base64") + "\n", {mode: 0o600})
    running.add(this)
  }

  async start() {
    this.port ??= await freePort()
    this.url = `http://localhost:${this.port}`
    const log = openSync(this.logFile, "a")
    // The commands replace each other by exec, so that this process is the BEAM. The group is whatever that starts.
    this.process = spawn("sh", ["-c", `exec ${command} ${this.options}`], {
      cwd: root,
      detached: true,
      stdio: ["ignore", log, log],
      env: {
        ...process.env,
        KITH_NO_DEPS: process.env.KITH_NO_DEPS ?? "1",
        MIX_ENV: "dev",
        PORT: this.port,
        FAMILY_CHAT_FILE: this.database,
        KITH_KEY_FILE: join(this.folder, "key"),
        ...this.environment
      }
    })
    closeSync(log)
    this.over = new Promise(over => this.process.on("exit", over))
    this.process.on("exit", () => { this.ended = true })
    this.ended = false
    await until("the server is ready", async () => {
      if (this.ended) throw new Error(`the server did not start:\n${this.log()}`)
      return (await fetch(`${this.url}/health`).catch(() => null))?.ok
    }, 60_000)
  }

  // As an operator does it.
  async stop() {
    process.kill(this.process.pid, "SIGTERM")
    await this.over
  }

  // As a power failure does it.
  async kill() {
    this.signal("SIGKILL")
    await this.over
  }

  signal(name) {
    try { process.kill(-this.process.pid, name) } catch (error) { if (error.code !== "ESRCH") throw error }
  }

  log() { return readFileSync(this.logFile, "latin1") }

  // Rows of the database, as objects; or changes it behind the server's back.
  sql(statement) {
    const rows = execFileSync("sqlite3", ["-json", "-cmd", ".timeout 10000", this.database, statement], {encoding: "utf8"})
    return rows.trim() === "" ? [] : JSON.parse(rows)
  }

  // Keeps everyone else from writing, until what it returns is called.
  async hold() {
    const holder = spawn("sqlite3", ["-cmd", ".timeout 10000", this.database], {stdio: ["pipe", "pipe", "inherit"]})
    const over = new Promise(over => holder.on("exit", over))
    const held = new Promise(held => holder.stdout.once("data", held))
    holder.stdin.write("BEGIN IMMEDIATE; SELECT 'held';\n")
    await held
    return () => {
      holder.stdin.end("COMMIT;\n")
      return over
    }
  }

  // The bytes of the database with its write-ahead log, and of all else that is in the folder but the key.
  files() {
    return readdirSync(this.folder)
      .filter(name => name !== "key")
      .map(name => ({name, bytes: readFileSync(join(this.folder, name))}))
  }

  remove() {
    if (this.process && !this.ended) this.signal("SIGKILL")
    rmSync(this.folder, {recursive: true, force: true})
    running.delete(this)
  }
}

function freePort() {
  return new Promise((found, failed) => {
    const server = createServer()
    server.once("error", failed)
    server.listen(0, "127.0.0.1", () => {
      const {port} = server.address()
      server.close(() => found(port))
    })
  })
}
