//! Arithmetic and order of numbers, the same on every side.

use std::cmp::Ordering;

/// An integer or a finite double.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Number {
    /// Integer.
    Int(i64),
    /// Finite double.
    Float(f64),
}

impl Number {
    /// The sum: integers saturate at 63 bits, doubles at their largest; an integer and a double give a double.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        #[allow(clippy::cast_precision_loss)]
        let float = |n| match n {
            Self::Int(n) => n as f64,
            Self::Float(x) => x,
        };
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => Self::Int(a.saturating_add(b)),
            (a, b) => Self::Float((float(a) + float(b)).clamp(f64::MIN, f64::MAX)),
        }
    }

    /// Exact comparison across integer and double.
    pub fn compare(self, other: Self) -> Ordering {
        match (self, other) {
            (Self::Int(a), Self::Int(b)) => a.cmp(&b),
            (Self::Float(a), Self::Float(b)) => a.partial_cmp(&b).expect("finite"),
            (Self::Int(a), Self::Float(b)) => compare_int_float(a, b),
            (Self::Float(a), Self::Int(b)) => compare_int_float(b, a).reverse(),
        }
    }
}

fn compare_int_float(a: i64, b: f64) -> Ordering {
    const TWO_63: f64 = 9_223_372_036_854_775_808.0;
    if b >= TWO_63 {
        return Ordering::Less;
    }
    if b < -TWO_63 {
        return Ordering::Greater;
    }
    #[allow(clippy::cast_possible_truncation)]
    let whole = b.trunc() as i64;
    a.cmp(&whole).then_with(|| 0.0.partial_cmp(&b.fract()).expect("finite"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_compare_exactly_and_saturate() {
        let big = Number::Int((1 << 53) + 1);
        assert_eq!(big.compare(Number::Float(9_007_199_254_740_992.0)), Ordering::Greater);
        assert_eq!(Number::Int(-1).compare(Number::Float(-1.5)), Ordering::Greater);
        assert_eq!(Number::Float(1e300).compare(big), Ordering::Greater);
        assert_eq!(Number::Int(1).compare(Number::Float(1.0)), Ordering::Equal);
        assert_eq!(Number::Int(i64::MAX).plus(Number::Int(1)), Number::Int(i64::MAX));
        assert_eq!(
            Number::Float(f64::MAX).plus(Number::Float(f64::MAX)),
            Number::Float(f64::MAX)
        );
        assert_eq!(Number::Int(1).plus(Number::Float(0.5)), Number::Float(1.5));
    }
}
