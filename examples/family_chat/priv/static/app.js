// The browser's part of the chat. No build step: this file is served as it is.

const {Socket} = window.Phoenix
const {LiveSocket} = window.LiveView

const hooks = {}

// What people see in their own time zone.
function localTimes(root) {
  const today = new Date().toDateString()
  for (const time of root.querySelectorAll("time:not([data-local])")) {
    const at = new Date(time.dateTime)
    const day = at.toDateString() === today ? {} : {day: "numeric", month: "short"}
    time.textContent = at.toLocaleString([], {...day, hour: "2-digit", minute: "2-digit"})
    time.title = at.toLocaleString()
    time.dataset.local = ""
  }
}

hooks.Page = {
  mounted() {
    this.visible = () => this.pushEvent("visible", {visible: document.visibilityState === "visible"})
    document.addEventListener("visibilitychange", this.visible)
  },
  reconnected() { this.visible() },
  destroyed() { document.removeEventListener("visibilitychange", this.visible) }
}

// Gives the focus back when it closes, unless another dialog follows.
hooks.Dialog = {
  mounted() { this.opener = document.activeElement },
  destroyed() {
    if (document.querySelector(".dialog")) return
    const opener = this.opener?.isConnected && this.opener !== document.body ? this.opener : null
    const next = opener || document.querySelector(".composer textarea") || document.querySelector(".sidebar a")
    next?.focus()
  }
}

hooks.Timeline = {
  mounted() {
    localTimes(this.el)
    this.toEnd()
    // Whoever is at the end stays there when a warning, or the keyboard of a phone, takes some of the height.
    this.atEnd = true
    this.el.addEventListener("scroll", () => { this.atEnd = this.distance() < 120 })
    this.observer = new ResizeObserver(() => { if (this.atEnd) this.toEnd() })
    this.observer.observe(this.el)
    // How far a message has come, without drawing it again.
    this.handleEvent("progress", ({id, served, opened}) => {
      const ticks = document.querySelector(`#${CSS.escape(id)} .ticks`)
      if (!ticks) return
      ticks.dataset.served = served
      ticks.dataset.opened = opened
      ticks.textContent = served > 0 && opened >= served ? "✓✓" : "✓"
      ticks.setAttribute("aria-label", `Delivered to ${opened} of ${served}`)
    })
  },
  beforeUpdate() {
    this.first = this.el.querySelector("#items > li")
    this.top = this.first?.offsetTop - this.el.offsetTop
  },
  updated() {
    localTimes(this.el)
    this.sort()
    // Stay at the end, or at what was being read when older messages came in above.
    if (this.atEnd) this.toEnd()
    else if (this.first?.isConnected) this.el.scrollTop += this.first.offsetTop - this.el.offsetTop - this.top
  },
  // What was sent at the same time elsewhere, or is sent again, arrives later than it stands in the history.
  sort() {
    const key = line => [Number(line.dataset.at), line.id]
    const later = (a, b) => a[0] > b[0] || (a[0] === b[0] && a[1] > b[1])
    for (const line of Array.from(this.el.querySelectorAll("#items > li"))) {
      let next = line
      while (next.previousElementSibling && later(key(next.previousElementSibling), key(line))) next = next.previousElementSibling
      if (next !== line) next.before(line)
    }
  },
  destroyed() { this.observer.disconnect() },
  distance() { return this.el.scrollHeight - this.el.scrollTop - this.el.clientHeight },
  toEnd() { this.el.scrollTop = this.el.scrollHeight }
}

