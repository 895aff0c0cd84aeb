//! From Rust's values to the protocol's.

use tidegate_protocol::{FieldPath, Invalid, Number, Timestamp, Value};

/// What can become a [`Value`]. A NaN, an infinity or an integer beyond 63 bits is `invalid`.
pub trait IntoValue {
    /// The value.
    fn into_value(self) -> Result<Value, Invalid>;
}

impl IntoValue for Value {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(self)
    }
}

impl IntoValue for &Value {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(self.clone())
    }
}

impl IntoValue for &str {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(Value::str(self))
    }
}

impl IntoValue for String {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(Value::str(&self))
    }
}

impl IntoValue for bool {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(Value::bool(self))
    }
}

impl IntoValue for f64 {
    fn into_value(self) -> Result<Value, Invalid> {
        Value::float(self)
    }
}

impl IntoValue for Timestamp {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(Value::timestamp(self))
    }
}

impl IntoValue for Number {
    fn into_value(self) -> Result<Value, Invalid> {
        match self {
            Self::Int(n) => Ok(Value::int(n)),
            Self::Float(x) => Value::float(x),
        }
    }
}

/// Nil.
impl IntoValue for () {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(Value::nil())
    }
}

/// Nil, or the value.
impl<T: IntoValue> IntoValue for Option<T> {
    fn into_value(self) -> Result<Value, Invalid> {
        self.map_or_else(|| Ok(Value::nil()), IntoValue::into_value)
    }
}

/// An array.
impl<T: IntoValue> IntoValue for Vec<T> {
    fn into_value(self) -> Result<Value, Invalid> {
        let items = self
            .into_iter()
            .map(IntoValue::into_value)
            .collect::<Result<Vec<_>, _>>()?;
        Ok(Value::array(items.iter()))
    }
}

/// Bytes.
impl IntoValue for &[u8] {
    fn into_value(self) -> Result<Value, Invalid> {
        Ok(Value::bin(self))
    }
}

macro_rules! integers {
    ($($int:ty),*) => {$(
        impl IntoValue for $int {
            fn into_value(self) -> Result<Value, Invalid> {
                match i64::try_from(self) {
                    Ok(n) => Ok(Value::int(n)),
                    Err(_) => Err(Invalid::new("value", "is an integer beyond 63 bits")),
                }
            }
        }
    )*};
}
integers!(i8, i16, i32, i64, isize, u8, u16, u32, u64, usize);

/// What can become a [`Number`], for `inc`.
pub trait IntoNumber {
    /// The number.
    fn into_number(self) -> Result<Number, Invalid>;
}

impl<T: IntoValue> IntoNumber for T {
    fn into_number(self) -> Result<Number, Invalid> {
        self.into_value()?
            .as_number()
            .ok_or_else(|| Invalid::new("value", "is not a number"))
    }
}

/// What can become the path of a field.
pub trait IntoPath {
    /// The path.
    fn into_path(self) -> Result<FieldPath, Invalid>;
}

impl IntoPath for FieldPath {
    fn into_path(self) -> Result<FieldPath, Invalid> {
        Ok(self)
    }
}

impl IntoPath for &FieldPath {
    fn into_path(self) -> Result<FieldPath, Invalid> {
        Ok(self.clone())
    }
}

/// A dotted path: `title`, `address.city`.
impl IntoPath for &str {
    fn into_path(self) -> Result<FieldPath, Invalid> {
        FieldPath::parse(self)
    }
}

/// What can become the fields of `set`, `merge`, `create` and `replace`: [`fields!`](crate::fields), an
/// array or vector of pairs, or a map [`Value`], whose keys are plain segments.
pub trait IntoFields {
    /// The fields by path, as given. Overlaps are found when the op is made.
    fn into_fields(self) -> Result<Vec<(FieldPath, Value)>, Invalid>;
}

impl<P: IntoPath, V: IntoValue, const N: usize> IntoFields for [(P, V); N] {
    fn into_fields(self) -> Result<Vec<(FieldPath, Value)>, Invalid> {
        self.into_iter()
            .map(|(path, value)| Ok((path.into_path()?, value.into_value()?)))
            .collect()
    }
}

impl<P: IntoPath, V: IntoValue> IntoFields for Vec<(P, V)> {
    fn into_fields(self) -> Result<Vec<(FieldPath, Value)>, Invalid> {
        self.into_iter()
            .map(|(path, value)| Ok((path.into_path()?, value.into_value()?)))
            .collect()
    }
}

impl<T: IntoFields> IntoFields for Result<T, Invalid> {
    fn into_fields(self) -> Result<Vec<(FieldPath, Value)>, Invalid> {
        self?.into_fields()
    }
}

impl IntoFields for &Value {
    fn into_fields(self) -> Result<Vec<(FieldPath, Value)>, Invalid> {
        let entries = self.as_map().ok_or_else(|| Invalid::new("fields", "are not a map"))?;
        entries
            .into_iter()
            .map(|(key, value)| Ok((FieldPath::segment(key)?, value)))
            .collect()
    }
}

/// Fields of mixed types: `fields! { "title" => "Hello", "stars" => 5, "address.city" => "Oslo" }`.
///
/// A bad path or value is reported by what takes the fields.
#[macro_export]
macro_rules! fields {
    ($($path:expr => $value:expr),* $(,)?) => {
        (|| -> ::core::result::Result<::std::vec::Vec<($crate::FieldPath, $crate::Value)>, $crate::Invalid> {
            ::core::result::Result::Ok(::std::vec![$((
                $crate::IntoPath::into_path($path)?,
                $crate::IntoValue::into_value($value)?,
            )),*])
        })()
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_mixed_types_are_written_in_one_place() {
        let made = fields! { "title" => "Hello", "stars" => 5, "score" => 0.5, "done" => false, "tags" => vec!["a"] };
        let made = made.into_fields().expect("valid");
        assert_eq!(made[1], (FieldPath::parse("stars").expect("valid"), Value::int(5)));
        assert_eq!(made.len(), 5);
        assert!(fields! { "a..b" => 1 }.is_err());
        assert!(fields! { "a" => f64::NAN }.is_err());
        assert!(fields! { "a" => u64::MAX }.is_err());
    }
}
