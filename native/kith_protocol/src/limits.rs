//! Every limit of the engine, with its reason and what raising it would cost.
//!
//! The values that Signal's clients share are kept equal to theirs, so that whatever one of them
//! can still open, this engine can open too (interoperability notes: docs/protocol.md).

/// Largest plaintext of one message, in bytes: 1 MiB.
///
/// A bound on memory, not a rule of the protocol. Attachments travel beside messages, not in them. It holds for
/// what is sent; of what arrives [`MAX_MESSAGE_LEN`] is the bound, and a text may be some 8 KB longer.
pub const MAX_PLAINTEXT_LEN: usize = 1 << 20;

/// Largest message accepted for parsing, in bytes: a plaintext of [`MAX_PLAINTEXT_LEN`], its padding,
/// and 8 KiB for everything around it (a version 4 handshake takes 1.8 KB).
pub const MAX_MESSAGE_LEN: usize = MAX_PLAINTEXT_LEN + 16 + 8192;

/// How far ahead of a receiving chain a message may be: 25 000 messages.
///
/// The counter is read before the message authenticates, so this bounds the work a forger can cause:
/// one HMAC for each step, 4 to 5 ms for one session, and in version 4 three for each step of the second
/// chain, 10 ms more. Signal's own clients lift the bound for a session with
/// oneself; this engine never does.
pub const MAX_FORWARD_JUMP: u32 = 25_000;

/// Hashes one message may cost on all stored sessions together: 100 000, which is one message as far ahead as
/// can be, in its chain (one hash for each step) and in that of the post-quantum ratchet (three).
///
/// A message with an unknown ratchet key is tried on each session, the current one first, and each trial
/// walks the chains as far as the message's numbers say. With this bound a forger gets the work of one
/// forward jump, and not of 41. What it takes away: with 40 archived sessions a message more than 609 ahead
/// in a *new* chain of one of them may not open before that chain is known.
pub const MAX_HASHES_PER_MESSAGE: u32 = 4 * MAX_FORWARD_JUMP;

/// Skipped message keys kept for one receiving chain: 2 000. The oldest go first.
///
/// Each is 32 bytes and can open one message that was sent but has not arrived; an attacker who steals
/// the state can open those messages too. A message whose key was evicted can never be opened.
pub const MAX_SKIPPED_KEYS_PER_CHAIN: u32 = 2_000;

/// Skipped message keys kept for one session, over all its receiving chains: 4 000. The keys of the
/// oldest chain go first.
pub const MAX_SKIPPED_KEYS_PER_SESSION: u32 = 4_000;

/// Receiving chains kept for one session: 5. A message of an older chain no longer opens.
pub const MAX_RECEIVING_CHAINS: usize = 5;

/// Archived sessions kept beside the current one for one peer device: 40.
///
/// A message of unknown origin is tried on all of them, one Diffie-Hellman each.
pub const MAX_ARCHIVED_SESSIONS: usize = 40;

/// How long an initiator may go on sending without having heard from the responder: 30 days, in
/// seconds. After that the responder has probably lost the prekeys, and a fresh bundle is needed.
pub const MAX_UNACKNOWLEDGED_SESSION_AGE: u64 = 30 * 24 * 60 * 60;

/// Bytes of the truncated MAC at the end of a [`SignalMessage`](crate::SignalMessage): 8.
pub const MESSAGE_MAC_LEN: usize = 8;

/// Iterations of the hash behind a safety number, as Signal's apps use it: 5 200.
pub const FINGERPRINT_ITERATIONS: u32 = 5_200;

/// Most iterations accepted for a safety number: 1 000 000.
pub const MAX_FINGERPRINT_ITERATIONS: u32 = 1_000_000;

/// Device ids run from 1 to 127.
pub const MAX_DEVICE_ID: u8 = 127;
