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
//! | 1 | 1 | algorithm | `0x01`: AES-256-GCM under a data key |
//! | 2 | 8 | data key id | of the data key that sealed the row |
//! | 10 | 12 | nonce | random |
//! | 22 | n | ciphertext | as long as the plaintext |
//! | 22 + n | 16 | tag | of AES-256-GCM |
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
//! ## Data key wrapped with the help of a key service
//!
//! The service encrypts a key that is drawn for this one wrapping; the ciphertext at the end is under that key, which
//! binds the data key to its place whatever the service authenticates.
//!
//! | bytes | field | value |
//! | --- | --- | --- |
//! | 1 | format version | `0x01` |
//! | 1 | algorithm | `0x11`: AES-256-GCM under a key that a key service encrypted |
//! | 8 | data key id | random, drawn with the data key, kept for its life |
//! | 1 + k | key-encryption key id | its length k, 1 to 64, then visible ASCII |
//! | 4 | key version | of the service's key, 1 of a service without versions |
//! | 2 + n | key id of the service | its length n, 1 to 255, then visible ASCII |
//! | 2 + w | wrapped key | as the service keeps its key, w at most 4,096; nothing here opens it |
//! | 2 + c | encrypted key | what the service encrypted, c at most 1,024 |
//! | 12 | nonce | random |
//! | 32 | ciphertext | of the data key |
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
//! # Limits
//!
//! - **2^32 seals per data key.** Nonces are 96 random bits. NIST SP 800-38D, section 8.3, allows 2^32 seals under one
//!   key, where the chance of a repeated nonce reaches 2^-32. A repeated nonce gives away the XOR of the two plaintexts
//!   and lets whoever sees both forge rows under that key. A message costs an account about two seals, so the limit
//!   lies two thousand million messages away: at 10,000 messages a day, more than 500 years. Nothing counts the seals.
//!   Replacing the data key starts again at zero, and a new algorithm byte has room for a scheme with longer nonces.
//! - The same limit holds for a key-encryption key, counted in wraps.
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
//! random and named in the blob, so nobody outside gains from it. A key derived from a passphrase is one of few that can be
//! guessed; whoever wants to try them needs the salt, and has with it a check to try them against in any case.
//!
//! # What comes later, and where
//!
//! - Rotation: `rewrap`, beside [`Vault::create_data_key`], for key-encryption keys; [`wrapped_by`] finds what is left
//!   to do. For data keys, [`sealed_by`] tells old rows from new ones, so nothing depends on an order.
//! - Cloak's format: a reader of its own, beside the module of the blob layouts, since its first byte has another
//!   meaning.

#![forbid(unsafe_code)]

mod aead_key;
mod blob;
mod context;
mod data_key;
mod error;
mod key_encryption_key;
mod key_id;
mod memory;
mod open_keys;
mod passphrase;
mod password;
mod service;
mod source;
mod vault;

pub use blob::{WrappedKeyInfo, sealed_by, wrapped_by, wrapped_key_info};
pub use context::Context;
pub use data_key::{DataKey, DataKeyId};
pub use error::{ConfigError, KeyDefect, PasswordError, VaultError};
pub use key_id::KeyId;
pub use memory::memory_lock_refused;
pub use open_keys::CacheLimits;
pub use passphrase::PassphraseParameters;
pub use password::{PasswordHash, PasswordParameters};
pub use service::{KeyService, ServiceCiphertext, ServiceError, ServiceKey};
pub use source::{Secret, Source, read_secret_file};
pub use vault::Vault;

/// Bytes that a sealed row is longer than its plaintext.
pub const SEALED_OVERHEAD: usize = blob::SealedRow::OVERHEAD;