// Sends messages, and keeps each until the server has said that it has it. A message is sent under an id that is made here: sent
// again after a lost answer, it is the same message.
hooks.Composer = {
  mounted() {
    this.text = this.el.querySelector("textarea")
    this.list = this.el.querySelector(".outbox")
    this.problem = this.el.querySelector(".problem")
    this.key = `outbox:${this.el.dataset.user}:${this.el.dataset.conversation}`
    this.outbox = JSON.parse(sessionStorage.getItem(this.key) || "[]")
    // What is being typed is there again after the page was loaded anew.
    this.draft = `draft:${this.el.dataset.user}:${this.el.dataset.conversation}`
    this.text.value = sessionStorage.getItem(this.draft) || ""
    this.sending = false
    this.typed = 0

    this.el.addEventListener("submit", event => { event.preventDefault(); this.submit() })
    this.text.addEventListener("keydown", event => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing && !matchMedia("(pointer: coarse)").matches) {
        event.preventDefault()
        this.submit()
      }
    })
    this.text.addEventListener("input", () => {
      this.grow()
      this.keepDraft()
      if (Date.now() - this.typed > 2000 && this.text.value.trim() !== "") {
        this.typed = Date.now()
        this.push("typing", {})
      }
    })
    this.text.addEventListener("blur", () => { this.left = performance.now() })
    this.again = setInterval(() => this.send(), 5000)
    for (const control of [this.text, this.el.querySelector("button")]) control.disabled = false
    if (!matchMedia("(pointer: coarse)").matches) this.text.focus()
    this.grow()
    this.draw()
    this.send()
  },
  destroyed() { clearInterval(this.again) },
  disconnected() {
    this.sending = false
    // LiveView has just taken the focus away. Whoever is writing writes on.
    if (performance.now() - this.left < 100) this.text.focus()
  },
  reconnected() { this.sending = false; this.send() },

  push(event, payload, answer) {
    if (!liveSocket.isConnected()) return
    // Newer versions give a promise that is broken when the connection is.
    Promise.resolve(this.pushEvent(event, payload, answer)).catch(() => {})
  },
  submit() {
    const text = this.text.value.trim()
    if (text === "") return
    this.outbox.push({id: uuid(), text})
    this.text.value = ""
    this.keepDraft()
    this.typed = 0
    this.problem.hidden = true
    this.grow()
    this.keep()
    this.send()
    // Wherever one has scrolled to, what one writes is at the end.
    const timeline = document.querySelector(".timeline")
    timeline.scrollTop = timeline.scrollHeight
  },
  // One after the other, so that they stay in order.
  send() {
    const [next] = this.outbox
    if (!next || this.sending || !liveSocket.isConnected()) return
    this.sending = true
    clearTimeout(this.patience)
    this.patience = setTimeout(() => { this.sending = false }, 10000)
    this.push("send", {conversation: this.el.dataset.conversation, id: next.id, text: next.text}, reply => {
      this.sending = false
      if (reply.ok) this.outbox = this.outbox.filter(message => message.id !== next.id)
      else if (!reply.again) this.refused(next)
      this.keep()
      if (reply.ok) this.send()
    })
  },
  refused(message) {
    this.outbox = this.outbox.filter(({id}) => id !== message.id)
    this.text.value = message.text
    this.keepDraft()
    this.problem.textContent = "This could not be sent. It may be too long."
    this.problem.hidden = false
    this.grow()
  },
  keepDraft() {
    if (this.text.value === "") sessionStorage.removeItem(this.draft)
    else sessionStorage.setItem(this.draft, this.text.value)
  },
  keep() {
    if (this.outbox.length === 0) sessionStorage.removeItem(this.key)
    else sessionStorage.setItem(this.key, JSON.stringify(this.outbox))
    this.draw()
  },
  draw() {
    this.list.replaceChildren(...this.outbox.map(({text}) => {
      const line = document.createElement("li")
      line.textContent = text
      return line
    }))
  },
  grow() {
    this.text.style.height = "auto"
    this.text.style.height = `${Math.min(this.text.scrollHeight, 160)}px`
  }
}

// crypto.randomUUID is missing where the page is not served over HTTPS.
function uuid() {
  if (crypto.randomUUID) return crypto.randomUUID()
  const bytes = crypto.getRandomValues(new Uint8Array(16))
  bytes[6] = (bytes[6] & 0x0f) | 0x40
  bytes[8] = (bytes[8] & 0x3f) | 0x80
  const hex = Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("")
  return [hex.slice(0, 8), hex.slice(8, 12), hex.slice(12, 16), hex.slice(16, 20), hex.slice(20)].join("-")
}

const toText = bytes => Array.from(bytes, byte => String.fromCharCode(byte)).join("")
const toBytes = text => Uint8Array.from(text, character => character.charCodeAt(0))

