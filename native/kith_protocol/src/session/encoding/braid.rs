//! The post-quantum ratchet in the stored form of a session: what moves with every message, and what rests.

use super::Input;
use crate::kyber::{KYBER_CIPHERTEXT_LEN, KyberCiphertext};
use crate::limits::MAX_SKIPPED_KEYS_PER_CHAIN;
use crate::secret::SecretBytes;
use crate::session::StateError;
use crate::session::state::PendingKyber;
use crate::spqr::Spqr;
use crate::spqr::authenticator::Authenticator;
use crate::spqr::braid::{
    Braid, CT2_AND_MAC_LEN, Ct1Acknowledged, Ct1Received, Ct1Sampled, Ct2Sampled, EK_CHUNKS,
    EkReceivedCt1Sampled, EkSentCt1Received, HEADER_AND_MAC_LEN, HeaderReceived, HeaderSent,
    KeysSampled, KeysUnsampled, NoHeaderReceived, Turn,
};
use crate::spqr::chain::{Epoch, Half, KeyChain, MAX_EPOCHS, SendingHalf, Side};
use crate::spqr::decoder::{CHUNKS_PER_PAGE, Decoder};
use crate::spqr::erasure::CHUNK_LEN;
use crate::spqr::kem::{
    CT1_LEN, Ct1, DK_LEN, DecapsulationKey, EK_LEN, ENCAPSULATION_STATE_LEN, EncapsulationKey,
    EncapsulationState, HEADER_LEN, Header,
};
use crate::spqr::message::IndexedChunk;

/// The format of a braid.
pub(super) const FORMAT: u8 = 1;

const EPOCH_LEN: usize = 1 + 36 + 36 + 2;

/// Most bytes of the moving part.
pub(super) const MAX_MOVING_LEN: usize =
    8 + 8 + 1 + MAX_EPOCHS * EPOCH_LEN + 2 + 2 + EK_CHUNKS * 2 + CHUNKS_PER_PAGE * CHUNK_LEN;

/// Most bytes of a braid.
pub(super) const MAX_LEN: usize = 21
    + 104
    + 1
    + 4
    + KYBER_CIPHERTEXT_LEN
    + 32
    + 1
    + 3 * 32
    + 8
    + 1
    + ENCAPSULATION_STATE_LEN
    + EK_LEN
    + CT1_LEN;

/// Bits of the flags byte of a braid.
const WITH_KYBER: u8 = 1;
const WITH_AUTH_KEY: u8 = 2;
const RESPONDER: u8 = 4;

/// The key chain without its root, and how far the chunks are.
pub(super) fn put_moving(out: &mut Vec<u8>, spqr: &Spqr) {
    let KeyChain {
        side: _,
        root: _,
        send_epoch,
        current_epoch,
        epochs,
    } = &spqr.chain;
    out.extend_from_slice(&send_epoch.to_be_bytes());
    out.extend_from_slice(&current_epoch.to_be_bytes());
    // At most MAX_EPOCHS.
    out.push(u8::try_from(epochs.len()).unwrap_or(u8::MAX));
    for Epoch {
        sending,
        receiving,
        kept,
    } in epochs
    {
        match sending {
            SendingHalf::Closed { index } => {
                out.push(0);
                out.extend_from_slice(&index.to_be_bytes());
            }
            SendingHalf::Open(half) => {
                out.push(1);
                put_half(out, half);
            }
        }
        put_half(out, receiving);
        // At most MAX_SKIPPED_KEYS_PER_CHAIN.
        out.extend_from_slice(&u16::try_from(*kept).unwrap_or(u16::MAX).to_be_bytes());
    }
    if let Some(next) = spqr.braid.next_chunk() {
        out.extend_from_slice(&next.to_be_bytes());
    }
    if let Some((decoder, _)) = spqr.braid.decoder() {
        let Decoder { held, loose } = decoder;
        // Fewer than EK_CHUNKS, and fewer than CHUNKS_PER_PAGE.
        out.push(u8::try_from(held.len()).unwrap_or(u8::MAX));
        out.push(u8::try_from(loose.len()).unwrap_or(u8::MAX));
        for index in held {
            out.extend_from_slice(&index.to_be_bytes());
        }
        for chunk in loose {
            out.extend_from_slice(&chunk.data);
        }
    }
}

fn put_half(out: &mut Vec<u8>, half: &Half) {
    out.extend_from_slice(&half.index.to_be_bytes());
    out.extend_from_slice(half.key.as_bytes());
}

