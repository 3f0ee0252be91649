//! The field GF(2¹⁶) with `x¹⁶ + x¹² + x³ + x + 1`. Addition is XOR.
//!
//! Elements are `u16`, bit `i` the coefficient of `xⁱ`. No table and no branch depends on them.

/// The polynomial without its highest term: what `x¹⁶` equals.
const REDUCTION: u16 = 0x100b;

/// Sixteen elements that are worked on together: one chunk.
pub(super) type Lanes = [u16; 16];

/// `a · b`.
pub(super) const fn multiply(a: u16, b: u16) -> u16 {
    reduce(multiply_polynomials(a, b))
}

/// The product of two polynomials over GF(2), by integer multiplication.
///
/// Of each factor only every fourth bit is taken at a time. A sum of at most four ones then fits in the
/// gap above it, and its lowest bit is the sum in GF(2). One multiplication makes two such products.
const fn multiply_polynomials(a: u16, b: u16) -> u32 {
    const EVERY_FOURTH: [u64; 4] = [0x1111_1111, 0x2222_2222, 0x4444_4444, 0x8888_8888];
    const fn parts(factor: u16) -> [u64; 4] {
        let factor = factor as u64;
        [
            factor & EVERY_FOURTH[0],
            factor & EVERY_FOURTH[1],
            factor & EVERY_FOURTH[2],
            factor & EVERY_FOURTH[3],
        ]
    }
    let a = parts(a);
    let [b0, b1, b2, b3] = parts(b);
    let (b01, b12, b23, b30) = (b0 | b1 << 32, b1 | b2 << 32, b2 | b3 << 32, b3 | b0 << 32);
    // Bits 4n and, 32 higher, 4n + 1 of the product; then 4n + 2 and 4n + 3.
    let low = (a[0] * b01) ^ (a[1] * b30) ^ (a[2] * b23) ^ (a[3] * b12);
    let high = (a[0] * b23) ^ (a[1] * b12) ^ (a[2] * b01) ^ (a[3] * b30);
    let product = (low & EVERY_FOURTH[0])
        | ((low >> 32) & EVERY_FOURTH[1])
        | (high & EVERY_FOURTH[2])
        | ((high >> 32) & EVERY_FOURTH[3]);
    #[allow(clippy::cast_possible_truncation)]
    let product = product as u32;
    product
}

/// The remainder of a polynomial of degree 30 at most.
#[allow(clippy::cast_possible_truncation)]
const fn reduce(mut product: u32) -> u16 {
    // Each turn replaces the part above x¹⁶ by one of four degrees less: 14, 10, 6, 2, none.
    let mut turn = 0;
    while turn < 4 {
        let high = product >> 16;
        product = (product & 0xffff) ^ high ^ (high << 1) ^ (high << 3) ^ (high << 12);
        turn += 1;
    }
    product as u16
}

/// `1 / a`, and 0 for 0: `a` to the power of 2¹⁶ − 2.
pub(super) const fn invert(a: u16) -> u16 {
    let mut square = a;
    let mut inverse = 1;
    let mut turn = 1;
    while turn < 16 {
        square = multiply(square, square);
        inverse = multiply(inverse, square);
        turn += 1;
    }
    inverse
}

/// `Σ weight · row`, all sixteen lanes at once.
///
/// The bits of the weights are gone through from the highest down, so that a step is an AND and an XOR on
/// whole rows, and the reduction happens once for all of them.
pub(super) fn combine(weights: &[u16], rows: &[Lanes]) -> Lanes {
    let mut sum: Lanes = [0; 16];
    for bit in (0..16).rev() {
        for lane in &mut sum {
            let carry = (*lane >> 15).wrapping_neg();
            *lane = (*lane << 1) ^ (REDUCTION & carry);
        }
        for (weight, row) in weights.iter().zip(rows) {
            let taken = ((weight >> bit) & 1).wrapping_neg();
            for (lane, symbol) in sum.iter_mut().zip(row) {
                *lane ^= symbol & taken;
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition: shift and add, reducing at every step.
    fn multiply_bit_by_bit(a: u16, b: u16) -> u16 {
        (0..16).rev().fold(0, |product: u16, bit| {
            let carry = if product >> 15 == 1 { REDUCTION } else { 0 };
            let taken = if b >> bit & 1 == 1 { a } else { 0 };
            product << 1 ^ carry ^ taken
        })
    }

    fn some_elements() -> impl Iterator<Item = u16> {
        (0..=u16::MAX).step_by(251).chain([1, 2, 0x8000, u16::MAX])
    }

    #[test]
    fn products_are_those_of_the_definition() {
        for a in some_elements() {
            for b in some_elements() {
                assert_eq!(multiply(a, b), multiply_bit_by_bit(a, b), "{a} · {b}");
            }
        }
    }

    #[test]
    fn every_element_but_zero_has_an_inverse() {
        assert_eq!(invert(0), 0);
        for a in 1..=u16::MAX {
            assert_eq!(multiply(a, invert(a)), 1, "{a}");
        }
    }

    #[test]
    fn combining_multiplies_and_adds_lane_by_lane() {
        let weights: Vec<u16> = some_elements().collect();
        let rows: Vec<Lanes> = (1..)
            .take(weights.len())
            .map(|row: u16| std::array::from_fn(|lane| row.wrapping_mul(0x9e37) ^ 0x1111 << lane))
            .collect();
        for length in [0, 1, 2, weights.len()] {
            let expected: Lanes = std::array::from_fn(|lane| {
                weights[..length]
                    .iter()
                    .zip(&rows)
                    .fold(0, |sum, (&weight, row)| sum ^ multiply(weight, row[lane]))
            });
            assert_eq!(combine(&weights[..length], &rows), expected);
        }
    }
}
