use std::{
    collections::BTreeMap,
    env, fmt,
    fs::{File, Metadata},
    io::{self, Read},
    os::unix::{ffi::OsStringExt, fs::MetadataExt},
    path::{Path, PathBuf},
    sync::Arc,
};

use base64ct::{Base64, Base64Unpadded, Encoding};
use getrandom::SysRng;
use parking_lot::Mutex;
use rand_core::TryRng;
use rustix::{
    fs::{Mode, OFlags},
    process::geteuid,
};
use zeroize::Zeroizing;

use crate::{
    aead_key::KEY_BYTES, error::KeyDefect, key_id::KeyId, passphrase::PassphraseParameters,
    service::KeyService,
};

/// Where the bytes of a key-encryption key come from.
///
/// The text of [`Self::Env`] and [`Self::File`] is standard base64 of 32 bytes, padded or not, with white space around
/// it allowed.
pub enum Source {
    /// An environment variable, by its name, as [`Secret::Env`].
    Env(String),
    /// A file, by its path, as [`Secret::File`].
    File(PathBuf),
    /// A passphrase, from which Argon2id derives the key, with the text of [`PassphraseParameters`].
    Passphrase(Secret, String),
    /// A key that is drawn when it is first asked for and lives as long as the process, whatever vaults come and go. All
    /// that it wrapped is lost with it: for development.
    Development,
    /// A key-encryption key that a key service has, and the local key that wraps new data keys while the service is away,
    /// if one shall.
    Service(Arc<dyn KeyService>, Option<KeyId>),
    /// The 32 bytes themselves, for tests: a key that reaches this crate as an argument has been in somebody's memory.
    Key(Zeroizing<Vec<u8>>),
}

/// Where a text comes from that nobody else may read.
#[derive(Clone)]
pub enum Secret {
    /// An environment variable, by its name.
    ///
    /// The variable stays in the process's environment. Prefer a file.
    Env(String),
    /// A file, by its path.
    ///
    /// It is refused unless it is a regular file, owned by root or by the user who runs this process, with a mode that
    /// gives group and others nothing. A symbolic link is followed and what it leads to is judged.
    File(PathBuf),
}

impl Secret {
    pub(crate) fn read(&self) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
        match self {
            Self::Env(name) => {
                let text = env::var_os(name).ok_or(KeyDefect::NotSet)?;
                Ok(Zeroizing::new(text.into_vec()))
            }
            Self::File(path) => read_strict_file(path, MAX_FILE_BYTES),
        }
    }
}

/// The bytes of a file that is refused as that of [`Secret::File`] is, or has more than `limit`. For the private key of a
/// client of a key service.
///
/// # Errors
///
/// [`KeyDefect`].
pub fn read_secret_file(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
    read_strict_file(path, limit)
}

/// What a source leads to.
pub(crate) enum Loaded {
    /// The bytes of the key. Those of [`Source::Key`] may have any length.
    Key(Zeroizing<Vec<u8>>),
    Service(Arc<dyn KeyService>, Option<KeyId>),
}

impl Source {
    /// The bytes of a key that a service has for itself, or of a field.
    pub(crate) fn load(&self) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
        match self {
            Self::Env(name) => decode(&Secret::Env(name.clone()).read()?),
            Self::File(path) => decode(&Secret::File(path.clone()).read()?),
            Self::Key(bytes) => Ok(bytes.clone()),
            Self::Passphrase(secret, parameters) => {
                PassphraseParameters::from_text(parameters)?.key(secret)
            }
            Self::Development | Self::Service(..) => Err(KeyDefect::NoBytes),
        }
    }

    /// What a key-encryption key is made of.
    pub(crate) fn open(&self, id: &KeyId) -> Result<Loaded, KeyDefect> {
        match self {
            Self::Development => development_key(id).map(Loaded::Key),
            Self::Service(service, fallback) => {
                Ok(Loaded::Service(Arc::clone(service), fallback.clone()))
            }
            source => source.load().map(Loaded::Key),
        }
    }
}

