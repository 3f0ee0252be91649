//! The post-quantum ratchet as Signal's own library stores it.

use prost::Message as _;
use zeroize::Zeroize;

use super::{RecordError, fixed, insert};
use crate::limits::MAX_SKIPPED_KEYS_PER_CHAIN;
use crate::secret::SecretBytes;
use crate::session::entries::{Entry, EntryGroup, EntryLookup, MemoryEntries};
use crate::session::state::SessionId;
use crate::spqr::Spqr;
use crate::spqr::authenticator::Authenticator;
use crate::spqr::braid::{
    Braid, CT1_CHUNKS, CT2_AND_MAC_LEN, CT2_CHUNKS, Ct1Acknowledged, Ct1Received, Ct1Sampled,
    Ct2Sampled, EK_CHUNKS, EkReceivedCt1Sampled, EkSentCt1Received, HEADER_AND_MAC_LEN,
    HEADER_CHUNKS, HeaderReceived, HeaderSent, KeysSampled, KeysUnsampled, NoHeaderReceived, Turn,
};
use crate::spqr::chain::{Epoch, Half, KeyChain, SendingHalf, Side};
use crate::spqr::decoder::{Decoder, PageLookup};
use crate::spqr::erasure::{self, CHUNK_LEN, Chunk};
use crate::spqr::kem::{Ct1, DecapsulationKey, EncapsulationKey, EncapsulationState, Header};
use crate::spqr::message::IndexedChunk;

/// Symbols of 16 bits in a chunk, each of its own polynomial.
const STREAMS: usize = 16;

