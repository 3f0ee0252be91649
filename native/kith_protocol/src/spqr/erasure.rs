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

/// Chunks of the longest message there is, an encapsulation key.
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
    let weights = weights(&points, &first_denominators(&points), index);
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
    let denominators = first_denominators(&points);

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

/// The message of sixteen polynomials; `None` unless all have the same number of coefficients, and no more
/// than the longest message has chunks.
pub(crate) fn from_coefficients(polynomials: &[Vec<u16>; 16]) -> Option<Vec<u8>> {
    let n = polynomials[0].len();
    if n > MOST_CHUNKS || polynomials.iter().any(|polynomial| polynomial.len() != n) {
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

/// [`denominators`] of the points from 0 on, which every chunk beyond the message needs.
fn first_denominators(points: &[u16]) -> Vec<u16> {
    let n = points.len();
    match INVERSE_DENOMINATORS.get(n) {
        Some(row) => row[..n].to_vec(),
        None => denominators(points),
    }
}

/// For each point `1 / Π (point − other)` over the other points.
fn denominators(points: &[u16]) -> Vec<u16> {
    let mut products = vec![1; points.len()];
    for &other in points {
        // The products are independent of one another, which keeps the processor busy.
        for (product, &point) in products.iter_mut().zip(points) {
            if point != other {
                *product = multiply(*product, point ^ other);
            }
        }
    }
    products.into_iter().map(invert).collect()
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

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha20Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn message(n: usize) -> Vec<u8> {
        let mut message = vec![0; n * CHUNK_LEN];
        ChaCha20Rng::seed_from_u64(n as u64).fill_bytes(&mut message);
        message
    }

    fn chunks(message: &[u8], indices: &[u16]) -> Vec<(u16, Chunk)> {
        indices
            .iter()
            .map(|&index| (index, chunk(message, index)))
            .collect()
    }

    #[test]
    fn any_n_chunks_restore_the_message_wherever_they_lie() {
        for n in [1, 2, 3, 5, 30, 36, 40] {
            let message = message(n);
            let first: Vec<u16> = (0..40).take(n).collect();
            let parity: Vec<u16> = (100..140).take(n).collect();
            let last: Vec<u16> = (u16::MAX - 39..=u16::MAX).rev().take(n).collect();
            let mixed: Vec<u16> = (0..)
                .take(n)
                .map(|at| if at % 2 == 0 { at } else { 1000 * at })
                .collect();
            for indices in [first, parity, last, mixed] {
                let chunks = chunks(&message, &indices);
                assert_eq!(restore(&chunks, n), Some(message.clone()), "{indices:?}");
            }
        }
    }

    #[test]
    fn chunks_counted_twice_are_not_enough() {
        let message = message(3);
        assert_eq!(restore(&chunks(&message, &[7, 1]), 3), None);
        assert_eq!(restore(&chunks(&message, &[7, 1, 7, 1, 1]), 3), None);
        assert_eq!(restore(&[], 3), None);
        assert_eq!(restore(&chunks(&message, &[7, 1, 7, 9]), 3), Some(message));
    }

    #[test]
    fn of_two_chunks_with_one_index_the_first_counts() {
        let message = message(3);
        let mut chunks = chunks(&message, &[7, 1, 9]);
        chunks.push((1, [0xff; CHUNK_LEN]));
        chunks.push((7, [0xff; CHUNK_LEN]));
        assert_eq!(restore(&chunks, 3), Some(message));
    }

    #[test]
    fn what_is_missing_comes_from_the_smallest_indices() {
        let message = message(3);
        let mut chunks = chunks(&message, &[3, 0, 5]);
        chunks.push((6, [0xff; CHUNK_LEN]));
        assert_eq!(restore(&chunks, 3), Some(message.clone()));
        // What arrived of the message itself is taken as it is.
        chunks.push((2, [0xff; CHUNK_LEN]));
        let restored = restore(&chunks, 3).unwrap();
        assert_eq!(restored[..32], message[..32]);
        assert_eq!(restored[64..], [0xff; 32]);
    }

    #[test]
    fn no_message_has_no_chunks() {
        assert_eq!(chunk(&[], 0), [0; CHUNK_LEN]);
        assert_eq!(restore(&[], 0), Some(Vec::new()));
        assert_eq!(from_coefficients(&coefficients(&[])), Some(Vec::new()));
    }

    #[test]
    fn the_coefficients_are_those_of_the_chunks() {
        for n in [1, 3, 5, 30, 36] {
            let message = message(n);
            let polynomials = coefficients(&message);
            for index in [0, 1, 35, 36, 1000, u16::MAX] {
                // Horner's rule.
                let values: Lanes = std::array::from_fn(|lane| {
                    polynomials[lane]
                        .iter()
                        .rev()
                        .fold(0, |value, &coefficient| {
                            multiply(value, index) ^ coefficient
                        })
                });
                assert_eq!(to_chunk(&values), chunk(&message, index), "{n} {index}");
            }
            assert_eq!(from_coefficients(&polynomials), Some(message));
        }
    }

    #[test]
    fn polynomials_of_different_or_excessive_degree_are_refused() {
        let mut polynomials = coefficients(&message(5));
        polynomials[15].pop();
        assert_eq!(from_coefficients(&polynomials), None);
        let polynomials = std::array::from_fn(|_| vec![0; MOST_CHUNKS + 1]);
        assert_eq!(from_coefficients(&polynomials), None);
    }

    #[test]
    fn the_table_holds_what_is_computed_otherwise() {
        for n in 0..=MOST_CHUNKS {
            let points = first_points(n);
            assert_eq!(first_denominators(&points), denominators(&points));
        }
    }
}
