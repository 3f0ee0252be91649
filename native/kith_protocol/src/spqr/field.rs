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
    const EVERY_FOURTH: [u32; 4] = [0x1111_1111, 0x2222_2222, 0x4444_4444, 0x8888_8888];
    let mut product = 0;
    let mut of_sum = 0;
    while of_sum < 4 {
        let mut sum = 0;
        let mut of_a = 0;
        while of_a < 4 {
            let of_b = (of_sum + 4 - of_a) % 4;
            sum ^= (a as u32 & EVERY_FOURTH[of_a]) * (b as u32 & EVERY_FOURTH[of_b]);
            of_a += 1;
        }
        product |= sum & EVERY_FOURTH[of_sum];
        of_sum += 1;
    }
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