/// The version of the ratchet that both sides ask for.
const MINIMUM_VERSION: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
struct Fields {
    #[prost(message, optional, tag = "1")]
    negotiation: Option<NegotiationFields>,
    #[prost(message, optional, tag = "2")]
    chain: Option<ChainFields>,
    #[prost(message, optional, tag = "3")]
    braid: Option<BraidFields>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NegotiationFields {
    #[prost(bytes = "vec", tag = "1")]
    auth_key: Vec<u8>,
    #[prost(int32, tag = "2")]
    direction: i32,
    #[prost(int32, tag = "3")]
    minimum_version: i32,
    #[prost(message, optional, tag = "4")]
    limits: Option<LimitFields>,
}

/// Zero stands for 25 000 and 2 000, which is what this engine has.
#[derive(Clone, PartialEq, prost::Message)]
struct LimitFields {
    #[prost(uint32, tag = "1")]
    jump: u32,
    #[prost(uint32, tag = "2")]
    kept: u32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ChainFields {
    #[prost(int32, tag = "1")]
    direction: i32,
    #[prost(uint64, tag = "2")]
    current_epoch: u64,
    #[prost(message, repeated, tag = "3")]
    epochs: Vec<EpochFields>,
    #[prost(bytes = "vec", tag = "4")]
    root: Vec<u8>,
    #[prost(uint64, tag = "5")]
    send_epoch: u64,
    #[prost(message, optional, tag = "6")]
    limits: Option<LimitFields>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EpochFields {
    #[prost(message, optional, tag = "1")]
    sending: Option<HalfFields>,
    #[prost(message, optional, tag = "2")]
    receiving: Option<HalfFields>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct HalfFields {
    #[prost(uint32, tag = "1")]
    index: u32,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    kept: Vec<u8>,
}

/// One of eleven.
#[derive(Clone, PartialEq, prost::Message)]
struct BraidFields {
    #[prost(message, optional, tag = "1")]
    keys_unsampled: Option<StateFields>,
    #[prost(message, optional, tag = "2")]
    keys_sampled: Option<StateFields>,
    #[prost(message, optional, tag = "3")]
    header_sent: Option<StateFields>,
    #[prost(message, optional, tag = "4")]
    ct1_received: Option<StateFields>,
    #[prost(message, optional, tag = "5")]
    ek_sent_ct1_received: Option<StateFields>,
    #[prost(message, optional, tag = "6")]
    no_header_received: Option<StateFields>,
    #[prost(message, optional, tag = "7")]
    header_received: Option<StateFields>,
    #[prost(message, optional, tag = "8")]
    ct1_sampled: Option<StateFields>,
    #[prost(message, optional, tag = "9")]
    ek_received_ct1_sampled: Option<StateFields>,
    #[prost(message, optional, tag = "10")]
    ct1_acknowledged: Option<StateFields>,
    #[prost(message, optional, tag = "11")]
    ct2_sampled: Option<StateFields>,
}

/// Fields 2 and 3 are an [`EncoderFields`] or a [`DecoderFields`], according to the state.
#[derive(Clone, PartialEq, prost::Message)]
struct StateFields {
    #[prost(message, optional, tag = "1")]
    inner: Option<InnerFields>,
    #[prost(bytes = "vec", optional, tag = "2")]
    first: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    second: Option<Vec<u8>>,
}

/// What fields 3 to 5 are depends on the state.
#[derive(Clone, PartialEq, prost::Message)]
struct InnerFields {
    #[prost(uint64, tag = "1")]
    epoch: u64,
    #[prost(message, optional, tag = "2")]
    authenticator: Option<AuthenticatorFields>,
    #[prost(bytes = "vec", tag = "3")]
    third: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    fourth: Vec<u8>,
    #[prost(bytes = "vec", tag = "5")]
    fifth: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct AuthenticatorFields {
    #[prost(bytes = "vec", tag = "1")]
    root: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    mac_key: Vec<u8>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct EncoderFields {
    #[prost(uint32, tag = "1")]
    next: u32,
    /// The symbols of each stream.
    #[prost(bytes = "vec", repeated, tag = "2")]
    points: Vec<Vec<u8>>,
    /// Their polynomials, once one was needed.
    #[prost(bytes = "vec", repeated, tag = "3")]
    polynomials: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct DecoderFields {
    #[prost(uint32, tag = "1")]
    symbols_needed: u32,
    #[prost(uint32, tag = "2")]
    streams: u32,
    /// Position and symbol, for each stream.
    #[prost(bytes = "vec", repeated, tag = "3")]
    points: Vec<Vec<u8>>,
    #[prost(bool, tag = "4")]
    complete: bool,
}

/// Reads the ratchet of a session; what is kept beside the session goes to `entries`.
pub(super) fn read(
    bytes: &[u8],
    session: SessionId,
    entries: &mut MemoryEntries,
) -> Result<Spqr, RecordError> {
    let mut fields = Fields::decode(bytes).map_err(|_| RecordError::Damaged)?;
    let spqr = read_fields(&fields, session, entries);
    fields.erase();
    spqr
}

fn read_fields(
    fields: &Fields,
    session: SessionId,
    entries: &mut MemoryEntries,
) -> Result<Spqr, RecordError> {
    let negotiation = fields.negotiation.as_ref();
    let settled = negotiation.is_none_or(|it| it.minimum_version >= MINIMUM_VERSION);
    let braid = match &fields.braid {
        Some(braid) if settled => braid.read(session, entries)?,
        _ => return Err(RecordError::WithoutPostQuantumRatchet),
    };
    let auth_key = negotiation
        .map(|negotiation| fixed(&negotiation.auth_key).map(SecretBytes::copy_of))
        .transpose()?;
    // A session that has neither sent nor received has no chain yet.
    let chain = match (&fields.chain, negotiation, &auth_key) {
        (Some(chain), _, _) => chain.read(session, entries)?,
        (None, Some(negotiation), Some(auth_key)) => {
            KeyChain::start(auth_key.as_bytes(), side(negotiation.direction)?)
        }
        _ => return Err(RecordError::Damaged),
    };
    let spqr = Spqr {
        chain,
        braid,
        auth_key,
    };
    if spqr.is_consistent() {
        Ok(spqr)
    } else {
        Err(RecordError::Damaged)
    }
}

/// Writes the ratchet of a session.
pub(super) fn write(spqr: &Spqr, session: SessionId, entries: &MemoryEntries) -> Vec<u8> {
    let Spqr {
        chain,
        braid,
        auth_key,
    } = spqr;
    let direction = direction(chain.side);
    let negotiation = auth_key.as_ref().map(|auth_key| NegotiationFields {
        auth_key: auth_key.as_bytes().to_vec(),
        direction,
        minimum_version: MINIMUM_VERSION,
        limits: Some(LimitFields::default()),
    });
    let untouched = chain.current_epoch == 0
        && chain.epochs.iter().all(|epoch| {
            matches!(&epoch.sending, SendingHalf::Open(half) if half.index == 0)
                && epoch.receiving.index == 0
        });
    let mut fields = Fields {
        negotiation,
        chain: if auth_key.is_some() && untouched {
            None
        } else {
            Some(ChainFields::write(chain, session, entries))
        },
        braid: Some(BraidFields::write(braid, session, entries)),
    };
    let bytes = fields.encode_to_vec();
    fields.erase();
    bytes
}

fn side(direction: i32) -> Result<Side, RecordError> {
    match direction {
        0 => Ok(Side::Initiator),
        1 => Ok(Side::Responder),
        _ => Err(RecordError::Damaged),
    }
}

const fn direction(side: Side) -> i32 {
    match side {
        Side::Initiator => 0,
        Side::Responder => 1,
    }
}

impl ChainFields {
    fn read(
        &self,
        session: SessionId,
        entries: &mut MemoryEntries,
    ) -> Result<KeyChain, RecordError> {
        let count = u64::try_from(self.epochs.len()).map_err(|_| RecordError::Damaged)?;
        let oldest = self
            .current_epoch
            .checked_add(1)
            .and_then(|end| end.checked_sub(count))
            .ok_or(RecordError::Damaged)?;
        let epochs = self
            .epochs
            .iter()
            .zip(oldest..)
            .map(|(fields, number)| {
                let sending = fields.sending.as_ref().ok_or(RecordError::Damaged)?;
                let receiving = fields.receiving.as_ref().ok_or(RecordError::Damaged)?;
                Ok(Epoch {
                    sending: if sending.key.is_empty() {
                        SendingHalf::Closed {
                            index: sending.index,
                        }
                    } else {
                        SendingHalf::Open(sending.read()?)
                    },
                    receiving: receiving.read()?,
                    kept: receiving.read_kept(number, session, entries)?,
                })
            })
            .collect::<Result<_, RecordError>>()?;
        let chain = KeyChain {
            side: side(self.direction)?,
            root: SecretBytes::copy_of(fixed(&self.root)?),
            send_epoch: self.send_epoch,
            current_epoch: self.current_epoch,
            epochs,
        };
        if chain.is_consistent() {
            Ok(chain)
        } else {
            Err(RecordError::Damaged)
        }
    }

    fn write(chain: &KeyChain, session: SessionId, entries: &MemoryEntries) -> Self {
        Self {
            direction: direction(chain.side),
            current_epoch: chain.current_epoch,
            epochs: chain
                .epochs
                .iter()
                .zip(chain.oldest()..)
                .map(|(epoch, number)| EpochFields {
                    sending: Some(match &epoch.sending {
                        SendingHalf::Open(half) => HalfFields::write(half),
                        SendingHalf::Closed { index } => HalfFields {
                            index: *index,
                            ..HalfFields::default()
                        },
                    }),
                    receiving: Some(HalfFields {
                        kept: write_kept(number, session, entries),
                        ..HalfFields::write(&epoch.receiving)
                    }),
                })
                .collect(),
            root: chain.root.as_bytes().to_vec(),
            send_epoch: chain.send_epoch,
            limits: Some(LimitFields::default()),
        }
    }
}

impl HalfFields {
    fn read(&self) -> Result<Half, RecordError> {
        Ok(Half {
            key: SecretBytes::copy_of(fixed(&self.key)?),
            index: self.index,
        })
    }

    fn read_kept(
        &self,
        epoch: u64,
        session: SessionId,
        entries: &mut MemoryEntries,
    ) -> Result<u32, RecordError> {
        let (kept, rest) = self.kept.as_chunks::<36>();
        let count = u32::try_from(kept.len()).map_err(|_| RecordError::Damaged)?;
        if !rest.is_empty() || count > MAX_SKIPPED_KEYS_PER_CHAIN {
            return Err(RecordError::Damaged);
        }
        for kept in kept {
            let (index, key) = kept.split_first_chunk().ok_or(RecordError::Damaged)?;
            insert(
                entries,
                session,
                (
                    EntryGroup::PostQuantumKeys(epoch),
                    u32::from_be_bytes(*index),
                ),
                Entry::post_quantum_key(SecretBytes::copy_of(fixed(key)?)),
            )?;
        }
        Ok(count)
    }

    fn write(half: &Half) -> Self {
        Self {
            index: half.index,
            key: half.key.as_bytes().to_vec(),
            kept: Vec::new(),
        }
    }
}

/// `index (4) ‖ key (32)` for each kept key, ascending.
fn write_kept(epoch: u64, session: SessionId, entries: &MemoryEntries) -> Vec<u8> {
    let mut out = Vec::new();
    for (index, entry) in entries.of_group(&session, EntryGroup::PostQuantumKeys(epoch)) {
        if let Some(key) = entry.as_post_quantum_key() {
            out.extend_from_slice(&index.to_be_bytes());
            out.extend_from_slice(key.as_bytes());
        }
    }
    out
}

impl BraidFields {
    fn read(&self, session: SessionId, entries: &mut MemoryEntries) -> Result<Braid, RecordError> {
        let states = [
            &self.keys_unsampled,
            &self.keys_sampled,
            &self.header_sent,
            &self.ct1_received,
            &self.ek_sent_ct1_received,
            &self.no_header_received,
            &self.header_received,
            &self.ct1_sampled,
            &self.ek_received_ct1_sampled,
            &self.ct1_acknowledged,
            &self.ct2_sampled,
        ];
        let mut given = (1..)
            .zip(states)
            .filter_map(|(number, state)| state.as_ref().map(|state| (number, state)));
        let (number, state) = given.next().ok_or(RecordError::Damaged)?;
        if given.next().is_some() {
            return Err(RecordError::Damaged);
        }
        let inner = state.inner.as_ref().ok_or(RecordError::Damaged)?;
        let authenticator = inner.authenticator.as_ref().ok_or(RecordError::Damaged)?;
        let turn = Turn {
            epoch: inner.epoch,
            authenticator: Authenticator::from_parts(
                SecretBytes::copy_of(fixed(&authenticator.root)?),
                SecretBytes::copy_of(fixed(&authenticator.mac_key)?),
            ),
        };
        if turn.epoch == 0 {
            return Err(RecordError::Damaged);
        }
        let mut decoder = |fields: &Option<Vec<u8>>, needed| {
            read_decoder(fields, needed, &turn, session, entries)
        };
        Ok(match number {
            1 => Braid::KeysUnsampled(KeysUnsampled { turn }),
            2 => {
                let (next, whole) = read_encoder(&state.first)?;
                let dk = decapsulation_key(&inner.fourth)?;
                same(dk.encapsulation_key_bytes(), &inner.third)?;
                Braid::KeysSampled(KeysSampled {
                    turn,
                    header_and_mac: Box::new(*fixed::<HEADER_AND_MAC_LEN>(&whole)?),
                    next,
                    dk,
                })
            }
            3 => {
                let (next, whole) = read_encoder(&state.first)?;
                let ct1 = decoder(&state.second, CT1_CHUNKS)?;
                let dk = decapsulation_key(&inner.third)?;
                same(dk.encapsulation_key_bytes(), &whole)?;
                Braid::HeaderSent(HeaderSent {
                    turn,
                    next,
                    ct1,
                    dk,
                })
            }
            4 => {
                let (next, whole) = read_encoder(&state.first)?;
                let dk = decapsulation_key(&inner.third)?;
                same(dk.encapsulation_key_bytes(), &whole)?;
                Braid::Ct1Received(Ct1Received {
                    turn,
                    next,
                    ct1: part(Ct1::from_bytes(&inner.fourth))?,
                    dk,
                })
            }
            5 => Braid::EkSentCt1Received(EkSentCt1Received {
                ct2: decoder(&state.second, CT2_CHUNKS)?,
                turn,
                ct1: part(Ct1::from_bytes(&inner.fourth))?,
                dk: decapsulation_key(&inner.third)?,
            }),
            6 => Braid::NoHeaderReceived(NoHeaderReceived {
                header: decoder(&state.first, HEADER_CHUNKS)?,
                turn,
            }),
            7 => Braid::HeaderReceived(HeaderReceived {
                ek: decoder(&state.first, EK_CHUNKS)?,
                turn,
                header: part(Header::from_bytes(&inner.third))?,
            }),
            8 => {
                let (next, whole) = read_encoder(&state.first)?;
                same(&inner.fifth, &whole)?;
                Braid::Ct1Sampled(Ct1Sampled {
                    ek: decoder(&state.second, EK_CHUNKS)?,
                    turn,
                    header: part(Header::from_bytes(&inner.third))?,
                    state: part(EncapsulationState::from_bytes(&inner.fourth))?,
                    ct1: part(Ct1::from_bytes(&inner.fifth))?,
                    next,
                })
            }
            9 => {
                let (next, whole) = read_encoder(&state.first)?;
                same(&inner.fifth, &whole)?;
                Braid::EkReceivedCt1Sampled(EkReceivedCt1Sampled {
                    turn,
                    state: part(EncapsulationState::from_bytes(&inner.third))?,
                    ek: part(EncapsulationKey::from_bytes(&inner.fourth))?,
                    ct1: part(Ct1::from_bytes(&inner.fifth))?,
                    next,
                })
            }
            10 => Braid::Ct1Acknowledged(Ct1Acknowledged {
                ek: decoder(&state.first, EK_CHUNKS)?,
                turn,
                header: part(Header::from_bytes(&inner.third))?,
                state: part(EncapsulationState::from_bytes(&inner.fourth))?,
                ct1: part(Ct1::from_bytes(&inner.fifth))?,
            }),
            _ => {
                let (next, whole) = read_encoder(&state.first)?;
                Braid::Ct2Sampled(Ct2Sampled {
                    turn,
                    ct2_and_mac: Box::new(*fixed::<CT2_AND_MAC_LEN>(&whole)?),
                    next,
                })
            }
        })
    }

    fn write(braid: &Braid, session: SessionId, entries: &MemoryEntries) -> Self {
        let Turn {
            epoch,
            authenticator,
        } = braid.turn();
        let next = braid.next_chunk().unwrap_or(0);
        let encoder = |whole: &[u8]| Some(write_encoder(whole, next));
        let decoder = || {
            braid
                .decoder()
                .map(|(decoder, needed)| write_decoder(decoder, needed, *epoch, session, entries))
        };
        let state = |parts: [&[u8]; 3], first, second| {
            Some(StateFields {
                inner: Some(InnerFields {
                    epoch: *epoch,
                    authenticator: Some(AuthenticatorFields {
                        root: authenticator.root().as_bytes().to_vec(),
                        mac_key: authenticator.mac_key().as_bytes().to_vec(),
                    }),
                    third: parts[0].to_vec(),
                    fourth: parts[1].to_vec(),
                    fifth: parts[2].to_vec(),
                }),
                first,
                second,
            })
        };
        let mut fields = Self::default();
        match braid {
            Braid::KeysUnsampled(_) => fields.keys_unsampled = state([&[]; 3], None, None),
            Braid::KeysSampled(it) => {
                let parts = [it.dk.encapsulation_key_bytes(), it.dk.as_bytes(), &[]];
                fields.keys_sampled = state(parts, encoder(it.header_and_mac.as_slice()), None);
            }
            Braid::HeaderSent(it) => {
                let ek = encoder(it.dk.encapsulation_key_bytes());
                fields.header_sent = state([it.dk.as_bytes(), &[], &[]], ek, decoder());
            }
            Braid::Ct1Received(it) => {
                let ek = encoder(it.dk.encapsulation_key_bytes());
                let parts: [&[u8]; 3] = [it.dk.as_bytes(), it.ct1.as_bytes(), &[]];
                fields.ct1_received = state(parts, ek, None);
            }
            Braid::EkSentCt1Received(it) => {
                let parts: [&[u8]; 3] = [it.dk.as_bytes(), it.ct1.as_bytes(), &[]];
                fields.ek_sent_ct1_received = state(parts, None, decoder());
            }
            Braid::NoHeaderReceived(_) => {
                fields.no_header_received = state([&[]; 3], decoder(), None);
            }
            Braid::HeaderReceived(it) => {
                fields.header_received = state([it.header.as_bytes(), &[], &[]], decoder(), None);
            }
            Braid::Ct1Sampled(it) => {
                let parts: [&[u8]; 3] =
                    [it.header.as_bytes(), it.state.as_bytes(), it.ct1.as_bytes()];
                fields.ct1_sampled = state(parts, encoder(it.ct1.as_bytes()), decoder());
            }
            Braid::EkReceivedCt1Sampled(it) => {
                let parts: [&[u8]; 3] = [it.state.as_bytes(), it.ek.as_bytes(), it.ct1.as_bytes()];
                fields.ek_received_ct1_sampled = state(parts, encoder(it.ct1.as_bytes()), None);
            }
            Braid::Ct1Acknowledged(it) => {
                let parts: [&[u8]; 3] =
                    [it.header.as_bytes(), it.state.as_bytes(), it.ct1.as_bytes()];
                fields.ct1_acknowledged = state(parts, decoder(), None);
            }
            Braid::Ct2Sampled(it) => {
                fields.ct2_sampled = state([&[]; 3], encoder(it.ct2_and_mac.as_slice()), None);
            }
        }
        fields
    }
}

fn part<T>(part: Option<T>) -> Result<T, RecordError> {
    part.ok_or(RecordError::Damaged)
}

fn decapsulation_key(bytes: &[u8]) -> Result<DecapsulationKey, RecordError> {
    part(DecapsulationKey::from_bytes(bytes))
}

/// What is written twice must be the same; it is public.
fn same(a: &[u8], b: &[u8]) -> Result<(), RecordError> {
    if a == b {
        Ok(())
    } else {
        Err(RecordError::Damaged)
    }
}

/// The number of the next chunk, and what is being sent.
fn read_encoder(fields: &Option<Vec<u8>>) -> Result<(u16, Vec<u8>), RecordError> {
    let fields = fields.as_deref().ok_or(RecordError::Damaged)?;
    let EncoderFields {
        next,
        points,
        polynomials,
    } = EncoderFields::decode(fields).map_err(|_| RecordError::Damaged)?;
    let streams = if points.is_empty() {
        polynomials
    } else {
        points.clone()
    };
    let symbols: Vec<Vec<u16>> = streams
        .iter()
        .map(|stream| {
            let (symbols, rest) = stream.as_chunks::<2>();
            let symbols = symbols.iter().map(|symbol| u16::from_be_bytes(*symbol));
            rest.is_empty().then(|| symbols.collect())
        })
        .collect::<Option<_>>()
        .ok_or(RecordError::Damaged)?;
    let symbols: [Vec<u16>; STREAMS] = symbols.try_into().map_err(|_| RecordError::Damaged)?;
    // Nothing that is sent is longer than the encapsulation key.
    let length = symbols[0].len();
    if length > EK_CHUNKS || symbols.iter().any(|stream| stream.len() != length) {
        return Err(RecordError::Damaged);
    }
    // Behind the last number, 65 535, the chunks begin again.
    let [_, _, high, low] = next.to_be_bytes();
    let next = u16::from_be_bytes([high, low]);
    if points.is_empty() {
        return part(erasure::from_coefficients(&symbols)).map(|whole| (next, whole));
    }
    let mut whole = Vec::with_capacity(length * CHUNK_LEN);
    for at in 0..length {
        for stream in &symbols {
            whole.extend_from_slice(&stream[at].to_be_bytes());
        }
    }
    Ok((next, whole))
}

/// As polynomials once a chunk was sent that is not part of the message itself.
fn write_encoder(whole: &[u8], next: u16) -> Vec<u8> {
    let chunks = whole.len() / CHUNK_LEN;
    let mut fields = EncoderFields {
        next: next.into(),
        ..EncoderFields::default()
    };
    if usize::from(next) > chunks {
        fields.polynomials = erasure::coefficients(whole)
            .iter()
            .map(|polynomial| polynomial.iter().flat_map(|it| it.to_be_bytes()).collect())
            .collect();
    } else {
        fields.points = (0..STREAMS)
            .map(|stream| {
                whole
                    .chunks_exact(CHUNK_LEN)
                    .flat_map(|chunk| chunk[2 * stream..2 * stream + 2].to_vec())
                    .collect()
            })
            .collect();
    }
    fields.encode_to_vec()
}

fn read_decoder(
    fields: &Option<Vec<u8>>,
    needed: usize,
    turn: &Turn,
    session: SessionId,
    entries: &mut MemoryEntries,
) -> Result<Decoder, RecordError> {
    let fields = fields.as_deref().ok_or(RecordError::Damaged)?;
    let fields = DecoderFields::decode(fields).map_err(|_| RecordError::Damaged)?;
    let points: Vec<&[[u8; 4]]> = fields
        .points
        .iter()
        .map(|stream| {
            let (points, rest) = stream.as_chunks::<4>();
            rest.is_empty().then_some(points)
        })
        .collect::<Option<_>>()
        .ok_or(RecordError::Damaged)?;
    let points: [&[[u8; 4]]; STREAMS] = points.try_into().map_err(|_| RecordError::Damaged)?;
    let count = points[0].len();
    let expected = usize::try_from(fields.symbols_needed).is_ok_and(|it| it == needed * STREAMS);
    if !expected || fields.complete || count >= needed {
        return Err(RecordError::Damaged);
    }
    let mut decoder = Decoder::default();
    for at in 0..count {
        let [high, low, ..] = points[0][at];
        let mut data: Chunk = [0; CHUNK_LEN];
        for (stream, symbol) in points.iter().zip(data.as_chunks_mut::<2>().0) {
            match stream.get(at) {
                Some([first, second, y @ ..]) if [*first, *second] == [high, low] => *symbol = *y,
                _ => return Err(RecordError::Damaged),
            }
        }
        let index = u16::from_be_bytes([high, low]);
        if decoder.held.contains(&index) {
            return Err(RecordError::Damaged);
        }
        if let Some((number, page)) = decoder.add(IndexedChunk { index, data }) {
            let position = (EntryGroup::Chunks(turn.epoch), number);
            insert(entries, session, position, Entry::page(page))?;
        }
    }
    Ok(decoder)
}

fn write_decoder(
    decoder: &Decoder,
    needed: usize,
    epoch: u64,
    session: SessionId,
    entries: &MemoryEntries,
) -> Vec<u8> {
    let pages = |number| match entries.find(&session, &(EntryGroup::Chunks(epoch), number)) {
        EntryLookup::Found(entry) => entry
            .as_page()
            .map_or(PageLookup::Absent, |page| PageLookup::Found(*page)),
        EntryLookup::Absent | EntryLookup::NotLoaded => PageLookup::Absent,
    };
    // Pages that are gone leave a decoder that has yet to be sent everything.
    let mut chunks = decoder.chunks(&pages).unwrap_or_default();
    chunks.sort_by_key(|(index, _)| *index);
    let points = (0..STREAMS)
        .map(|stream| {
            chunks
                .iter()
                .flat_map(|(index, data)| {
                    let [high, low] = index.to_be_bytes();
                    [high, low, data[2 * stream], data[2 * stream + 1]]
                })
                .collect()
        })
        .collect();
    DecoderFields {
        symbols_needed: u32::try_from(needed * STREAMS).unwrap_or(u32::MAX),
        streams: u32::try_from(STREAMS).unwrap_or(u32::MAX),
        points,
        complete: false,
    }
    .encode_to_vec()
}

impl Fields {
    fn erase(&mut self) {
        if let Some(negotiation) = &mut self.negotiation {
            negotiation.auth_key.zeroize();
        }
        if let Some(chain) = &mut self.chain {
            chain.root.zeroize();
            for epoch in &mut chain.epochs {
                for half in epoch.sending.iter_mut().chain(&mut epoch.receiving) {
                    half.key.zeroize();
                    half.kept.zeroize();
                }
            }
        }
        if let Some(braid) = &mut self.braid {
            for state in braid.states_mut().into_iter().flatten() {
                if let Some(inner) = &mut state.inner {
                    inner.authenticator.iter_mut().for_each(|it| {
                        it.root.zeroize();
                        it.mac_key.zeroize();
                    });
                    inner.third.zeroize();
                    inner.fourth.zeroize();
                    inner.fifth.zeroize();
                }
            }
        }
    }
}

impl BraidFields {
    fn states_mut(&mut self) -> [&mut Option<StateFields>; 11] {
        [
            &mut self.keys_unsampled,
            &mut self.keys_sampled,
            &mut self.header_sent,
            &mut self.ct1_received,
            &mut self.ek_sent_ct1_received,
            &mut self.no_header_received,
            &mut self.header_received,
            &mut self.ct1_sampled,
            &mut self.ek_received_ct1_sampled,
            &mut self.ct1_acknowledged,
            &mut self.ct2_sampled,
        ]
    }
}
