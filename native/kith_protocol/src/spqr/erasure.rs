//! The erasure code: a message of `n` chunks becomes endlessly many, of which any `n` restore it.
//!
//! A message is read as big-endian elements of GF(2¹⁶), sixteen to a chunk. Element `j` of chunk `x` is the
//! value at `x` of polynomial `j`, which has degree below `n` and so is known from any `n` chunks. Chunks
//! below `n` are the message itself.
//!
//! Everything here is public: what is coded are keys and ciphertexts that travel in clear, and what is not
//! yet authentic is checked when it is complete.

use super::field::{Lanes, combine, invert, multiply};

/// Bytes of a chunk.
pub(crate) const CHUNK_LEN: usize = 32;

/// One chunk: sixteen elements.
pub(crate) type Chunk = [u8; CHUNK_LEN];

/// The most chunks of a message there is: those of an encapsulation key.
const MOST_CHUNKS: usize = 36;

/// For `n` chunks and each `k` below it: `1 / Π (k − j)` over the other `j` below `n`.
static INVERSE_DENOMINATORS: [[u16; MOST_CHUNKS]; MOST_CHUNKS + 1] = {
    let mut inverses = [0; 64];
    let mut of = 0;
    while of < 64 {
        inverses[of as usize] = invert(of);
        of += 1;
    }
    let mut table = [[1; MOST_CHUNKS]; MOST_CHUNKS + 1];
    let mut n = 1;
    while n <= MOST_CHUNKS {
        let mut k = 0;
        while k < n {
            let mut j = 0;
            while j < n {
                if j != k {
                    table[n][k] = multiply(table[n][k], inverses[j ^ k]);
                }
                j += 1;
            }
            k += 1;
        }
        n += 1;
    }
    table
};

/// Chunk `index` of a message.
///
/// The message is a whole number of chunks long; what is left over would not be coded.
pub(crate) fn chunk(message: &[u8], index: u16) -> Chunk {
    let (chunks, _) = message.as_chunks();
    if let Some(chunk) = chunks.get(usize::from(index)) {
        return *chunk;
    }
    let rows = lanes_of_all(chunks);
    let points = first_points(chunks.len());
    let weights = weights(&points, &denominators(&points), index);
    to_chunk(&combine(&weights, &rows))
}

/// The message of `n` chunks, from any `n` of its chunks; `None` with fewer.
///
/// Of two chunks with one index the first counts. What arrived of the message itself is copied, and the
/// rest interpolated from the `n` chunks with the smallest indices.
pub(crate) fn restore(chunks: &[(u16, Chunk)], n: usize) -> Option<Vec<u8>> {
    let mut held: Vec<&(u16, Chunk)> = chunks.iter().collect();
    held.sort_by_key(|(index, _)| *index);
    held.dedup_by_key(|(index, _)| *index);
    // So `n` is no larger than what was given, and may be allocated.
    let held = held.get(..n)?;

    let points: Vec<u16> = held.iter().map(|(index, _)| *index).collect();
    let rows: Vec<Lanes> = held.iter().map(|(_, chunk)| to_lanes(chunk)).collect();
    let mut inverse_denominators = None;
    let mut message = Vec::with_capacity(n * CHUNK_LEN);
    for x in first_points(n) {
        // Indices below n are the smallest ones, so none of them was left out above.
        if let Ok(at) = points.binary_search(&x) {
            message.extend_from_slice(&held[at].1);
        } else {
            let denominators = inverse_denominators.get_or_insert_with(|| denominators(&points));
            let weights = weights(&points, denominators, x);
            message.extend_from_slice(&to_chunk(&combine(&weights, &rows)));
        }
    }
    Some(message)
}

