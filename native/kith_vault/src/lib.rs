//! Keys at rest.
//!
//! Kith keeps private keys and session states in a database. This crate seals them, so that a copy of the database opens
//! nothing without the server's key, and so that a row opens only in the place it was written for. It knows bytes and
//! contexts. What a session or a prekey is, it does not know.
//!
//! # The hierarchy
//!
//! ```text
//! key-encryption key (KEK)   from the operator: environment, file, passphrase; or with a key service
//!   wraps → data key         one per account, later one per conversation; stored wrapped
//!     seals → rows           identity keys, prekeys, sessions, skipped keys, ...
//! ```
//!
//! A [`Vault`] holds the key-encryption keys: one current, any number retired. [`Vault::create_data_key`] always wraps
//! under the current one; [`Vault::open_data_key`] takes the one that the blob names. An opened [`DataKey`] seals and
//! opens rows. Changing a key-encryption key rewraps data keys and touches no row.
//!
//! # Example
//!
//! ```
//! use kith_vault::{Context, KeyId, Source, Vault};
//! use zeroize::Zeroizing;
//! # use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let mut rng = ChaCha20Rng::from_seed([7; 32]);
//! let id = KeyId::new("2026-01")?;
//! let key = Source::Key(Zeroizing::new(vec![0x42; 32]));
//! let vault = Vault::new(id.clone(), vec![(id, key)])?;
//!
//! let account = Context::new("data-key").bytes("account").bytes("alice");
//! let wrapped = vault.create_data_key(&mut rng, &account)?;
//!
//! let data_key = vault.open_data_key(&account, &wrapped)?;
//! let place = Context::new("session").bytes("alice").number(1).bytes("bob").number(1).number(7);
//! let row = data_key.seal(&mut rng, &place, b"state")?;
//! assert_eq!(data_key.open(&place, &row)?.as_slice(), b"state");
//!
//! let elsewhere = Context::new("session").bytes("alice").number(1).bytes("mallory").number(1).number(7);
//! assert!(data_key.open(&elsewhere, &row).is_err());
//! # Ok(())
//! # }
//! ```
//!
//! # Passwords
//!
//! A [`PasswordHash`] is what an application stores of the password somebody logs in with: Argon2id (RFC 9106), with a salt
//! of its own, as the PHC string other implementations read. It opens nothing. A password is borrowed and never copied
//! here; the memory of Argon2, which gives the hash away, is erased after use.
//!
//! # Fields
//!
//! A [`FieldVault`] encrypts values of the application's own tables directly under its keys, without data keys: what Cloak does
//! for Elixir applications, in Cloak's bytes and in a format of its own. A field says which key it is for. [`Context`]s bind a
//! field to its place where the application gives one. A [`LookupKey`] hashes values that a table is searched by.
//!
//! # Keys of a service
//!
//! Beside its accounts a server has keys of its own. A [`SecretKey`] is 32 bytes from the generator or a [`Source`];
//! [`Vault::wrap_secret_key`] stores it as a data key is stored. It becomes a [`SigningKey`] (Ed25519), a [`MacKey`]
//! (HMAC-SHA256), or an [`AgreementKey`] (X25519), with which a [`ClientKey`] is derived for each client and purpose:
//!
//! ```text
//! shared = X25519(service's private key, client's public key), refused when it is zero
//! key    = HKDF-SHA256(salt, shared, "kith-client-key-v1" ‖ 00 ‖ algorithm ‖ client's X25519 public key ‖
//!                      service's public key ‖ info), 32 bytes
//! ```
//!
//! The algorithm is part of what is derived from, so that no key is used with two ciphers. Whoever has the service's private key
//! derives the keys of all clients, and a client with their own private key derives theirs.
//!
//! ## Bytes sealed for a client, 46 more than their plaintext
//!
//! | offset | bytes | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 1 | format version | `0x01` |
//! | 1 | 1 | algorithm | `0x20`: AES-256-GCM, `0x21`: ChaCha20-Poly1305 |
//! | 2 | 16 | service's key | the first half of the SHA-256 of its public key |
//! | 18 | 12 | nonce | random |
//! | 30 | n | ciphertext | as long as the plaintext |
//! | 30 + n | 16 | tag | |
//!
//! The associated data is the first 18 bytes followed by what the caller gives. The limit of 2^32 seals holds for each derived key.
//!
//! # Backups
//!
//! A [`BackupWriter`] turns records into a stream of bytes under a passphrase or a [`RecoveryKey`], a [`BackupReader`] turns
//! it back, and says at its end whether it was whole. A recovery key has two forms outside: BIP-39 words, and Shamir's
//! shares; an [`EscrowKey`] wraps one by HPKE. The layouts are with the types.
//!
//! # Formats
//!
//! All blobs start with a format version and an algorithm, so that the next format can stand beside this one. The
//! header, which is everything before the nonce, is authenticated together with the context. Numbers are big-endian.
//!
//! ## Sealed row, 38 bytes more than its plaintext
//!
//! | offset | bytes | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 1 | format version | `0x01` |
//! | 1 | 1 | algorithm | `0x01`: AES-256-GCM under a data key, `0x02`: ChaCha20-Poly1305 (RFC 8439) |
//! | 2 | 8 | data key id | of the data key that sealed the row |
//! | 10 | 12 | nonce | random |
//! | 22 | n | ciphertext | as long as the plaintext |
//! | 22 + n | 16 | tag | |
//!
//! ## Wrapped data key, 71 bytes and the key id
//!
//! | offset | bytes | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 1 | format version | `0x01` |
//! | 1 | 1 | algorithm | `0x10`: AES-256-GCM under a key-encryption key |
//! | 2 | 8 | data key id | random, drawn with the data key, kept for its life |
//! | 10 | 1 | length k | 1 to 64 |
//! | 11 | k | key-encryption key id | visible ASCII |
//! | 11 + k | 12 | nonce | random |
//! | 23 + k | 32 | ciphertext | of the data key |
//! | 55 + k | 16 | tag | of AES-256-GCM |
//!
//! With `0x18` the data key is one of ChaCha20-Poly1305, and it is wrapped by AES-256-GCM all the same; so it is with each of the
//! algorithms below and 8 more. A key of the service itself is wrapped with `0x10`.
//!
//! ## Locked data key, 159 or 167 bytes and the key id
//!
//! A data key under a password, and that under a key-encryption key: neither of the two opens it alone. The header is
//! that of a wrapped data key with the algorithm `0x11`; what its ciphertext holds is
//!
//! | offset | bytes | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 12 | cost | memory in KiB, passes, parallelism of Argon2id (RFC 9106), 4 bytes each |
//! | 12 | 16 | salt | random |
//! | 28 | 32 | commitment | bytes 32 to 63 of what Argon2id gives |
//! | 60 | 12 | nonce | random |
//! | 72 | 32 | ciphertext | of the data key, under bytes 0 to 31 of what Argon2id gives |
//! | 104 | 16 | tag | of AES-256-GCM, whose associated data is the data key id and the encoded [`Context`] |
//! | 120 | 0 or 8 | stamp | random, drawn by [`Vault::lock_anew`] |
//!
//! ## Token
//!
//! A data key that was unlocked, for a cookie: the header of a wrapped data key with the algorithm `0x12`, over 16 bytes of
//! an id, 8 of a time, and the data key.
//!
//! ## Retired data key
//!
//! A data key that has a successor is a row under it: its 32 bytes, and `0x02` behind them if it is one of ChaCha20-Poly1305.
//!
//! ## With the help of a key service
//!
//! The service encrypts a key that is drawn for this one wrapping; the ciphertext at the end is under that key, which
//! binds what is wrapped to its place whatever the service authenticates. The algorithms are `0x13` for a data key, `0x14` for a
//! locked one and `0x15` for a token.
//!
//! | bytes | field | value |
//! | --- | --- | --- |
//! | 1 | format version | `0x01` |
//! | 1 | algorithm | AES-256-GCM under a key that a key service encrypted |
//! | 8 | data key id | random, drawn with the data key, kept for its life |
//! | 1 + k | key-encryption key id | its length k, 1 to 64, then visible ASCII |
//! | 4 | key version | of the service's key, 1 of a service without versions |
//! | 2 + n | key id of the service | its length n, 1 to 255, then visible ASCII |
//! | 2 + w | wrapped key | as the service keeps its key, w at most 4,096; nothing here opens it. None in a token |
//! | 2 + c | encrypted key | what the service encrypted, c at most 1,024 |
//! | 12 | nonce | random |
//! | 32, 120, 128 or 56 | ciphertext | of the data key, or of what a locked one or a token holds |
//! | 16 | tag | of AES-256-GCM |
//!
//! ## Associated data
//!
//! The associated data of all is the header followed by the encoded [`Context`]:
//!
//! | bytes | field | value |
//! | --- | --- | --- |
//! | 4 | domain | `kith` in ASCII |
//! | 1 | context version | `0x01` |
//! | 8 + k | kind | its length as 8 bytes, then its bytes |
//! | 8 + f, repeated | field | its length as 8 bytes, then its bytes; a number is a field of 8 bytes |
//!
//! The header tells its own length and every field carries its length, so two different pairs of header and context
//! never give the same bytes.
//!
//! ## Field, 32 bytes and the key id more than its plaintext
//!
//! | offset | bytes | field | value |
//! | --- | --- | --- | --- |
//! | 0 | 1 | Kith | `0xc1`: begins no text of UTF-8, and nothing of Cloak's |
//! | 1 | 1 | format version | `0x01` |
//! | 2 | 1 | algorithm | `0x20`: AES-256-GCM under a key of the application |
//! | 3 | 1 | length k | 1 to 64 |
//! | 4 | k | key id | visible ASCII |
//! | 4 + k | 12 | nonce | random |
//! | 16 + k | n | ciphertext | as long as the plaintext |
//! | 16 + k + n | 16 | tag | of AES-256-GCM |
//!
//! The header is what stands before the nonce. The context is of the kind `field`, with no fields where the application gives no
//! context.
//!
//! ## Cloak's fields
//!
//! All keys are of AES-256. A `TLV` is `0x01`, the length of the tag and the tag; from 128 bytes on, the length is the count of its
//! bytes plus `0x80`, and these bytes.
//!
//! | format | layout | associated data |
//! | --- | --- | --- |
//! | AES.GCM | `TLV ‖ iv (12 or 16) ‖ GCM's tag (16) ‖ ciphertext` | `AES256GCM` in ASCII |
//! | AES.CTR | `TLV ‖ iv (16) ‖ ciphertext` | not authenticated |
//! | AES.GCM up to 0.6 | `module tag ‖ TLV ‖ iv (16) ‖ GCM's tag (16) ‖ ciphertext` | `AES256GCM` in ASCII |
//! | AES.CTR up to 0.6 | `module tag ‖ tag ‖ iv (16) ‖ ciphertext` | not authenticated |
//!
//! # Limits
//!
//! - **2^32 seals per data key.** Nonces are 96 random bits. NIST SP 800-38D, section 8.3, allows 2^32 seals under one
//!   key, where the chance of a repeated nonce reaches 2^-32. A repeated nonce gives away the XOR of the two plaintexts
//!   and lets whoever sees both forge rows under that key. A message costs an account about two seals, so the limit
//!   lies two thousand million messages away: at 10,000 messages a day, more than 500 years. Nothing counts the seals.
//!   Replacing the data key starts again at zero, and a new algorithm byte has room for a scheme with longer nonces.
//! - The same limit holds for a key-encryption key, counted in wraps, and for a key of fields, counted in fields written.
//! - A plaintext may be as long as AES-GCM allows, 2^36 - 32 bytes. Callers bound their rows themselves.
//! - A key id has at most 64 bytes; the text of a key has at most 1,024.
//!
//! # Trust model
//!
//! Whoever reads the database, or writes it, is the adversary. Reading shows lengths, key ids and how often a row
//! changes. Writing can delete rows and can put back an older blob of the same place with everything the context says
//! about it unchanged; the generation in the context only helps where the caller learns the true generation elsewhere.
//! Everything else that is written gives [`VaultError`], which says nothing about why a blob did not open.
//!
//! The process, its memory and its user are trusted. Keys live behind a `Box` and are zeroized when dropped, so a move
//! leaves no copy on the heap. Those that are held beyond a call, the key-encryption keys and the data keys kept open, lie on
//! pages of their own, locked into memory where the system allows it; [`memory_lock_refused`] says when it did not. Copies that the compiler or the kernel makes in registers, on the stack, in swap or in a
//! core file are outside what this crate can erase. A key in an environment variable stays readable to the process, its
//! children and its user in `/proc`; a file of mode 0400 is the better source.
//!
//! AES-GCM does not commit to its key: someone who knows two keys can make one blob that opens under both. Here keys are
//! random and named in the blob, so nobody outside gains from it. A key derived from a password has one beside it. A
//! key-encryption key derived from a passphrase is one of few that can be guessed; whoever wants to try them needs the salt, and
//! has with it a check to try them against in any case.

