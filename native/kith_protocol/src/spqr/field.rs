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
/// gap above it, and its lowest bit is the sum in GF(2).
const fn multiply_polynomials(a: u16, b: u16) -> u32 {
    const EVERY_FOURTH: u32 = 0x1111_1111;
    let (a, b) = (a as u32, b as u32);
    let (a0, b0) = (a & EVERY_FOURTH, b & EVERY_FOURTH);
    let (a1, b1) = (a & EVERY_FOURTH << 1, b & EVERY_FOURTH << 1);
    let (a2, b2) = (a & EVERY_FOURTH << 2, b & EVERY_FOURTH << 2);
    let (a3, b3) = (a & EVERY_FOURTH << 3, b & EVERY_FOURTH << 3);
    let c0 = a0 * b0 ^ a1 * b3 ^ a2 * b2 ^ a3 * b1;
    let c1 = a0 * b1 ^ a1 * b0 ^ a2 * b3 ^ a3 * b2;
    let c2 = a0 * b2 ^ a1 * b1 ^ a2 * b0 ^ a3 * b3;
    let c3 = a0 * b3 ^ a1 * b2 ^ a2 * b1 ^ a3 * b0;
    c0 & EVERY_FOURTH | c1 & EVERY_FOURTH << 1 | c2 & EVERY_FOURTH << 2 | c3 & EVERY_FOURTH << 3
}

/// The remainder of a polynomial of degree 30 at most.
#[allow(clippy::cast_possible_truncation)]
const fn reduce(mut product: u32) -> u16 {
    // Each turn replaces the part above x¹⁶ by one of four degrees less: 14, 10, 6, 2, none.
    let mut turn = 0;
    while turn < 4 {
        let high = product >> 16;
        product = (product & 0xffff) ^ high ^ high << 1 ^ high << 3 ^ high << 12;
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
            *lane = *lane << 1 ^ REDUCTION & carry;
        }
        for (weight, row) in weights.iter().zip(rows) {
            let taken = (weight >> bit & 1).wrapping_neg();
            for (lane, symbol) in sum.iter_mut().zip(row) {
                *lane ^= symbol & taken;
            }
        }
    }
    sum
}