/// The sixteen polynomials of a message, constant term first.
pub(crate) fn coefficients(message: &[u8]) -> [Vec<u16>; 16] {
    let (chunks, _) = message.as_chunks();
    let rows = lanes_of_all(chunks);
    let points = first_points(chunks.len());
    let denominators = denominators(&points);

    // Π (x − k) over all points, constant term first.
    let mut product = vec![1];
    for &point in &points {
        product.insert(0, 0);
        for at in 0..product.len() - 1 {
            product[at] ^= multiply(product[at + 1], point);
        }
    }

    // For each point the polynomial that is one there and zero at the others: the product divided by
    // (x − point), times a constant.
    let basis: Vec<Vec<u16>> = points
        .iter()
        .zip(&denominators)
        .map(|(&point, &inverse)| {
            let mut quotient = vec![0; points.len()];
            let mut above = 0;
            for (at, coefficient) in quotient.iter_mut().enumerate().rev() {
                above = product[at + 1] ^ multiply(above, point);
                *coefficient = multiply(above, inverse);
            }
            quotient
        })
        .collect();

    let mut polynomials: [Vec<u16>; 16] = Default::default();
    for degree in 0..points.len() {
        let weights: Vec<u16> = basis.iter().map(|polynomial| polynomial[degree]).collect();
        for (polynomial, value) in polynomials.iter_mut().zip(combine(&weights, &rows)) {
            polynomial.push(value);
        }
    }
    polynomials
}

/// The message of sixteen polynomials; `None` unless all have as many coefficients.
pub(crate) fn from_coefficients(polynomials: &[Vec<u16>; 16]) -> Option<Vec<u8>> {
    let n = polynomials[0].len();
    if polynomials.iter().any(|polynomial| polynomial.len() != n) {
        return None;
    }
    let rows: Vec<Lanes> = (0..n)
        .map(|degree| std::array::from_fn(|lane| polynomials[lane][degree]))
        .collect();
    let mut message = Vec::with_capacity(n * CHUNK_LEN);
    for x in first_points(n) {
        let powers: Vec<u16> = std::iter::successors(Some(1), |&power| Some(multiply(power, x)))
            .take(n)
            .collect();
        message.extend_from_slice(&to_chunk(&combine(&powers, &rows)));
    }
    Some(message)
}

/// The elements of a chunk.
pub(crate) fn to_lanes(chunk: &Chunk) -> Lanes {
    let (symbols, _) = chunk.as_chunks::<2>();
    std::array::from_fn(|lane| u16::from_be_bytes(symbols[lane]))
}

/// The chunk of sixteen elements.
pub(crate) fn to_chunk(lanes: &Lanes) -> Chunk {
    let mut chunk = [0; CHUNK_LEN];
    for (bytes, lane) in chunk.as_chunks_mut::<2>().0.iter_mut().zip(lanes) {
        *bytes = lane.to_be_bytes();
    }
    chunk
}

fn lanes_of_all(chunks: &[Chunk]) -> Vec<Lanes> {
    chunks.iter().map(to_lanes).collect()
}

fn first_points(n: usize) -> Vec<u16> {
    (0..=u16::MAX).take(n).collect()
}

/// For each point `1 / Π (point − other)` over the other points.
fn denominators(points: &[u16]) -> Vec<u16> {
    if let Some(row) = INVERSE_DENOMINATORS.get(points.len())
        && points.iter().zip(0..).all(|(&point, at)| point == at)
    {
        return row[..points.len()].to_vec();
    }
    points
        .iter()
        .map(|&point| {
            let product = points
                .iter()
                .filter(|&&other| other != point)
                .fold(1, |product, &other| multiply(product, point ^ other));
            invert(product)
        })
        .collect()
}

/// What the value at each point counts for the value at `x` (Lagrange).
fn weights(points: &[u16], inverse_denominators: &[u16], x: u16) -> Vec<u16> {
    // Π (x − other) over the other points: what comes before times what comes after.
    let mut weights = Vec::with_capacity(points.len());
    let mut before = 1;
    for &point in points {
        weights.push(before);
        before = multiply(before, x ^ point);
    }
    let mut after = 1;
    for ((weight, &point), &inverse) in weights
        .iter_mut()
        .zip(points)
        .zip(inverse_denominators)
        .rev()
    {
        *weight = multiply(multiply(*weight, after), inverse);
        after = multiply(after, x ^ point);
    }
    weights
}
