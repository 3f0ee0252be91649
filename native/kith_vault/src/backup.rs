//! Backups: records under a passphrase or a recovery key, as a stream that opens as a whole or not.
//!
//! ```text
//! header (86)
//!   8  "KITHBKUP"
//!   1  version, 01
//!   1  secret: 01 a passphrase, 02 a recovery key
//!   4  Argon2id: memory in KiB      \
//!   4            passes              } 0 for a recovery key
//!   4            parallelism        /
//!  32  salt, random: of Argon2id and of HKDF
//!  32  commitment to the key
//! chunks
//!      65,536 bytes of the content and a tag of 16; the last one may be shorter
//! ```
//!
//! The chunks are STREAM (eprint 2015/189) over AES-256-GCM: the nonce of each has its number and whether it is the last,
//! and the header is its associated data. Key, nonce prefix and commitment are one expansion of HKDF-SHA256 over the header
//! up to the commitment. AES-GCM does not commit to its key, so without the commitment one file could open under two
//! passphrases, and a wrong passphrase could not be told from a changed file.

use aead_stream::{DecryptorBE32, EncryptorBE32};
use aes_gcm::{Aes256Gcm, KeyInit};
use hkdf::Hkdf;
use rand_core::TryCryptoRng;
use sha2::Sha256;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::{
    aead_key::{KEY_BYTES, TAG_BYTES},
    error::{BackupError, PasswordError},
    password::{PasswordHash, PasswordParameters, argon2id},
    recovery_key::RecoveryKey,
};

const MAGIC: &[u8; 8] = b"KITHBKUP";
const VERSION: u8 = 1;
const PASSPHRASE: u8 = 1;
const RECOVERY_KEY: u8 = 2;
const SALT_BYTES: usize = 32;
const COMMITMENT_BYTES: usize = 32;
const COMMITTED_BYTES: usize = MAGIC.len() + 2 + 12 + SALT_BYTES;

/// What STREAM leaves of a nonce of 12 bytes, beside a counter of 4 and the mark of the last chunk.
const PREFIX_BYTES: usize = 7;

/// Keeps keys of backups apart from whatever else is derived from the same secret.
const LABEL: &[u8] = b"kith-backup";

/// Bytes of a chunk. Large enough that tags cost nothing, small enough to lie in memory some times over.
const CHUNK_BYTES: usize = 65_536;
const SEALED_CHUNK_BYTES: usize = CHUNK_BYTES + TAG_BYTES;

/// The most bytes of what a record says in public.
const MAX_PUBLIC_BYTES: usize = 65_536;

/// The most bytes of what a record keeps secret. A message has at most 1 MiB, and the addresses of a thousand recipients.
const MAX_SECRET_BYTES: usize = 4 * 1_048_576;

/// Kind, and the lengths of both parts.
const RECORD_HEADER_BYTES: usize = 9;

