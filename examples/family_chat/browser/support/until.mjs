// How long a test waits for what has to happen: long, as a machine may be busy with other things.
export const patience = 30_000

// Asks again and again until the answer is yes, and returns it.
export async function until(what, ask, limit = patience) {
  const end = Date.now() + limit
  for (;;) {
    const answer = await ask()
    if (answer) return answer
    if (Date.now() > end) throw new Error(`waited in vain: ${what}`)
    await new Promise(resolve => setTimeout(resolve, 25))
  }
}
