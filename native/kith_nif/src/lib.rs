//! The only crate that knows Erlang: it decodes terms, calls the protocol, the vault and the
//! database, and encodes what they answer. It decides nothing.
//!
//! One file per noun. Every function runs inside [`seam`], which turns a panic into an answer.

mod atoms;
mod backup;
mod conversation;
mod device;
mod field;
mod import;
mod kms;
mod lookup;
mod password;
mod reason;
mod recovery_key;
mod safety_number;
mod seam;
mod service_key;
mod session;
mod sqlite;
mod terms;
mod thread;
mod vault;

use rustler::{Env, Term};

/// A panic in a library that aborts would take the whole VM with it, so such a library refuses to
/// load.
fn load(_env: Env<'_>, _load_info: Term<'_>) -> bool {
    if cfg!(panic = "unwind") {
        seam::quiet_panics();
        true
    } else {
        false
    }
}

#[expect(
    clippy::mem_forget,
    reason = "the table of functions lives as long as the library, so the macro leaks it"
)]
mod table {
    rustler::init!("Elixir.Kith.Native", load = super::load);
}