/// What changes only with the state of the braid.
pub(super) fn put_resting(out: &mut Vec<u8>, spqr: &Spqr, kyber: Option<&PendingKyber>) {
    let Spqr {
        chain,
        braid,
        auth_key,
    } = spqr;
    let flag = |set, flag| if set { flag } else { 0 };
    out.push(
        flag(kyber.is_some(), WITH_KYBER)
            | flag(auth_key.is_some(), WITH_AUTH_KEY)
            | flag(chain.side == Side::Responder, RESPONDER),
    );
    if let Some(PendingKyber { id, ciphertext }) = kyber {
        out.extend_from_slice(&id.to_be_bytes());
        out.extend_from_slice(&ciphertext.to_bytes());
    }
    if let Some(auth_key) = auth_key {
        out.extend_from_slice(auth_key.as_bytes());
    }
    out.extend_from_slice(chain.root.as_bytes());
    let Turn {
        epoch,
        authenticator,
    } = braid.turn();
    out.extend_from_slice(&epoch.to_be_bytes());
    out.extend_from_slice(authenticator.root().as_bytes());
    out.extend_from_slice(authenticator.mac_key().as_bytes());
    out.push(tag(braid));
    let parts: &[&[u8]] = match braid {
        Braid::KeysUnsampled(_) | Braid::NoHeaderReceived(_) => &[],
        Braid::KeysSampled(state) => &[state.header_and_mac.as_slice(), state.dk.as_bytes()],
        Braid::HeaderSent(state) => &[state.dk.as_bytes()],
        Braid::Ct1Received(state) => &[state.ct1.as_bytes(), state.dk.as_bytes()],
        Braid::EkSentCt1Received(state) => &[state.ct1.as_bytes(), state.dk.as_bytes()],
        Braid::HeaderReceived(state) => &[state.header.as_bytes()],
        Braid::Ct1Sampled(state) => &[
            state.header.as_bytes(),
            state.state.as_bytes(),
            state.ct1.as_bytes(),
        ],
        Braid::EkReceivedCt1Sampled(state) => &[
            state.state.as_bytes(),
            state.ek.as_bytes(),
            state.ct1.as_bytes(),
        ],
        Braid::Ct1Acknowledged(state) => &[
            state.header.as_bytes(),
            state.state.as_bytes(),
            state.ct1.as_bytes(),
        ],
        Braid::Ct2Sampled(state) => &[state.ct2_and_mac.as_slice()],
    };
    for part in parts {
        out.extend_from_slice(part);
    }
}

/// The number of a state: that of its field in Signal's stored form.
const fn tag(braid: &Braid) -> u8 {
    match braid {
        Braid::KeysUnsampled(_) => 1,
        Braid::KeysSampled(_) => 2,
        Braid::HeaderSent(_) => 3,
        Braid::Ct1Received(_) => 4,
        Braid::EkSentCt1Received(_) => 5,
        Braid::NoHeaderReceived(_) => 6,
        Braid::HeaderReceived(_) => 7,
        Braid::Ct1Sampled(_) => 8,
        Braid::EkReceivedCt1Sampled(_) => 9,
        Braid::Ct1Acknowledged(_) => 10,
        Braid::Ct2Sampled(_) => 11,
    }
}

/// The inverse of [`put_moving`] and [`put_resting`].
pub(super) fn take(
    moving: &mut Input<'_>,
    resting: &mut Input<'_>,
) -> Result<(Spqr, Option<PendingKyber>), StateError> {
    let [flags] = *resting.take()?;
    if flags & !(WITH_KYBER | WITH_AUTH_KEY | RESPONDER) != 0 {
        return Err(StateError::Damaged);
    }
    let kyber = if flags & WITH_KYBER != 0 {
        Some(PendingKyber {
            id: resting.number()?,
            ciphertext: KyberCiphertext::from_bytes(resting.slice(KYBER_CIPHERTEXT_LEN)?)
                .map_err(|_| StateError::Damaged)?,
        })
    } else {
        None
    };
    let auth_key = if flags & WITH_AUTH_KEY != 0 {
        Some(SecretBytes::copy_of(resting.take()?))
    } else {
        None
    };
    let side = if flags & RESPONDER != 0 {
        Side::Responder
    } else {
        Side::Initiator
    };
    let root = SecretBytes::copy_of(resting.take()?);
    let turn = Turn {
        epoch: resting.long()?,
        authenticator: Authenticator::from_parts(
            SecretBytes::copy_of(resting.take()?),
            SecretBytes::copy_of(resting.take()?),
        ),
    };
    let chain = take_chain(moving, side, root)?;
    let braid = take_braid(moving, resting, turn)?;
    let spqr = Spqr {
        chain,
        braid,
        auth_key,
    };
    if spqr.is_consistent() {
        Ok((spqr, kyber))
    } else {
        Err(StateError::Damaged)
    }
}

fn take_chain(
    moving: &mut Input<'_>,
    side: Side,
    root: SecretBytes,
) -> Result<KeyChain, StateError> {
    let send_epoch = moving.long()?;
    let current_epoch = moving.long()?;
    let [count] = *moving.take()?;
    if usize::from(count) > MAX_EPOCHS {
        return Err(StateError::Damaged);
    }
    let epochs = (0..count)
        .map(|_| {
            let sending = match *moving.take()? {
                [0] => SendingHalf::Closed {
                    index: moving.number()?,
                },
                [1] => SendingHalf::Open(take_half(moving)?),
                _ => return Err(StateError::Damaged),
            };
            let receiving = take_half(moving)?;
            let kept = u32::from(moving.short()?);
            if kept > MAX_SKIPPED_KEYS_PER_CHAIN {
                return Err(StateError::Damaged);
            }
            Ok(Epoch {
                sending,
                receiving,
                kept,
            })
        })
        .collect::<Result<_, StateError>>()?;
    let chain = KeyChain {
        side,
        root,
        send_epoch,
        current_epoch,
        epochs,
    };
    if chain.is_consistent() {
        Ok(chain)
    } else {
        Err(StateError::Damaged)
    }
}

