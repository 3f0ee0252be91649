//! Passwords under Argon2id (RFC 9106).
//!
//! [`PasswordHash`] is what an application stores of a password. [`argon2id`] below it is also what a key-encryption key
//! will be derived with where an account is locked under a password: with a salt of its own, so that neither output says
//! anything about the other.

use std::fmt;

use argon2::{Algorithm, Argon2, Block, Params, Version};
use base64ct::{Base64Unpadded, Encoding};
use rand_core::TryCryptoRng;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

use crate::error::PasswordError;

/// What Argon2id costs: RFC 9106, section 3.1.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PasswordParameters {
    memory: u32,
    passes: u32,
    parallelism: u32,
}

impl PasswordParameters {
    /// The most memory, in KiB. As many hashes run at once as their caller allows, and each takes its own.
    pub const MAX_MEMORY: u32 = 256 * 1_024;

    /// The most memory times passes, in KiB: about a second of one thread. Hashes are read from a database, and whoever
    /// writes there does not decide how long a login takes.
    pub const MAX_WORK: u32 = 1_024 * 1_024;

    /// The most lanes. They cost nothing here, where they are computed one after the other.
    pub const MAX_PARALLELISM: u32 = 64;

    /// Takes the memory size m in KiB, the number of passes t, and the degree of parallelism p.
    ///
    /// # Errors
    ///
    /// [`PasswordError::TooLarge`] for more than the limits, [`PasswordError::Malformed`] for what Argon2 does not take:
    /// a zero, or less than 8 KiB for each lane.
    pub fn new(memory: u32, passes: u32, parallelism: u32) -> Result<Self, PasswordError> {
        let work = u64::from(memory) * u64::from(passes);
        if memory > Self::MAX_MEMORY
            || work > u64::from(Self::MAX_WORK)
            || parallelism > Self::MAX_PARALLELISM
        {
            return Err(PasswordError::TooLarge);
        }
        // Also refuses no memory at all, and with it no work of any number of passes.
        if passes == 0 || parallelism == 0 || memory < 8 * parallelism {
            return Err(PasswordError::Malformed);
        }
        Ok(Self {
            memory,
            passes,
            parallelism,
        })
    }

    /// The memory size m, in KiB.
    #[must_use]
    pub const fn memory(&self) -> u32 {
        self.memory
    }

    /// The number of passes t.
    #[must_use]
    pub const fn passes(&self) -> u32 {
        self.passes
    }

    /// The degree of parallelism p.
    #[must_use]
    pub const fn parallelism(&self) -> u32 {
        self.parallelism
    }

    pub(crate) fn context(&self) -> Result<Argon2<'static>, PasswordError> {
        let params = Params::new(self.memory, self.passes, self.parallelism, None)
            .map_err(|_| PasswordError::Malformed)?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

/// Fills `output` with `Argon2id[parameters](password, salt)`.
///
/// The memory is erased when it has been used: its last blocks give the output away.
pub(crate) fn argon2id(
    context: &Argon2<'_>,
    password: &[u8],
    salt: &[u8],
    output: &mut [u8],
) -> Result<(), PasswordError> {
    #[cfg(test)]
    tests::COMPUTED.set(tests::COMPUTED.get() + 1);
    let mut blocks = blocks(context.params().block_count())?;
    context
        .hash_password_into_with_memory(password, salt, output, &mut **blocks)
        .map_err(|_| PasswordError::Malformed)
}

/// Fills `output` with what a password gives under a salt. The salt is of this use alone, so that the output says nothing of
/// a [`PasswordHash`] of the same password.
pub(crate) fn derive(
    parameters: PasswordParameters,
    password: &[u8],
    salt: &[u8],
    output: &mut [u8],
) -> Result<(), PasswordError> {
    PasswordHash::check(password)?;
    argon2id(&parameters.context()?, password, salt, output)
}

/// Memory for Argon2. A failed allocation would abort, and with it the program this is a library of.
fn blocks(count: usize) -> Result<Zeroizing<Box<[Block]>>, PasswordError> {
    let mut blocks = Vec::new();
    blocks
        .try_reserve_exact(count)
        .map_err(|_| PasswordError::OutOfMemory)?;
    blocks.resize(count, Block::new());
    Ok(Zeroizing::new(blocks.into_boxed_slice()))
}

/// The hash of a password, with its salt and what it cost.
///
/// Its text is the PHC string of the reference implementation, in that exact form: what has another order of parameters,
/// leading zeros or padding is not one.
///
/// ```text
/// $argon2id$v=19$m=65536,t=3,p=4$<salt>$<tag>     numbers in decimal, salt and tag in base64 without padding
/// ```
///
/// # Example
///
/// ```
/// use kith_vault::{PasswordHash, PasswordParameters};
/// # use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng};
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let mut rng = ChaCha20Rng::from_seed([7; 32]);
/// let parameters = PasswordParameters::new(65_536, 3, 4)?;
/// let stored = PasswordHash::create(&mut rng, parameters, b"dinner at seven")?.to_phc();
///
/// let hash = PasswordHash::from_phc(stored.as_bytes())?;
/// assert!(hash.verify(b"dinner at seven")?);
/// assert!(!hash.verify(b"dinner at eight")?);
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct PasswordHash {
    parameters: PasswordParameters,
    salt: Box<[u8]>,
    tag: Box<[u8]>,
}

impl PasswordHash {
    /// The most bytes of a password. Nobody types as many, and a longer one would have to be read before it costs anything.
    pub const MAX_PASSWORD_BYTES: usize = 1_024;