hooks.QR = {
  mounted() { this.draw() },
  updated() { this.draw() },
  async draw() {
    const {encodeQR} = await import("/vendor/qr/index.js")
    const rows = encodeQR(atob(this.el.dataset.code), "raw", {ecc: "low", encoding: "byte", textEncoder: toBytes, border: 4})
    const size = rows.length
    const squares = rows.flatMap((row, y) => row.map((dark, x) => dark ? `M${x} ${y}h1v1h-1z` : "")).join("")
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg")
    svg.setAttribute("viewBox", `0 0 ${size} ${size}`)
    svg.setAttribute("shape-rendering", "crispEdges")
    const path = document.createElementNS("http://www.w3.org/2000/svg", "path")
    path.setAttribute("d", squares)
    svg.append(path)
    this.el.replaceChildren(svg)
  }
}

hooks.Scanner = {
  mounted() {
    this.video = this.el.querySelector("video")
    this.status = this.el.querySelector("[role=status]")
    this.canvas = document.createElement("canvas")
    this.el.querySelector("[data-camera]").addEventListener("click", () => this.stream ? this.stop() : this.camera())
    this.el.querySelector("input").addEventListener("change", event => this.picture(event.target.files[0]))
  },
  destroyed() { this.stop() },

  async camera() {
    try {
      this.stream = await navigator.mediaDevices.getUserMedia({video: {facingMode: "environment"}})
      this.video.srcObject = this.stream
      this.video.hidden = false
      await this.video.play()
      this.say("Hold their code before the camera.")
      this.look()
    } catch {
      this.stop()
      this.say("There is no camera here, or it is not allowed. A camera takes HTTPS.")
    }
  },
  async look() {
    if (!this.stream) return
    const code = await this.read(this.video, this.video.videoWidth, this.video.videoHeight)
    if (code) this.found(code)
    else setTimeout(() => this.look(), 150)
  },
  async picture(file) {
    if (!file) return
    try {
      const image = await createImageBitmap(file)
      const code = await this.read(image, image.width, image.height)
      if (code) this.found(code)
      else this.say("There is no code in this picture.")
    } catch {
      this.say("This is no picture.")
    }
  },
  async read(source, width, height) {
    if (!width || !height) return null
    const scale = Math.min(1, 1200 / Math.max(width, height))
    this.canvas.width = Math.round(width * scale)
    this.canvas.height = Math.round(height * scale)
    const context = this.canvas.getContext("2d", {willReadFrequently: true})
    context.drawImage(source, 0, 0, this.canvas.width, this.canvas.height)
    const {decodeQR} = await import("/vendor/qr/decode.js")
    try {
      return decodeQR(context.getImageData(0, 0, this.canvas.width, this.canvas.height), {textDecoder: toText})
    } catch {
      return null
    }
  },
  found(code) {
    this.stop()
    this.say("")
    const latin = Array.from(code, character => character.charCodeAt(0))
    const bytes = latin.some(byte => byte > 255) ? "" : btoa(code)
    this.pushEvent("scanned", {user: this.el.dataset.user, bytes})
  },
  stop() {
    this.stream?.getTracks().forEach(track => track.stop())
    this.stream = null
    if (this.video) this.video.hidden = true
  },
  say(text) { this.status.textContent = text }
}

function theme(choice) {
  if (choice === "auto") delete document.documentElement.dataset.theme
  else document.documentElement.dataset.theme = choice
}
theme(localStorage.getItem("theme") || "auto")

hooks.Theme = {
  mounted() {
    const current = localStorage.getItem("theme") || "auto"
    for (const input of this.el.querySelectorAll("input")) {
      input.checked = input.value === current
      input.addEventListener("change", () => {
        localStorage.setItem("theme", input.value)
        theme(input.value)
      })
    }
  }
}

localTimes(document)
// What was not sent is the business of whoever wrote it.
document.addEventListener("submit", event => { if (event.target.id.startsWith("logout")) sessionStorage.clear() })

const csrfToken = document.querySelector("meta[name=csrf-token]").content
const liveSocket = new LiveSocket("/live", Socket, {params: {_csrf_token: csrfToken}, hooks})
liveSocket.connect()
// The server ends a connection in order when its session is over: LiveView would show the page some seconds longer.
liveSocket.getSocket().onClose(event => { if (event?.code === 1000) window.location.reload() })