/// What opens a backup.
#[derive(Clone, Copy)]
pub enum BackupSecret<'a> {
    /// A passphrase of [`BackupWriter::MIN_PASSPHRASE_BYTES`] to [`PasswordHash::MAX_PASSWORD_BYTES`] bytes.
    Passphrase(&'a [u8]),
    /// A recovery key.
    RecoveryKey(&'a RecoveryKey),
}

/// One record: its kind, what of it is not secret to the caller, and what is.
///
/// Both parts are sealed alike in the backup. They differ in who gets to see them when it is read.
pub struct Record {
    /// Of the caller's choosing.
    pub kind: u8,
    /// What may be shown.
    pub public: Vec<u8>,
    /// What may not.
    pub secret: Zeroizing<Vec<u8>>,
}

/// The header, checked as far as one can without the secret.
struct Header {
    bytes: [u8; BackupReader::HEADER_BYTES],
    parameters: Option<PasswordParameters>,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Self, BackupError> {
        let bytes: [u8; BackupReader::HEADER_BYTES] =
            bytes.try_into().map_err(|_| BackupError::Malformed)?;
        let (magic, rest) = bytes.split_first_chunk().ok_or(BackupError::Malformed)?;
        if magic != MAGIC {
            return Err(BackupError::Malformed);
        }
        let &[version, kind, ref parameters @ ..] = rest else {
            return Err(BackupError::Malformed);
        };
        if version != VERSION {
            return Err(BackupError::UnsupportedVersion);
        }
        let number = |at: usize| -> Result<u32, BackupError> {
            parameters
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map(u32::from_be_bytes)
                .ok_or(BackupError::Malformed)
        };
        let numbers = (number(0)?, number(4)?, number(8)?);
        let parameters = match (kind, numbers) {
            (PASSPHRASE, (memory, passes, parallelism)) => {
                let parameters = PasswordParameters::new(memory, passes, parallelism)?;
                hard_enough(parameters)?;
                Some(parameters)
            }
            (RECOVERY_KEY, (0, 0, 0)) => None,
            _ => return Err(BackupError::Malformed),
        };
        Ok(Self { bytes, parameters })
    }

    /// Everything but the commitment.
    fn committed(&self) -> &[u8] {
        let (committed, _) = self.bytes.split_at(COMMITTED_BYTES);
        committed
    }

    fn salt(&self) -> &[u8] {
        let (_, salt) = self.committed().split_at(COMMITTED_BYTES - SALT_BYTES);
        salt
    }

    fn derive(&self, secret: BackupSecret<'_>) -> Result<Keys, BackupError> {
        match (secret, self.parameters) {
            (BackupSecret::Passphrase(passphrase), Some(parameters)) => {
                if !(1..=PasswordHash::MAX_PASSWORD_BYTES).contains(&passphrase.len()) {
                    return Err(BackupError::WrongSecret);
                }
                let mut stretched = Zeroizing::new([0; KEY_BYTES]);
                argon2id(
                    &parameters.context()?,
                    passphrase,
                    self.salt(),
                    &mut stretched[..],
                )?;
                self.expand(&stretched[..])
            }
            (BackupSecret::RecoveryKey(key), None) => self.expand(key.as_bytes()),
            _ => Err(BackupError::WrongSecret),
        }
    }

    fn expand(&self, secret: &[u8]) -> Result<Keys, BackupError> {
        let mut output = Zeroizing::new([0; KEY_BYTES + PREFIX_BYTES + COMMITMENT_BYTES]);
        Hkdf::<Sha256>::new(Some(self.salt()), secret)
            .expand_multi_info(&[LABEL, self.committed()], &mut output[..])
            .map_err(|_| BackupError::Malformed)?;
        Ok(Keys(output))
    }
}

/// Refuses parameters that somebody who has the file would laugh about.
fn hard_enough(parameters: PasswordParameters) -> Result<(), BackupError> {
    let work = u64::from(parameters.memory()) * u64::from(parameters.passes());
    if parameters.memory() < BackupWriter::MIN_MEMORY || work < BackupWriter::MIN_WORK {
        return Err(BackupError::Malformed);
    }
    Ok(())
}

impl From<PasswordError> for BackupError {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Malformed => Self::Malformed,
            PasswordError::OutOfMemory => Self::OutOfMemory,
            PasswordError::Random => Self::Random,
            PasswordError::TooLarge => Self::TooLarge,
        }
    }
}

/// Key ‖ nonce prefix ‖ commitment.
struct Keys(Zeroizing<[u8; KEY_BYTES + PREFIX_BYTES + COMMITMENT_BYTES]>);

impl Keys {
    fn aead(&self) -> Result<Aes256Gcm, BackupError> {
        let (key, _) = self.0.split_at(KEY_BYTES);
        Aes256Gcm::new_from_slice(key).map_err(|_| BackupError::Malformed)
    }

    fn prefix(&self) -> [u8; PREFIX_BYTES] {
        let mut prefix = [0; PREFIX_BYTES];
        let (_, rest) = self.0.split_at(KEY_BYTES);
        for (to, from) in prefix.iter_mut().zip(rest) {
            *to = *from;
        }
        prefix
    }

    fn commitment(&self) -> &[u8] {
        let (_, commitment) = self.0.split_at(KEY_BYTES + PREFIX_BYTES);
        commitment
    }
}

