// As driver.py, of the client that lies beside it as client.mjs.
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { answer, registration, request, seal, unseal } from "./client.mjs";

const subtle = globalThis.crypto.subtle;
const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const base64 = (data) => Buffer.from(data).toString("base64");
const text = (data) => new TextEncoder().encode(data);

async function key(path, name, usages, publicUsages) {
  if (!existsSync(path)) {
    const made = await subtle.generateKey(name, true, usages);
    const [priv, pub] = [await subtle.exportKey("pkcs8", made.privateKey), await subtle.exportKey("raw", made.publicKey)];
    writeFileSync(path, `${base64(priv)} ${base64(pub)}`);
  }
  const [priv, pub] = readFileSync(path, "utf8").split(" ").map(bytes);
  const own = usages.filter((usage) => !publicUsages.includes(usage));
  return {
    privateKey: await subtle.importKey("pkcs8", priv, name, false, own),
    publicKey: await subtle.importKey("raw", pub, name, true, publicUsages),
  };
}

function envelope(fields) {
  const read = {};
  for (let at = 0; at < fields.length; at += 2) {
    const numeric = ["version", "timestamp"].includes(fields[at]);
    read[fields[at]] = numeric ? Number(fields[at + 1]) : fields[at + 1];
  }
  return read;
}

const show = (fields) => Object.entries(fields).forEach(([field, value]) => console.log(field, value));

const [command, folder, ...rest] = process.argv.slice(2);
const signing = await key(join(folder, "ed25519"), "Ed25519", ["sign", "verify"], ["verify"]);
const agreement = await key(join(folder, "x25519"), "X25519", ["deriveBits"], []);

if (command === "register") show(await registration(signing, rest[0], bytes(rest[1])));
if (command === "request") show(await request(signing, rest[0], bytes(rest[1])));
if (command === "answer") {
  const sent = { public_key_id: rest[1], nonce: rest[2] };
  show({ payload: base64(await answer(bytes(rest[0]), sent, envelope(rest.slice(3)))) });
}
if (command === "seal") {
  const sealed = await seal(agreement, bytes(rest[0]), text(rest[1]), bytes(rest[2]), text(rest[3]));
  show({ public_key: base64(await subtle.exportKey("raw", agreement.publicKey)), sealed: base64(sealed) });
}
if (command === "unseal") {
  show({ plaintext: base64(await unseal(agreement, bytes(rest[0]), text(rest[1]), bytes(rest[2]), text(rest[3]))) });
}