    /// Bytes of a salt that is drawn here: RFC 9106, section 3.1.
    pub const SALT_BYTES: usize = 16;

    /// Bytes of a tag that is made here.
    pub const TAG_BYTES: usize = 32;

    /// Draws a salt and hashes a password of 1 to [`Self::MAX_PASSWORD_BYTES`] bytes. It need not be text.
    ///
    /// # Errors
    ///
    /// [`PasswordError::Malformed`] for an empty password, [`PasswordError::TooLarge`] for one that is too long: none is
    /// cut. [`PasswordError::Random`] and [`PasswordError::OutOfMemory`] are the machine's.
    pub fn create<R: TryCryptoRng + ?Sized>(
        rng: &mut R,
        parameters: PasswordParameters,
        password: &[u8],
    ) -> Result<Self, PasswordError> {
        Self::check(password)?;
        let mut salt = [0; Self::SALT_BYTES];
        rng.try_fill_bytes(&mut salt)
            .map_err(|_| PasswordError::Random)?;
        let mut tag = [0; Self::TAG_BYTES];
        argon2id(&parameters.context()?, password, &salt, &mut tag)?;
        Ok(Self {
            parameters,
            salt: salt.into(),
            tag: tag.into(),
        })
    }

    fn check(password: &[u8]) -> Result<(), PasswordError> {
        if password.is_empty() {
            return Err(PasswordError::Malformed);
        }
        if password.len() > Self::MAX_PASSWORD_BYTES {
            return Err(PasswordError::TooLarge);
        }
        Ok(())
    }

    /// Whether this is the hash of the password.
    ///
    /// # Security
    ///
    /// The work is the same for every password, also for one that is empty or too long and so has no hash: what it cost
    /// says whether there is a hash, and must say no more than the hash of somebody else would. The tags are compared in
    /// constant time by type.
    ///
    /// # Errors
    ///
    /// [`PasswordError::OutOfMemory`].
    pub fn verify(&self, password: &[u8]) -> Result<bool, PasswordError> {
        let fits = (1..=Self::MAX_PASSWORD_BYTES).contains(&password.len());
        let tried = if fits { password } else { &[] };

        let mut tag = Zeroizing::new(vec![0; self.tag.len()]);
        argon2id(&self.parameters.context()?, tried, &self.salt, &mut tag)?;
        let same = tag.as_slice().ct_eq(&self.tag);
        Ok(fits & bool::from(same))
    }

    /// Reads a PHC string.
    ///
    /// # Errors
    ///
    /// [`PasswordError::Malformed`] for anything else, another algorithm or version among it, and for a salt or a tag of
    /// a size that is not accepted; [`PasswordError::TooLarge`] for more work than the limits.
    pub fn from_phc(text: &[u8]) -> Result<Self, PasswordError> {
        let (parameters, salt, tag) = parse_fields(text, PREFIX)?;
        Ok(Self {
            parameters,
            salt,
            tag,
        })
    }

    /// The text to store.
    #[must_use]
    pub fn to_phc(&self) -> String {
        print_fields(PREFIX, self.parameters, &self.salt, &self.tag)
    }

    /// What it cost.
    #[must_use]
    pub const fn parameters(&self) -> PasswordParameters {
        self.parameters
    }

