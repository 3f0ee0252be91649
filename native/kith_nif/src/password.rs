//! Passwords of the application's own accounts. They are borrowed from Erlang and never copied here.

use getrandom::SysRng;
use kith_vault::{PasswordError, PasswordHash, PasswordParameters};
use rustler::{Binary, Env, Term};

use crate::reason::Reason;
use crate::seam;
use crate::vault::Bytes;

/// Memory in KiB, passes, parallelism.
pub(crate) type ParametersTerm = (u32, u32, u32);

impl From<PasswordError> for Reason {
    fn from(error: PasswordError) -> Self {
        match error {
            PasswordError::Malformed => Self::Malformed,
            PasswordError::TooLarge => Self::TooLarge,
            PasswordError::OutOfMemory => Self::Busy,
            // A machine without random numbers is broken, as a program that panics is.
            PasswordError::Random => Self::Panic,
        }
    }
}

/// `{:ok, PHC string}`
#[rustler::nif(schedule = "DirtyCpu")]
fn password_hash<'a>(
    env: Env<'a>,
    password: Binary<'a>,
    (memory, passes, parallelism): ParametersTerm,
) -> Term<'a> {
    seam::call(env, "password_hash", || {
        let parameters = PasswordParameters::new(memory, passes, parallelism)?;
        let hash = PasswordHash::create(&mut SysRng, parameters, &password)?;
        Ok::<_, Reason>(Bytes(hash.to_phc()))
    })
}

/// `{:ok, boolean}`
#[rustler::nif(schedule = "DirtyCpu")]
fn password_verify<'a>(env: Env<'a>, password: Binary<'a>, hash: Binary<'a>) -> Term<'a> {
    seam::call(env, "password_verify", || {
        Ok::<_, Reason>(PasswordHash::from_phc(&hash)?.verify(&password)?)
    })
}

/// `{:ok, {parameters, whether salt and tag have the sizes of new ones}}`
///
/// On a normal scheduler: it looks at less than 300 bytes, whatever it is given.
#[rustler::nif]
fn password_inspect<'a>(env: Env<'a>, hash: Binary<'a>) -> Term<'a> {
    seam::call(env, "password_inspect", || {
        let hash = PasswordHash::from_phc(&hash)?;
        let parameters = hash.parameters();
        let costs: ParametersTerm = (
            parameters.memory(),
            parameters.passes(),
            parameters.parallelism(),
        );
        Ok::<_, Reason>((costs, hash.has_own_sizes()))
    })
}