/// Appends to a buffer of plaintext, which leaves none behind in freed memory when it grows.
fn append(buffer: &mut Zeroizing<Vec<u8>>, bytes: &[u8]) {
    let needed = buffer.len() + bytes.len();
    if needed > buffer.capacity() {
        let mut grown = Zeroizing::new(Vec::with_capacity(needed.max(2 * buffer.capacity())));
        grown.extend_from_slice(buffer);
        *buffer = grown;
    }
    buffer.extend_from_slice(bytes);
}

/// Writes a backup, a record at a time. Holds a chunk of it.
pub struct BackupWriter {
    header: Header,
    // Boxed, as every key here: a move leaves no copy of it.
    encryptor: Box<EncryptorBE32<Aes256Gcm>>,
    pending: Zeroizing<Vec<u8>>,
}

impl BackupWriter {
    /// The least memory of Argon2id, in KiB, and
    pub const MIN_MEMORY: u32 = 19 * 1_024;

    /// the least memory times passes: what OWASP asks for at least, of passwords that are tried online. A backup is in the
    /// hands of whoever found it.
    pub const MIN_WORK: u64 = 2 * 19 * 1_024;

    /// The shortest passphrase.
    pub const MIN_PASSPHRASE_BYTES: usize = 8;

    /// Begins a backup. Returns its header, the first bytes to store. The parameters are those of a passphrase.
    ///
    /// # Errors
    ///
    /// [`BackupError::Malformed`] for parameters or a passphrase below the least, [`BackupError::TooLarge`] for a passphrase
    /// that is too long, and those of the machine.
    pub fn create<R: TryCryptoRng + ?Sized>(
        rng: &mut R,
        secret: BackupSecret<'_>,
        parameters: PasswordParameters,
    ) -> Result<(Self, Vec<u8>), BackupError> {
        let (kind, numbers) = match secret {
            BackupSecret::Passphrase(passphrase) => {
                hard_enough(parameters)?;
                if passphrase.len() < Self::MIN_PASSPHRASE_BYTES {
                    return Err(BackupError::Malformed);
                }
                if passphrase.len() > PasswordHash::MAX_PASSWORD_BYTES {
                    return Err(BackupError::TooLarge);
                }
                let (memory, passes, lanes) = (
                    parameters.memory(),
                    parameters.passes(),
                    parameters.parallelism(),
                );
                (PASSPHRASE, [memory, passes, lanes])
            }
            BackupSecret::RecoveryKey(_) => (RECOVERY_KEY, [0; 3]),
        };
        let mut salt = [0; SALT_BYTES];
        rng.try_fill_bytes(&mut salt)
            .map_err(|_| BackupError::Random)?;

        let mut bytes = Vec::with_capacity(BackupReader::HEADER_BYTES);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&[VERSION, kind]);
        for number in numbers {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes.extend_from_slice(&salt);
        bytes.extend_from_slice(&[0; COMMITMENT_BYTES]);
        let keys = Header::parse(&bytes)?.derive(secret)?;
        bytes.truncate(COMMITTED_BYTES);
        bytes.extend_from_slice(keys.commitment());

        let writer = Self {
            header: Header::parse(&bytes)?,
            encryptor: Box::new(EncryptorBE32::from_aead(
                keys.aead()?,
                &keys.prefix().into(),
            )),
            pending: Zeroizing::new(Vec::with_capacity(SEALED_CHUNK_BYTES)),
        };
        Ok((writer, bytes))
    }

