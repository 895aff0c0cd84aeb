//! `path=text` and `path:=JSON`, as `set` and `create` take them.

use super::json;
use tidegate_protocol::{FieldPath, Number, Value};

/// A field and what to write there.
#[derive(Clone, PartialEq, Debug)]
pub(crate) struct Assignment {
    /// The field.
    pub path: FieldPath,
    /// Its new value.
    pub value: Value,
}

/// Parses `path=text` or `path:=JSON`. The first `=` ends the path; a `:` before it means JSON.
pub(crate) fn parse(argument: &str) -> Result<Assignment, String> {
    let Some((left, right)) = argument.split_once('=') else {
        return Err("has no =: write path=text, or path:=JSON for anything but text".into());
    };
    let (path, is_json) = match left.strip_suffix(':') {
        Some(path) => (path, true),
        None => (left, false),
    };
    if path.is_empty() {
        return Err("names no field before the =".into());
    }
    let path = FieldPath::parse(path).map_err(|e| e.to_string())?;
    let value = if is_json {
        json::parse_value(right).map_err(|e| format!("after := comes JSON, and {right:?} is not: {e}"))?
    } else {
        Value::str(right)
    };
    Ok(Assignment { path, value })
}

/// Parses a number: whole if it looks whole, otherwise a double.
pub(crate) fn number(text: &str) -> Result<Number, String> {
    if let Ok(n) = text.parse::<i64>() {
        return Ok(Number::Int(n));
    }
    let is_whole = text.trim_start_matches(['+', '-']).bytes().all(|b| b.is_ascii_digit());
    match text.parse::<f64>() {
        _ if is_whole && !text.is_empty() => Err("is beyond 63 bits".into()),
        Ok(x) if x.is_finite() => Ok(Number::Float(x)),
        _ => Err("is not a number".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(argument: &str) -> (String, Value) {
        let Assignment { path, value } = parse(argument).expect(argument);
        (path.to_string(), value)
    }

    #[test]
    fn an_equals_sign_takes_text_and_a_colon_before_it_takes_json() {
        assert_eq!(one("title=Hello"), ("title".into(), Value::str("Hello")));
        assert_eq!(one("address.city=Oslo"), ("address.city".into(), Value::str("Oslo")));
        assert_eq!(one("stars:=5"), ("stars".into(), Value::int(5)));
        assert_eq!(one("done:=true"), ("done".into(), Value::bool(true)));
        assert_eq!(one("x:=1.0"), ("x".into(), Value::float(1.0).unwrap()));
        assert_eq!(one("stars=5"), ("stars".into(), Value::str("5")));
        assert_eq!(one("empty="), ("empty".into(), Value::str("")));
    }

    #[test]
    fn only_the_first_equals_sign_parts_the_path_from_the_text() {
        assert_eq!(one("sum=1+1=2"), ("sum".into(), Value::str("1+1=2")));
        assert_eq!(one("url=http://a/?b:=c"), ("url".into(), Value::str("http://a/?b:=c")));
        assert_eq!(one(r"a\.b=c"), (r"a\.b".into(), Value::str("c")));
        assert_eq!(one("two words=c"), ("two words".into(), Value::str("c")));
    }

    #[test]
    fn a_bad_assignment_says_what_is_wrong_with_it() {
        for (argument, wants) in [
            ("title", "no ="),
            ("=x", "names no field"),
            (":=1", "names no field"),
            ("a..b=x", "empty segment"),
            ("n:=", "JSON"),
            ("n:=Oslo", "JSON"),
            ("n:=1 2", "JSON"),
            ("n:={\"a\":1,\"a\":2}", "twice"),
            ("n:=9223372036854775808", "63 bits"),
        ] {
            let error = parse(argument).expect_err(argument);
            assert!(error.contains(wants), "{argument}: {error}");
        }
    }

    #[test]
    fn numbers_are_whole_or_decimal() {
        assert_eq!(number("-3"), Ok(Number::Int(-3)));
        assert_eq!(number("0.5"), Ok(Number::Float(0.5)));
        assert_eq!(number("1e3"), Ok(Number::Float(1000.0)));
        for bad in ["", "x", "nan", "inf", "1e999", "9223372036854775808"] {
            assert!(number(bad).is_err(), "{bad}");
        }
    }
}