/// Drawn once for each id. A supervisor that starts an instance anew does not lose what the one before has wrapped.
fn development_key(id: &KeyId) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
    static DRAWN: Mutex<BTreeMap<KeyId, Zeroizing<Vec<u8>>>> = Mutex::new(BTreeMap::new());
    let mut drawn = DRAWN.lock();
    if let Some(key) = drawn.get(id) {
        return Ok(key.clone());
    }
    let mut key = Zeroizing::new(vec![0; KEY_BYTES]);
    SysRng
        .try_fill_bytes(&mut key)
        .map_err(|_| KeyDefect::Random)?;
    drawn.insert(id.clone(), key.clone());
    Ok(key)
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

/// Names the source and never its value, not even where a key was given in place of a name.
impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) if reads_as_key(name.as_bytes()) => {
                f.write_str("an environment variable whose name reads as a key and is not shown")
            }
            Self::Env(name) => write!(f, "environment variable {}", name.escape_debug()),
            Self::File(path) if reads_as_key(path.as_os_str().as_encoded_bytes()) => {
                f.write_str("a file whose path reads as a key and is not shown")
            }
            Self::File(path) => write!(f, "file {}", path.to_string_lossy().escape_debug()),
            Self::Passphrase(Secret::Env(name), _) => {
                write!(f, "a passphrase in {}", Self::Env(name.clone()))
            }
            Self::Passphrase(Secret::File(path), _) => {
                write!(f, "a passphrase in {}", Self::File(path.clone()))
            }
            Self::Development => f.write_str("a key for development"),
            Self::Service(..) => f.write_str("a key service"),
            Self::Key(_) => f.write_str("bytes given directly"),
        }
    }
}

/// Whether a text, given where a name is expected, is base64 of a key.
pub(crate) fn reads_as_key(text: &[u8]) -> bool {
    (KEY_TEXT_BYTES - 1..=KEY_TEXT_BYTES).contains(&text.trim_ascii().len()) && decode(text).is_ok()
}

/// Decodes the text of a key, in constant time for texts of the same length.
fn decode(text: &[u8]) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
    let text = text.trim_ascii();
    if text.len() > MAX_TEXT_BYTES {
        return Err(KeyDefect::TooLong {
            limit: MAX_TEXT_BYTES,
        });
    }

    let mut buffer = Zeroizing::new(vec![0; MAX_TEXT_BYTES]);
    let decoded = if text.ends_with(b"=") {
        Base64::decode(text, &mut buffer)
    } else {
        Base64Unpadded::decode(text, &mut buffer)
    };
    let length = decoded.map_err(|_| KeyDefect::Base64)?.len();
    if length != KEY_BYTES {
        return Err(KeyDefect::Length { bytes: length });
    }
    buffer.truncate(length);
    Ok(buffer)
}

/// Reads a file after judging it. What is judged is the opened file, so that it cannot be exchanged in between.
fn read_strict_file(path: &Path, limit: usize) -> Result<Zeroizing<Vec<u8>>, KeyDefect> {
    let unreadable = |error: io::Error| KeyDefect::Unreadable {
        error: error.to_string(),
    };

    // Opening a pipe without NONBLOCK would wait for its writer.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|error| unreadable(error.into()))?;
    let mut file = File::from(opened);
    judge(
        &Judged::from(&file.metadata().map_err(unreadable)?),
        geteuid().as_raw(),
    )?;

    // One buffer of full size: a vector that grows would leave the text in freed memory.
    let mut buffer = Zeroizing::new(vec![0; limit + 1]);
    let mut filled = 0;
    while let Some(free @ [_, ..]) = buffer.get_mut(filled..) {
        match file.read(free) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(unreadable(error)),
        }
    }
    if filled > limit {
        return Err(KeyDefect::TooLong { limit });
    }
    buffer.truncate(filled);
    Ok(buffer)
}

/// What of a file's metadata decides.
struct Judged {
    is_regular: bool,
    owner: u32,
    mode: u32,
}

impl From<&Metadata> for Judged {
    fn from(metadata: &Metadata) -> Self {
        Self {
            is_regular: metadata.is_file(),
            owner: metadata.uid(),
            mode: metadata.mode() & 0o7777,
        }
    }
}