    /// Whether salt and tag have the sizes of one that is made here.
    #[must_use]
    pub const fn has_own_sizes(&self) -> bool {
        self.salt.len() == Self::SALT_BYTES && self.tag.len() == Self::TAG_BYTES
    }
}

/// Whoever has salt and tag can try passwords.
impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            parameters,
            salt: _,
            tag: _,
        } = self;
        f.debug_struct("PasswordHash")
            .field("parameters", parameters)
            .finish_non_exhaustive()
    }
}

/// Algorithm and version: Argon2 1.3, which is 0x13.
const PREFIX: &str = "$argon2id$v=19$";

/// The least bytes of a salt, from RFC 9106, section 3.1.
const MIN_SALT_BYTES: usize = 8;

/// The least bytes of a tag. A shorter one would be met by too many passwords.
const MIN_TAG_BYTES: usize = 16;

/// The most bytes of a salt or a tag, as in the PHC format.
const MAX_FIELD_BYTES: usize = 64;

/// Base64 of that many bytes, without padding.
const MAX_FIELD_TEXT: usize = MAX_FIELD_BYTES.div_ceil(3) * 4;

/// The longest of all strings that are accepted: ten digits for each number, as 32 bits have.
const MAX_PHC_BYTES: usize =
    PREFIX.len() + "m=,t=,p=$$".len() + 3 * MAX_DIGITS + 2 * MAX_FIELD_TEXT;

const MAX_DIGITS: usize = 10;

type Fields<'a> = ([&'a str; 3], &'a str, &'a str);

type Parsed = (PasswordParameters, Box<[u8]>, Box<[u8]>);

/// What it costs, the salt, and what comes after it, of a text in this form.
pub(crate) fn parse_fields(text: &[u8], prefix: &str) -> Result<Parsed, PasswordError> {
    if text.len() > MAX_PHC_BYTES - PREFIX.len() + prefix.len() {
        return Err(PasswordError::Malformed);
    }
    let (parameters, salt, tag) = split(text, prefix).ok_or(PasswordError::Malformed)?;
    let [memory, passes, parallelism] = parameters;
    Ok((
        PasswordParameters::new(number(memory)?, number(passes)?, number(parallelism)?)?,
        bytes(salt, MIN_SALT_BYTES)?,
        bytes(tag, MIN_TAG_BYTES)?,
    ))
}

/// The text that [`parse_fields`] reads.
pub(crate) fn print_fields(
    prefix: &str,
    parameters: PasswordParameters,
    salt: &[u8],
    tag: &[u8],
) -> String {
    let PasswordParameters {
        memory,
        passes,
        parallelism,
    } = parameters;
    let salt = Base64Unpadded::encode_string(salt);
    let tag = Base64Unpadded::encode_string(tag);
    format!("{prefix}m={memory},t={passes},p={parallelism}${salt}${tag}")
}

/// The three numbers, the salt and the tag, as they stand there.
fn split<'a>(text: &'a [u8], prefix: &str) -> Option<Fields<'a>> {
    let text = str::from_utf8(text).ok()?.strip_prefix(prefix)?;
    let (parameters, rest) = text.split_once('$')?;
    let (salt, tag) = rest.split_once('$')?;
    let (memory, rest) = parameters.split_once(',')?;
    let (passes, parallelism) = rest.split_once(',')?;
    let numbers = [
        memory.strip_prefix("m=")?,
        passes.strip_prefix("t=")?,
        parallelism.strip_prefix("p=")?,
    ];
    Some((numbers, salt, tag))
}

/// A number in its one spelling.
fn number(digits: &str) -> Result<u32, PasswordError> {
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (digits == "0" || !digits.starts_with('0'));
    if digits.is_empty() || !canonical {
        return Err(PasswordError::Malformed);
    }
    digits.parse().map_err(|_| PasswordError::TooLarge)
}

