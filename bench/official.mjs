// One person's message to a family through the official client. Answers family.exs, which asks in turn
// with the other ways of doing the same.
//
// A request is a line `operation people samples`, an answer one line of nanoseconds. `info` is answered
// with the versions. The stores are in memory and serialized, since the client reads and writes a
// record in every call. The calls of one fan-out are awaited together, which is its faster way.

import { createInterface } from 'node:readline';
import { clientFromArgs, loadClient } from '../test/interop/peer/client.mjs';

const client = await loadClient(clientFromArgs(process.argv.slice(2)));
const { S, Party } = client;
const PLAINTEXT = new Uint8Array(256).fill(0x61);
const PREKEY_MESSAGE = 3;

async function person(name) {
  const party = new Party({ name });
  const identity = party.keyPair.privateKey;

  const prekey = S.PrivateKey.generate();
  const signed = S.PrivateKey.generate();
  const signature = identity.sign(signed.getPublicKey().serialize());
  await party.preKeys.savePreKey(1, S.PreKeyRecord.new(1, prekey.getPublicKey(), prekey));
  await party.signedPreKeys.saveSignedPreKey(
    1,
    S.SignedPreKeyRecord.new(1, Date.now(), signed.getPublicKey(), signed, signature),
  );

  // Without it the older release starts a session of version 3.
  let kyber = [null, null, null];
  if (client.kyber === 'required') {
    const pair = S.KEMKeyPair.generate();
    const kyberSignature = identity.sign(pair.getPublicKey().serialize());
    await party.kyberPreKeys.saveKyberPreKey(
      1,
      S.KyberPreKeyRecord.new(1, Date.now(), pair, kyberSignature),
    );
    kyber = [1, pair.getPublicKey(), kyberSignature];
  }

  party.bundle = S.PreKeyBundle.new(
    party.registrationId,
    1,
    1,
    prekey.getPublicKey(),
    1,
    signed.getPublicKey(),
    signature,
    party.keyPair.publicKey,
    ...kyber,
  );
  return party;
}

const encrypt = (from, to) => client.encrypt(from, to.address, PLAINTEXT);

const decrypt = (to, from, { type, body }) =>
  type === PREKEY_MESSAGE
    ? client.decryptPreKey(to, from.address, body)
    : client.decryptWhisper(to, from.address, body);

/** Both have heard from each other, and the next message of `a` is one more of a chain `b` knows. */
async function establish(a, b) {
  await client.processBundle(a, b.address, b.bundle);
  await decrypt(b, a, await encrypt(a, b));
  await decrypt(a, b, await encrypt(b, a));
  await decrypt(b, a, await encrypt(a, b));
}

async function people(count) {
  const all = [];
  for (let number = 0; number < count; number++) all.push(await person(`person-${number}`));
  const [sender, ...others] = all;
  for (const other of others) await establish(sender, other);
  return { sender, others };
}

function forget(party) {
  party.sessions.records.clear();
  party.identities.known.clear();
}

async function time(work) {
  const start = process.hrtime.bigint();
  await work();
  return process.hrtime.bigint() - start;
}

const families = new Map();
async function family(count) {
  if (!families.has(count)) families.set(count, await people(count));
  return families.get(count);
}

// Who starts sessions anew does not share them with `family`.
const strangers = new Map();
async function stranger(count) {
  if (!strangers.has(count)) {
    strangers.set(count, { sender: await person('stranger'), others: (await family(count)).others });
  }
  return strangers.get(count);
}

const anna = await person('anna');
const ben = await person('ben');
await establish(anna, ben);

const operations = {
  async established(count) {
    const { sender, others } = await family(count);
    return time(() => Promise.all(others.map((other) => encrypt(sender, other))));
  },

  async cold(count) {
    const { sender, others } = await stranger(count);
    forget(sender);
    return time(() =>
      Promise.all(
        others.map(async (other) => {
          await client.processBundle(sender, other.address, other.bundle);
          await encrypt(sender, other);
        }),
      ),
    );
  },

  async decrypt() {
    const message = await encrypt(anna, ben);
    return time(() => decrypt(ben, anna, message));
  },

  async decrypt_new_chain() {
    await decrypt(anna, ben, await encrypt(ben, anna));
    return operations.decrypt();
  },

  async decrypt_first() {
    const stranger = await person('stranger');
    const to = await person('to');
    await client.processBundle(stranger, to.address, to.bundle);
    const message = await encrypt(stranger, to);
    return time(() => decrypt(to, stranger, message));
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  if (line === 'info') {
    console.log(`${client.version} ${process.versions.node}`);
    continue;
  }
  const [operation, count, samples] = line.split(' ');
  const answer = [];
  for (let sample = 0; sample < Number(samples); sample++) {
    answer.push(await operations[operation](Number(count)));
  }
  console.log(answer.join(' '));
}