#![forbid(unsafe_code)]

mod aead_key;
mod agreement_key;
mod backup;
mod blob;
mod cipher;
mod context;
mod data_key;
mod error;
mod escrow;
mod field;
mod gcm;
mod key_encryption_key;
mod key_id;
mod lock;
mod lookup;
mod mac_key;
mod memory;
mod open_keys;
mod passphrase;
mod password;
mod recovery_key;
mod secret_key;
mod service;
mod signing_key;
mod source;
mod vault;

pub use agreement_key::{AgreementKey, ClientKey, ClientPublicKey, Purpose, public_key_id};
pub use backup::{BackupReader, BackupSecret, BackupWriter, Record};
pub use blob::{WrappedKeyInfo, is_locked, sealed_by, wrapped_by, wrapped_key_info};
pub use cipher::Cipher;
pub use context::Context;
pub use data_key::{DataKey, DataKeyId};
pub use error::{
    BackupError, ClientKeyError, ConfigError, FieldError, KeyDefect, LockError, PasswordError,
    RecoveryKeyError, SignatureError, VaultError,
};
pub use escrow::EscrowKey;
pub use field::{Binding, CloakIv, Field, FieldCipher, FieldFormat, FieldVault, field_context};
pub use key_id::KeyId;
pub use lock::{Token, UnlockedKey};
pub use lookup::{LookupHash, LookupKey};
pub use mac_key::MacKey;
pub use memory::memory_lock_refused;
pub use open_keys::CacheLimits;
pub use passphrase::PassphraseParameters;
pub use password::{PasswordHash, PasswordParameters};
pub use recovery_key::{RecoveryKey, WordCount};
pub use secret_key::SecretKey;
pub use service::{KeyService, ServiceCiphertext, ServiceError, ServiceKey};
pub use signing_key::{SigningKey, verify_signature};
pub use source::{Secret, Source, read_secret_file};
pub use vault::Vault;

/// Bytes that a sealed row is longer than its plaintext.
pub const SEALED_OVERHEAD: usize = blob::SealedRow::OVERHEAD;