fn take_half(moving: &mut Input<'_>) -> Result<Half, StateError> {
    Ok(Half {
        index: moving.number()?,
        key: SecretBytes::copy_of(moving.take()?),
    })
}

fn take_braid(
    moving: &mut Input<'_>,
    resting: &mut Input<'_>,
    turn: Turn,
) -> Result<Braid, StateError> {
    let [tag] = *resting.take()?;
    Ok(match tag {
        1 => Braid::KeysUnsampled(KeysUnsampled { turn }),
        2 => Braid::KeysSampled(KeysSampled {
            turn,
            header_and_mac: Box::new(*resting.take::<HEADER_AND_MAC_LEN>()?),
            next: moving.short()?,
            dk: take_dk(resting)?,
        }),
        3 => Braid::HeaderSent(HeaderSent {
            turn,
            next: moving.short()?,
            ct1: take_decoder(moving)?,
            dk: take_dk(resting)?,
        }),
        4 => Braid::Ct1Received(Ct1Received {
            turn,
            next: moving.short()?,
            ct1: take_ct1(resting)?,
            dk: take_dk(resting)?,
        }),
        5 => Braid::EkSentCt1Received(EkSentCt1Received {
            turn,
            ct1: take_ct1(resting)?,
            ct2: take_decoder(moving)?,
            dk: take_dk(resting)?,
        }),
        6 => Braid::NoHeaderReceived(NoHeaderReceived {
            turn,
            header: take_decoder(moving)?,
        }),
        7 => Braid::HeaderReceived(HeaderReceived {
            turn,
            header: take_header(resting)?,
            ek: take_decoder(moving)?,
        }),
        8 => Braid::Ct1Sampled(Ct1Sampled {
            turn,
            header: take_header(resting)?,
            state: take_encapsulation(resting)?,
            ct1: take_ct1(resting)?,
            next: moving.short()?,
            ek: take_decoder(moving)?,
        }),
        9 => Braid::EkReceivedCt1Sampled(EkReceivedCt1Sampled {
            turn,
            state: take_encapsulation(resting)?,
            ek: EncapsulationKey::from_bytes(resting.slice(EK_LEN)?).ok_or(StateError::Damaged)?,
            ct1: take_ct1(resting)?,
            next: moving.short()?,
        }),
        10 => Braid::Ct1Acknowledged(Ct1Acknowledged {
            turn,
            header: take_header(resting)?,
            state: take_encapsulation(resting)?,
            ct1: take_ct1(resting)?,
            ek: take_decoder(moving)?,
        }),
        11 => Braid::Ct2Sampled(Ct2Sampled {
            turn,
            ct2_and_mac: Box::new(*resting.take::<CT2_AND_MAC_LEN>()?),
            next: moving.short()?,
        }),
        _ => return Err(StateError::Damaged),
    })
}

/// The numbers of the chunks that are held, and the data of those in no page.
fn take_decoder(moving: &mut Input<'_>) -> Result<Decoder, StateError> {
    let [held, loose] = *moving.take()?;
    let (held_len, loose_len) = (usize::from(held), usize::from(loose));
    if held_len >= EK_CHUNKS || loose_len >= CHUNKS_PER_PAGE || loose_len > held_len {
        return Err(StateError::Damaged);
    }
    if !(held_len - loose_len).is_multiple_of(CHUNKS_PER_PAGE) {
        return Err(StateError::Damaged);
    }
    let held = (0..held)
        .map(|_| moving.short())
        .collect::<Result<Vec<_>, _>>()?;
    let loose = held[held_len - loose_len..]
        .iter()
        .map(|&index| {
            moving
                .take()
                .map(|data| IndexedChunk { index, data: *data })
        })
        .collect::<Result<_, _>>()?;
    Ok(Decoder { held, loose })
}

fn take_dk(resting: &mut Input<'_>) -> Result<DecapsulationKey, StateError> {
    DecapsulationKey::from_bytes(resting.slice(DK_LEN)?).ok_or(StateError::Damaged)
}

fn take_header(resting: &mut Input<'_>) -> Result<Header, StateError> {
    Header::from_bytes(resting.slice(HEADER_LEN)?).ok_or(StateError::Damaged)
}

fn take_ct1(resting: &mut Input<'_>) -> Result<Ct1, StateError> {
    Ct1::from_bytes(resting.slice(CT1_LEN)?).ok_or(StateError::Damaged)
}

fn take_encapsulation(resting: &mut Input<'_>) -> Result<EncapsulationState, StateError> {
    EncapsulationState::from_bytes(resting.slice(ENCAPSULATION_STATE_LEN)?)
        .ok_or(StateError::Damaged)
}