fn judge(file: &Judged, user: u32) -> Result<(), KeyDefect> {
    if !file.is_regular {
        return Err(KeyDefect::FileKind);
    }
    if file.owner != user && file.owner != ROOT {
        return Err(KeyDefect::FileOwner {
            owner: file.owner,
            user,
        });
    }
    if file.mode & GROUP_AND_OTHERS != 0 {
        return Err(KeyDefect::FileMode { mode: file.mode });
    }
    Ok(())
}

/// The length of a key in padded base64.
const KEY_TEXT_BYTES: usize = 44;

/// The most text that is read as a key. It is more than a key has; the rest is room to say how long a wrong one is.
const MAX_TEXT_BYTES: usize = 1_024;

/// The most that is read of a file: the text with white space around it.
const MAX_FILE_BYTES: usize = MAX_TEXT_BYTES;

/// The permission bits that must not be set.
const GROUP_AND_OTHERS: u32 = 0o077;

/// Root reads every file anyhow, so that a file of root is no weaker than one's own.
const ROOT: u32 = 0;

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    #[test]
    fn base64_is_taken_padded_or_not_with_white_space_around() {
        let expected: Vec<u8> = (0..32).collect();
        for text in [KEY, KEY.trim_end_matches('='), &format!(" \t{KEY}\r\n\n")] {
            assert_eq!(decode(text.as_bytes()).unwrap().as_slice(), expected);
        }
    }

    #[test]
    fn text_that_is_not_base64_of_32_bytes_is_refused() {
        let url_safe = KEY.replace('A', "_");
        let hexadecimal = "00".repeat(32);
        let cases: [(&str, KeyDefect); 9] = [
            ("", KeyDefect::Length { bytes: 0 }),
            ("AAAA", KeyDefect::Length { bytes: 3 }),
            (&hexadecimal, KeyDefect::Length { bytes: 48 }),
            (&url_safe, KeyDefect::Base64),
            (&format!("{KEY}="), KeyDefect::Base64),
            (
                &format!("{}\n{}", &KEY[..20], &KEY[20..]),
                KeyDefect::Base64,
            ),
            // The last character carries bits beyond the key.
            (&KEY.replace("8=", "9="), KeyDefect::Base64),
            ("schlüssel", KeyDefect::Base64),
            (&"A".repeat(1_025), KeyDefect::TooLong { limit: 1_024 }),
        ];
        for (text, defect) in cases {
            assert_eq!(decode(text.as_bytes()).unwrap_err(), defect, "{text}");
        }
    }

    #[test]
    fn a_file_is_judged_by_kind_owner_and_mode() {
        let judged = |is_regular, owner, mode| {
            judge(
                &Judged {
                    is_regular,
                    owner,
                    mode,
                },
                1_000,
            )
        };

        for (owner, mode) in [(1_000, 0o600), (1_000, 0o400), (0, 0o600), (0, 0o700)] {
            assert_eq!(judged(true, owner, mode), Ok(()));
        }
        assert_eq!(judged(false, 1_000, 0o600), Err(KeyDefect::FileKind));
        assert_eq!(
            judged(true, 1_001, 0o600),
            Err(KeyDefect::FileOwner {
                owner: 1_001,
                user: 1_000
            })
        );
        for bit in [0o001, 0o002, 0o004, 0o010, 0o020, 0o040] {
            assert_eq!(
                judged(true, 1_000, 0o600 | bit),
                Err(KeyDefect::FileMode { mode: 0o600 | bit })
            );
        }
    }

    #[test]
    fn debug_and_display_name_the_source_and_no_value() {
        let cases = [
            (
                Source::Env("KITH_KEY".into()),
                "environment variable KITH_KEY",
            ),
            (
                Source::Env(KEY.into()),
                "an environment variable whose name reads as a key and is not shown",
            ),
            (Source::File("/etc/kith/key".into()), "file /etc/kith/key"),
            (
                Source::File(KEY.into()),
                "a file whose path reads as a key and is not shown",
            ),
            (
                Source::Key(Zeroizing::new(vec![0x42; 32])),
                "bytes given directly",
            ),
        ];
        for (source, words) in cases {
            assert_eq!(source.to_string(), words);
            assert_eq!(format!("{source:?}"), format!("Source({words})"));
        }
    }
}