    /// Appends a record, and to `output` the chunks that it filled.
    ///
    /// # Errors
    ///
    /// [`BackupError::TooLarge`] for a record over the limits or after 2^32 chunks.
    pub fn write(
        &mut self,
        kind: u8,
        public: &[u8],
        secret: &[u8],
        output: &mut Vec<u8>,
    ) -> Result<(), BackupError> {
        if public.len() > MAX_PUBLIC_BYTES || secret.len() > MAX_SECRET_BYTES {
            return Err(BackupError::TooLarge);
        }
        let length = |part: &[u8]| {
            u32::try_from(part.len())
                .map(u32::to_be_bytes)
                .map_err(|_| BackupError::TooLarge)
        };
        let (public_length, secret_length) = (length(public)?, length(secret)?);
        for part in [&[kind][..], &public_length, &secret_length, public, secret] {
            self.append(part, output)?;
        }
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8], output: &mut Vec<u8>) -> Result<(), BackupError> {
        while !bytes.is_empty() {
            // A full chunk waits until it is known not to be the last.
            if self.pending.len() == CHUNK_BYTES {
                self.encryptor
                    .encrypt_next_in_place(&self.header.bytes, &mut *self.pending)
                    .map_err(|_| BackupError::TooLarge)?;
                output.extend_from_slice(&self.pending);
                self.pending.clear();
            }
            let room = CHUNK_BYTES - self.pending.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pending.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    /// Ends the backup and returns its last chunk.
    ///
    /// # Errors
    ///
    /// [`BackupError::TooLarge`] after 2^32 chunks.
    pub fn finish(mut self) -> Result<Vec<u8>, BackupError> {
        self.encryptor
            .encrypt_last_in_place(&self.header.bytes, &mut *self.pending)
            .map_err(|_| BackupError::TooLarge)?;
        Ok(self.pending.to_vec())
    }
}

/// Reads a backup. Nothing that it returns is to be used for good before [`Self::finish`] has said that it was whole.
pub struct BackupReader {
    header: Header,
    decryptor: Box<DecryptorBE32<Aes256Gcm>>,
    sealed: Vec<u8>,
    opened: Zeroizing<Vec<u8>>,
}

impl BackupReader {
    /// Bytes of the header.
    pub const HEADER_BYTES: usize = COMMITTED_BYTES + COMMITMENT_BYTES;

    /// Begins to read, with just the header.
    ///
    /// # Errors
    ///
    /// [`BackupError::WrongSecret`] also for a header that was changed where it says nothing, and for a recovery key in
    /// place of a passphrase. [`BackupError::TooLarge`] and [`BackupError::Malformed`] for parameters of Argon2id above and
    /// below the limits, before any work.
    pub fn open(header: &[u8], secret: BackupSecret<'_>) -> Result<Self, BackupError> {
        let header = Header::parse(header)?;
        let keys = header.derive(secret)?;
        let (_, commitment) = header.bytes.split_at(COMMITTED_BYTES);
        if !bool::from(keys.commitment().ct_eq(commitment)) {
            return Err(BackupError::WrongSecret);
        }
        Ok(Self {
            decryptor: Box::new(DecryptorBE32::from_aead(
                keys.aead()?,
                &keys.prefix().into(),
            )),
            header,
            sealed: Vec::new(),
            opened: Zeroizing::new(Vec::new()),
        })
    }

    /// Takes more bytes, any number of them, and returns the records that are complete.
    ///
    /// # Errors
    ///
    /// [`BackupError::Tampered`].
    pub fn read(&mut self, bytes: &[u8]) -> Result<Vec<Record>, BackupError> {
        let mut records = Vec::new();
        for part in bytes.chunks(SEALED_CHUNK_BYTES) {
            self.sealed.extend_from_slice(part);
            // The last chunk may be a full one.
            if self.sealed.len() > SEALED_CHUNK_BYTES {
                let rest = self.sealed.split_off(SEALED_CHUNK_BYTES);
                let mut chunk = Zeroizing::new(std::mem::replace(&mut self.sealed, rest));
                self.decryptor
                    .decrypt_next_in_place(&self.header.bytes, &mut *chunk)
                    .map_err(|_| BackupError::Tampered)?;
                append(&mut self.opened, &chunk);
                self.take(&mut records)?;
            }
        }
        Ok(records)
    }

    /// Ends reading and returns the last records. Only now is it known that nothing was cut off or appended.
    ///
    /// # Errors
    ///
    /// [`BackupError::Tampered`]; [`BackupError::Malformed`] when it ends within a record.
    pub fn finish(mut self) -> Result<Vec<Record>, BackupError> {
        let mut chunk = Zeroizing::new(std::mem::take(&mut self.sealed));
        self.decryptor
            .decrypt_last_in_place(&self.header.bytes, &mut *chunk)
            .map_err(|_| BackupError::Tampered)?;
        append(&mut self.opened, &chunk);
        let (mut records, mut opened) = (Vec::new(), std::mem::take(&mut self.opened));
        take(&mut opened, &mut records)?;
        if !opened.is_empty() {
            return Err(BackupError::Malformed);
        }
        Ok(records)
    }

    fn take(&mut self, records: &mut Vec<Record>) -> Result<(), BackupError> {
        take(&mut self.opened, records)
    }
}

/// Takes the complete records off the front.
fn take(opened: &mut Zeroizing<Vec<u8>>, records: &mut Vec<Record>) -> Result<(), BackupError> {
    let mut rest = opened.as_slice();
    while let Some((header, after)) = rest.split_first_chunk::<RECORD_HEADER_BYTES>() {
        let [kind, a, b, c, d, e, f, g, h] = *header;
        let length = |bytes| usize::try_from(u32::from_be_bytes(bytes)).ok();
        let (Some(public), Some(secret)) = (length([a, b, c, d]), length([e, f, g, h])) else {
            return Err(BackupError::Malformed);
        };
        if public > MAX_PUBLIC_BYTES || secret > MAX_SECRET_BYTES {
            return Err(BackupError::Malformed);
        }
        let Some((public, after)) = after.split_at_checked(public) else {
            break;
        };
        let Some((secret, after)) = after.split_at_checked(secret) else {
            break;
        };
        records.push(Record {
            kind,
            public: public.to_vec(),
            secret: Zeroizing::new(secret.to_vec()),
        });
        rest = after;
    }
    let left = rest.len();
    if left < opened.len() {
        let mut kept = Zeroizing::new(Vec::with_capacity(left));
        kept.extend_from_slice(rest);
        *opened = kept;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};

    use super::*;
    use crate::recovery_key::WordCount;

    fn rng() -> ChaCha20Rng {
        ChaCha20Rng::from_seed([3; 32])
    }

    fn parameters() -> PasswordParameters {
        PasswordParameters::new(BackupWriter::MIN_MEMORY, 2, 1).unwrap()
    }

    fn key() -> RecoveryKey {
        RecoveryKey::generate(&mut rng(), WordCount::Twelve).unwrap()
    }

    fn write(secret: BackupSecret<'_>, records: &[(u8, &[u8], &[u8])]) -> Vec<u8> {
        let (mut writer, mut bytes) =
            BackupWriter::create(&mut rng(), secret, parameters()).unwrap();
        for (kind, public, secret) in records {
            writer.write(*kind, public, secret, &mut bytes).unwrap();
        }
        bytes.extend(writer.finish().unwrap());
        bytes
    }

    type Read = Vec<(u8, Vec<u8>, Vec<u8>)>;

    fn read(secret: BackupSecret<'_>, bytes: &[u8], step: usize) -> Result<Read, BackupError> {
        let (header, rest) = bytes
            .split_at_checked(BackupReader::HEADER_BYTES)
            .ok_or(BackupError::Malformed)?;
        let mut reader = BackupReader::open(header, secret)?;
        let mut records = Vec::new();
        for part in rest.chunks(step) {
            records.extend(reader.read(part)?);
        }
        records.extend(reader.finish()?);
        Ok(records
            .into_iter()
            .map(|record| (record.kind, record.public, record.secret.to_vec()))
            .collect())
    }

    #[test]
    fn records_come_back_however_the_bytes_are_cut() {
        let key = key();
        let secret = BackupSecret::RecoveryKey(&key);
        let large = vec![7; 3 * CHUNK_BYTES];
        // Ends with a full chunk: the first record fills what the others leave of it.
        let filling = vec![1; CHUNK_BYTES - 9 - 3 - 9 - 9 - 1];
        for records in [
            &[
                (1, &b"a"[..], &b"bc"[..]),
                (2, &[], &[]),
                (3, &filling, b"x"),
            ][..],
            &[(9, b"", &large), (1, b"a", b"b")],
            &[],
        ] {
            let bytes = write(secret, records);
            let wanted: Read = records
                .iter()
                .map(|(kind, public, secret)| (*kind, public.to_vec(), secret.to_vec()))
                .collect();
            for step in [1_000, 65_552, 65_553, 1_000_000] {
                assert_eq!(read(secret, &bytes, step).unwrap(), wanted);
            }
        }
    }

    #[test]
    fn what_was_cut_edited_reordered_or_continued_is_refused() {
        let key = key();
        let secret = BackupSecret::RecoveryKey(&key);
        let large = vec![7; 2 * CHUNK_BYTES];
        let bytes = write(secret, &[(1, b"a", &large), (2, b"b", b"c")]);
        let small = write(secret, &[(1, b"abc", b"def")]);

        for length in 0..small.len() {
            assert!(read(secret, &small[..length], 65_536).is_err(), "{length}");
        }
        for at in 0..small.len() {
            for bit in [1, 0x80] {
                let mut edited = small.clone();
                edited[at] ^= bit;
                assert!(read(secret, &edited, 65_536).is_err(), "{at}");
            }
        }
        for length in [
            BackupReader::HEADER_BYTES + SEALED_CHUNK_BYTES,
            BackupReader::HEADER_BYTES + 2 * SEALED_CHUNK_BYTES,
        ] {
            assert_eq!(
                read(secret, &bytes[..length], 65_536),
                Err(BackupError::Tampered)
            );
        }
        let mut swapped = bytes.clone();
        let (first, second) =
            swapped[BackupReader::HEADER_BYTES..].split_at_mut(SEALED_CHUNK_BYTES);
        first.swap_with_slice(&mut second[..SEALED_CHUNK_BYTES]);
        assert_eq!(read(secret, &swapped, 65_536), Err(BackupError::Tampered));
        assert_eq!(
            read(secret, &[&bytes[..], b"x"].concat(), 65_536),
            Err(BackupError::Tampered)
        );
        assert_eq!(
            read(secret, &[&small[..], &small].concat(), 65_536),
            Err(BackupError::Tampered)
        );
    }

    #[test]
    fn another_secret_is_told_from_a_changed_file() {
        let key = key();
        let secret = BackupSecret::Passphrase(b"correct horse");
        let bytes = write(secret, &[(1, b"a", b"b")]);
        assert_eq!(read(secret, &bytes, 100).unwrap().len(), 1);
        for wrong in [
            BackupSecret::Passphrase(b"correct horses"),
            BackupSecret::Passphrase(b""),
            BackupSecret::RecoveryKey(&key),
        ] {
            assert_eq!(read(wrong, &bytes, 100), Err(BackupError::WrongSecret));
        }
        let mut later = bytes.clone();
        later[8] = 2;
        assert_eq!(
            read(secret, &later, 100),
            Err(BackupError::UnsupportedVersion)
        );
        assert_eq!(
            read(secret, &[&b"X"[..], &bytes[1..]].concat(), 100),
            Err(BackupError::Malformed)
        );
    }

    #[test]
    fn parameters_that_are_too_low_or_too_high_are_refused_before_any_work() {
        let bytes = write(BackupSecret::Passphrase(b"correct horse"), &[]);
        let with = |memory: u32, passes: u32| {
            let mut bytes = bytes.clone();
            bytes[10..14].copy_from_slice(&memory.to_be_bytes());
            bytes[14..18].copy_from_slice(&passes.to_be_bytes());
            read(BackupSecret::Passphrase(b"correct horse"), &bytes, 100).unwrap_err()
        };
        assert_eq!(with(8, 1), BackupError::Malformed);
        assert_eq!(with(BackupWriter::MIN_MEMORY, 1), BackupError::Malformed);
        assert_eq!(
            with(BackupWriter::MIN_MEMORY - 1, 4),
            BackupError::Malformed
        );
        assert_eq!(with(u32::MAX, 1), BackupError::TooLarge);
        assert_eq!(with(262_144, 5), BackupError::TooLarge);

        let create = |passphrase: &[u8], memory| {
            let parameters = PasswordParameters::new(memory, 2, 1).unwrap();
            BackupWriter::create(&mut rng(), BackupSecret::Passphrase(passphrase), parameters).err()
        };
        assert_eq!(
            create(b"correct horse", 8_192),
            Some(BackupError::Malformed)
        );
        assert_eq!(create(b"seven b", 19_456), Some(BackupError::Malformed));
        assert_eq!(create(&[1; 1_025], 19_456), Some(BackupError::TooLarge));
    }
}