fn bytes(text: &str, least: usize) -> Result<Box<[u8]>, PasswordError> {
    let bytes = Base64Unpadded::decode_vec(text).map_err(|_| PasswordError::Malformed)?;
    if !(least..=MAX_FIELD_BYTES).contains(&bytes.len()) {
        return Err(PasswordError::Malformed);
    }
    Ok(bytes.into())
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use argon2::ParamsBuilder;
    use rand_chacha::{
        ChaCha20Rng,
        rand_core::{Rng, SeedableRng},
    };

    use super::*;

    const SMALL: &str = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$AAAAAAAAAAAAAAAAAAAAAA";

    thread_local! {
        /// How often Argon2id was computed.
        pub(super) static COMPUTED: Cell<u32> = const { Cell::new(0) };
    }

    fn small() -> PasswordParameters {
        PasswordParameters::new(8, 1, 1).unwrap()
    }

    #[test]
    fn the_vector_of_rfc_9106_is_met() {
        // Section 5.3.
        let params = ParamsBuilder::new()
            .m_cost(32)
            .t_cost(3)
            .p_cost(4)
            .data([4; 12].as_slice().try_into().unwrap())
            .build()
            .unwrap();
        let context =
            Argon2::new_with_secret(&[3; 8], Algorithm::Argon2id, Version::V0x13, params).unwrap();
        let mut tag = [0; 32];
        argon2id(&context, &[1; 32], &[2; 16], &mut tag).unwrap();
        assert_eq!(
            hex::encode(tag),
            "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659"
        );
    }

    /// Made with Debian's program argon2 (0~20171227-0.3), the reference implementation:
    /// `printf %s PASSWORD | argon2 SALT -id -e -t T -k M -p P -l BYTES`. The first is also in its own tests.
    const OF_THE_REFERENCE: [(&[u8], &str); 6] = [
        (
            b"password",
            "$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc",
        ),
        (
            b"correct horse battery staple",
            "$argon2id$v=19$m=65536,t=3,p=4$MDEyMzQ1Njc4OWFiY2RlZg$77UfmnZYT23WpPeUKhovauWm5OxRQv9nTf1dJ+tF5EY",
        ),
        (
            "pässwört der Familie 家族".as_bytes(),
            "$argon2id$v=19$m=19456,t=2,p=1$MDEyMzQ1Njc4OWFiY2RlZg$uqwqpimBj7GokL4a4uwZH0hhf7RR4q6VFwGh1CAnzzM",
        ),
        (
            b"a",
            "$argon2id$v=19$m=8,t=1,p=1$c2FsdCBvZiBhIHNpemUgb2YgdGhpcnR5LW9uZSBvaw$hyw+Oq+3g4teTltqBCOTfw",
        ),
        (
            &[b'x'; 127],
            "$argon2id$v=19$m=1024,t=4,p=8$c29tZXNhbHQ$qZWwEtq2sdlZSfZuohHkMcI6r6gFa2qz34yGLIxY02Bhs15wrTdo8IrdICUNPC0lEWREIg8awn3ZrH1xMfLQGA",
        ),
        (
            b"\x00\xff\x80 not UTF-8 \n",
            "$argon2id$v=19$m=257,t=2,p=3$MDEyMzQ1Njc4OWFiY2RlZg$IhwZ3PunLE0hdDItK/tYT6nCKbEx3Qg/zcgmqZMKsc+q",
        ),
    ];

    #[test]
    fn hashes_of_the_reference_implementation_verify_and_are_written_as_it_writes_them() {
        for (password, text) in OF_THE_REFERENCE {
            let hash = PasswordHash::from_phc(text.as_bytes()).unwrap();
            assert!(hash.verify(password).unwrap(), "{text}");
            assert!(!hash.verify(&[password, b"!"].concat()).unwrap(), "{text}");
            assert_eq!(hash.to_phc(), text);
        }
    }

    #[test]
    fn one_bit_of_a_hash_makes_another_hash() {
        let (password, text) = OF_THE_REFERENCE[3];
        let hash = PasswordHash::from_phc(text.as_bytes()).unwrap();
        for bit in 0..8 * hash.tag.len() {
            let mut other = hash.clone();
            other.tag[bit / 8] ^= 1 << (bit % 8);
            assert!(!other.verify(password).unwrap(), "bit {bit} of the tag");
        }
        for bit in 0..8 * hash.salt.len() {
            let mut other = hash.clone();
            other.salt[bit / 8] ^= 1 << (bit % 8);
            assert!(!other.verify(password).unwrap(), "bit {bit} of the salt");
        }
    }

    #[test]
    fn a_password_has_1_to_1024_bytes_and_is_not_cut() {
        let mut rng = ChaCha20Rng::from_seed([1; 32]);
        let mut create = |password: &[u8]| PasswordHash::create(&mut rng, small(), password);
        assert_eq!(create(b"").unwrap_err(), PasswordError::Malformed);
        assert_eq!(create(&[7; 1_025]).unwrap_err(), PasswordError::TooLarge);

        let longest = create(&[7; 1_024]).unwrap();
        assert!(longest.verify(&[7; 1_024]).unwrap());
        for other in [&[7; 1_023][..], &[7; 1_025], &[7; 2_048], b""] {
            assert!(!longest.verify(other).unwrap(), "{} bytes", other.len());
        }
        assert!(create(b"7").unwrap().verify(b"7").unwrap());
    }

    #[test]
    fn a_password_that_has_no_hash_does_not_verify_with_the_hash_of_the_empty_one() {
        let mut tag = [0; 32];
        argon2id(&small().context().unwrap(), b"", b"somesalt", &mut tag).unwrap();
        let hash = PasswordHash {
            parameters: small(),
            salt: (*b"somesalt").into(),
            tag: tag.into(),
        };
        assert!(!hash.verify(b"").unwrap());
        assert!(!hash.verify(&[7; 1_025]).unwrap());
    }

    #[test]
    fn every_verification_is_the_same_work() {
        let (password, text) = OF_THE_REFERENCE[3];
        let hash = PasswordHash::from_phc(text.as_bytes()).unwrap();
        for tried in [password, b"b", b"", &[7; 1_024], &[7; 1_025], &[7; 100_000]] {
            let before = COMPUTED.get();
            assert_eq!(hash.verify(tried), Ok(tried == password));
            assert_eq!(COMPUTED.get(), before + 1, "{} bytes", tried.len());
        }
    }

    #[test]
    fn every_hash_has_a_salt_of_its_own() {
        let mut rng = ChaCha20Rng::from_seed([2; 32]);
        let mut create = || PasswordHash::create(&mut rng, small(), b"password").unwrap();
        let (first, second) = (create(), create());
        assert_ne!(first.salt, second.salt);
        assert_ne!(first.tag, second.tag);
        assert!(first.has_own_sizes());
        assert!(
            !PasswordHash::from_phc(SMALL.as_bytes())
                .unwrap()
                .has_own_sizes()
        );
    }

    #[test]
    fn parameters_have_limits() {
        let new = PasswordParameters::new;
        for (memory, passes, parallelism) in
            [(8, 1, 1), (512, 1, 64), (262_144, 4, 1), (8, 131_072, 1)]
        {
            assert!(new(memory, passes, parallelism).is_ok());
        }
        for (memory, passes, parallelism) in [
            (262_145, 1, 1),
            (262_144, 5, 1),
            (8, 131_073, 1),
            (u32::MAX, u32::MAX, u32::MAX),
            (8, u32::MAX, 1),
            (65_536, 1, 65),
            (0, 1, u32::MAX),
        ] {
            assert_eq!(
                new(memory, passes, parallelism),
                Err(PasswordError::TooLarge)
            );
        }
        for (memory, passes, parallelism) in [
            (7, 1, 1),
            (0, u32::MAX, 1),
            (31, 1, 4),
            (8, 0, 1),
            (8, 1, 0),
        ] {
            assert_eq!(
                new(memory, passes, parallelism),
                Err(PasswordError::Malformed)
            );
        }
    }

    fn read(text: &str) -> Result<PasswordParameters, PasswordError> {
        PasswordHash::from_phc(text.as_bytes()).map(|hash| hash.parameters())
    }

    #[test]
    fn a_hash_that_asks_for_too_much_is_refused_before_any_work() {
        for parameters in [
            "m=4194304,t=1,p=1",
            "m=65536,t=4294967295,p=1",
            "m=65536,t=99999999999,p=1",
            "m=65536,t=3,p=16777215",
            "m=99999999999999999999,t=1,p=1",
        ] {
            let text = SMALL.replace("m=8,t=1,p=1", parameters);
            assert_eq!(read(&text), Err(PasswordError::TooLarge), "{parameters}");
        }
    }

    #[test]
    fn only_the_exact_form_is_a_hash() {
        assert_eq!(read(SMALL), Ok(small()));
        let long = "A".repeat(88);
        for (from, to) in [
            ("argon2id", "argon2i"),
            ("argon2id", "argon2d"),
            ("argon2id", "Argon2id"),
            ("$argon2id", "argon2id"),
            ("v=19", "v=16"),
            ("v=19", "v=20"),
            ("$v=19", ""),
            ("m=8,t=1,p=1", "t=1,m=8,p=1"),
            ("m=8,t=1,p=1", "m=8,t=1"),
            ("m=8,t=1,p=1", "m=8,t=1,p=1,keyid=AAAA"),
            ("m=8,t=1,p=1", "m=8,t=1,p=1,p=1"),
            ("m=8", "m=08"),
            ("m=8", "m=+8"),
            ("m=8", "m= 8"),
            ("m=8", "m=8 "),
            ("m=8", "m="),
            ("m=8", "m=-8"),
            ("m=8", "m=٨"),
            ("m=8", "m=7"),
            ("t=1", "t=0"),
            ("p=1", "p=0"),
            ("p=1", "p=2"),
            ("c29tZXNhbHQ", ""),
            // Seven bytes, padding, bits beyond the last byte, the other alphabet, and 66 bytes.
            ("c29tZXNhbHQ", "c29tZXNhbA"),
            ("c29tZXNhbHQ", "c29tZXNhbHQ="),
            ("c29tZXNhbHQ", "c29tZXNhbHR"),
            ("c29tZXNhbHQ", "c29tZXNhb_Q"),
            ("c29tZXNhbHQ", &long),
            // Fifteen bytes, none, and more of them.
            ("AAAAAAAAAAAAAAAAAAAAAA", "AAAAAAAAAAAAAAAAAAAA"),
            ("$AAAAAAAAAAAAAAAAAAAAAA", ""),
            ("$AAAAAAAAAAAAAAAAAAAAAA", "$"),
            ("$AAAAAAAAAAAAAAAAAAAAAA", "$AAAAAAAAAAAAAAAAAAAAAA$"),
            ("$AAAAAAAAAAAAAAAAAAAAAA", "$AAAAAAAAAAAAAAAAAAAAAA\n"),
            ("AAAAAAAAAAAAAAAAAAAAAA", &long),
        ] {
            let text = SMALL.replacen(from, to, 1);
            assert_ne!(text, SMALL);
            assert_eq!(read(&text), Err(PasswordError::Malformed), "{text}");
        }
        for text in [
            "",
            "$",
            "password",
            "$2b$12$abcdefghijklmnopqrstuv",
            &"$".repeat(1_000_000),
        ] {
            assert_eq!(read(text), Err(PasswordError::Malformed));
        }
        assert_eq!(
            PasswordHash::from_phc(b"$argon2id$v=19$m=8,t=1,p=1$\xff$\xff").unwrap_err(),
            PasswordError::Malformed
        );
    }

    #[test]
    fn whatever_is_read_is_within_the_limits_and_is_written_as_it_was_read() {
        let mut rng = ChaCha20Rng::from_seed([3; 32]);
        let mut below = |bound: usize| usize::try_from(rng.next_u64() % 1_000_003).unwrap() % bound;
        let alphabet = b"$=,mtpv0123456789argon2idAZaz+/\xff\0";
        let mut accepted = 0;

        for round in 0..200_000 {
            let (_, seed) = OF_THE_REFERENCE[round % OF_THE_REFERENCE.len()];
            let mut text = seed.as_bytes().to_vec();
            for _ in 0..=below(3) {
                let at = below(text.len().max(1));
                match below(5) {
                    0 => text[at] = alphabet[below(alphabet.len())],
                    1 => text.insert(at, alphabet[below(alphabet.len())]),
                    2 if text.len() > 1 => drop(text.remove(at)),
                    3 => text.truncate(at.max(1)),
                    _ => text.extend_from_within(at..),
                }
            }

            match PasswordHash::from_phc(&text) {
                Ok(hash) => {
                    accepted += 1;
                    assert_eq!(hash.to_phc().as_bytes(), text);
                    let PasswordParameters {
                        memory,
                        passes,
                        parallelism,
                    } = hash.parameters();
                    assert!(PasswordParameters::new(memory, passes, parallelism).is_ok());
                    assert!((8..=64).contains(&hash.salt.len()));
                    assert!((16..=64).contains(&hash.tag.len()));
                }
                Err(PasswordError::Malformed | PasswordError::TooLarge) => {}
                Err(error) => panic!("{error:?}"),
            }
        }
        assert!((1_000..190_000).contains(&accepted), "{accepted}");
    }

    #[test]
    fn debug_shows_what_it_cost_and_neither_salt_nor_tag() {
        let hash = PasswordHash::from_phc(SMALL.as_bytes()).unwrap();
        assert_eq!(
            format!("{hash:?}"),
            "PasswordHash { parameters: PasswordParameters { memory: 8, passes: 1, parallelism: 1 }, .. }"
        );
    }
}
