//! What a setting's value may be, and how one is written: the same in the file, in a variable and in an option.

use crate::store::embedded::Durability;
use redis::IntoConnectionInfo as _;
use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// 1,024 bytes.
pub(super) const KIB: u64 = 1 << 10;
/// 1,024 KiB.
pub(super) const MIB: u64 = 1 << 20;
/// 1,024 MiB.
pub(super) const GIB: u64 = 1 << 30;
/// A second, in ms.
pub(super) const SECOND: u64 = 1_000;
/// A minute, in ms.
pub(super) const MINUTE: u64 = 60 * SECOND;
/// An hour, in ms.
pub(super) const HOUR: u64 = 60 * MINUTE;
/// A day, in ms.
pub(super) const DAY: u64 = 24 * HOUR;

/// How no limit is written.
const NONE: &str = "none";
/// The largest first, so that a value is shown in the largest that it is a multiple of.
const BYTE_UNITS: [(&str, u64); 5] = [("TiB", 1 << 40), ("GiB", GIB), ("MiB", MIB), ("KiB", KIB), ("B", 1)];
const TIME_UNITS: [(&str, u64); 5] = [("d", DAY), ("h", HOUR), ("m", MINUTE), ("s", SECOND), ("ms", 1)];

/// What kind of value a setting has. Numbers have the least and the most that they may be.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `true` or `false`.
    Switch,
    /// A number of things.
    Count(u64, u64),
    /// A number of bytes.
    Bytes(u64, u64),
    /// A time, in ms.
    Time(u64, u64),
    /// One of these.
    Choice(&'static [&'static str]),
    /// An address and a port to listen on.
    Address,
    /// A directory.
    Directory,
    /// A file.
    File,
    /// A name of at most so many bytes.
    Name(usize),
    /// What a log shows.
    Filter,
    /// Where Redis is.
    Redis,
}

/// A setting's value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    /// No limit.
    None,
    /// `true` or `false`.
    Switch(bool),
    /// A count, bytes or ms.
    Number(u64),
    /// An address and a port.
    Address(SocketAddr),
    /// A path.
    Path(PathBuf),
    /// One of several words, a name or a filter.
    Text(String),
}

impl Kind {
    /// Reads a value. `optional` says whether it may be `none`. Errors say what is wrong and what would be right.
    pub fn parse(self, text: &OsStr, optional: bool) -> Result<Value, String> {
        if let Self::Directory | Self::File = self {
            return match text.is_empty() {
                true => Err(format!("it is empty; {}", self.example(optional))),
                false if optional && text == NONE => Ok(Value::None),
                false => Ok(Value::Path(text.into())),
            };
        }
        let text = text.to_str().ok_or("it is not UTF-8")?.trim();
        if optional && text == NONE {
            return Ok(Value::None);
        }
        match self {
            Self::Switch => match text {
                "true" => Ok(Value::Switch(true)),
                "false" => Ok(Value::Switch(false)),
                _ => Err("write true or false".to_owned()),
            },
            Self::Count(..) => self.number(digits(text).ok_or_else(|| self.example(optional))?),
            Self::Bytes(..) => self.number(quantity(text, &BYTE_UNITS).ok_or_else(|| self.example(optional))?),
            Self::Time(..) => self.number(quantity(text, &TIME_UNITS).ok_or_else(|| self.example(optional))?),
            Self::Choice(words) if words.contains(&text) => Ok(Value::Text(text.to_owned())),
            Self::Choice(words) => Err(format!("write {}", words.join(" or "))),
            Self::Address => address(text).map(Value::Address),
            Self::Directory | Self::File => Ok(Value::Path(text.into())),
            Self::Name(most) => match text.len() {
                0 => Err("it is empty".to_owned()),
                n if n > most => Err(format!("{n} bytes are too many; it has {most} at most")),
                _ if text.chars().any(char::is_control) => Err("it contains a control character".to_owned()),
                _ => Ok(Value::Text(text.to_owned())),
            },
            Self::Filter => match EnvFilter::try_new(text) {
                Ok(_) => Ok(Value::Text(text.to_owned())),
                Err(error) => Err(format!(
                    "{error}; a filter is a level (error, warn, info, debug, trace), or as in warn,tidegate::session=debug"
                )),
            },
            Self::Redis => match text.into_connection_info() {
                Ok(_) if text.ends_with("#insecure") => Err(
                    "#insecure: a certificate that is not checked says nothing; name the authority in redis.ca"
                        .to_owned(),
                ),
                Ok(_) if text.starts_with("redis://") || text.starts_with("rediss://") => {
                    Ok(Value::Text(text.to_owned()))
                }
                Ok(_) => Err(format!(
                    "another scheme than redis:// and rediss://; {}",
                    self.example(optional)
                )),
                Err(error) => Err(format!("{error}; {}", self.example(optional))),
            },
        }
    }

    /// A number that is in range.
    pub fn number(self, n: u64) -> Result<Value, String> {
        let (Self::Count(least, most) | Self::Bytes(least, most) | Self::Time(least, most)) = self else {
            return Err(self.example(false));
        };
        if (least..=most).contains(&n) {
            return Ok(Value::Number(n));
        }
        let plain = match self {
            // Whoever writes 30 for 30 seconds.
            Self::Time(..) if n < least => " (a number without a unit is in ms)",
            _ => "",
        };
        let many = if n < least { "too little" } else { "too much" };
        Err(format!(
            "{} is {many}{plain}; it may be {}",
            self.show_number(n),
            self.range(false)
        ))
    }

    /// What it wants, in words, where it got something else.
    pub fn example(self, optional: bool) -> String {
        let none = if optional { ", or none" } else { "" };
        match self {
            Self::Switch => "write true or false".to_owned(),
            Self::Count(..) => format!("write a whole number{none}"),
            Self::Bytes(..) => format!("write a whole number of bytes, as in 65536, 512KiB, 1MiB or 2GiB{none}"),
            Self::Time(..) => format!("write a whole number and its unit, as in 500ms, 30s, 5m, 2h or 90d{none}"),
            Self::Choice(words) => format!("write {}", words.join(" or ")),
            Self::Address => format!("write an address and a port, as in {}", super::DEFAULT_LISTEN),
            Self::Directory => format!("write the path of a directory{none}"),
            Self::File => format!("write the path of a file{none}"),
            Self::Name(_) => "write a name".to_owned(),
            Self::Filter => "write a filter, as in info".to_owned(),
            Self::Redis => {
                format!("write a URL, as in redis://user:password@redis.example:6379/0, or rediss:// over TLS{none}")
            }
        }
    }

    /// What it may be, for the manual and for whoever wrote something else.
    pub fn range(self, optional: bool) -> String {
        let none = if optional { ", or none" } else { "" };
        match self {
            Self::Switch => "true or false".to_owned(),
            Self::Count(least, u64::MAX) | Self::Bytes(least, u64::MAX) => {
                format!("{} or more{none}", self.show_number(least))
            }
            Self::Count(least, most) | Self::Bytes(least, most) | Self::Time(least, most) => {
                format!("{} to {}{none}", self.show_number(least), self.show_number(most))
            }
            Self::Choice(words) => words.join(" or "),
            Self::Address => "an address and a port".to_owned(),
            Self::Directory => format!("a directory{none}"),
            Self::File => format!("a file{none}"),
            Self::Name(most) => format!("1 to {most} bytes"),
            Self::Filter => "a level, or levels by module".to_owned(),
            Self::Redis => format!("a URL{none}"),
        }
    }

    /// A value as [`Kind::parse`] reads it, but for passwords.
    pub fn show(self, value: &Value) -> String {
        match value {
            Value::None => NONE.to_owned(),
            Value::Switch(on) => on.to_string(),
            Value::Number(n) => self.show_number(*n),
            Value::Address(address) => address.to_string(),
            Value::Path(path) => path.display().to_string(),
            Value::Text(url) if matches!(self, Self::Redis) => without_password(url),
            Value::Text(text) => text.clone(),
        }
    }

    fn show_number(self, n: u64) -> String {
        let units: &[(&str, u64)] = match self {
            Self::Bytes(..) => &BYTE_UNITS,
            Self::Time(..) => &TIME_UNITS,
            _ => &[],
        };
        let fits = units.iter().find(|(_, size)| n != 0 && n.is_multiple_of(*size));
        match fits {
            // Plain bytes need no unit.
            None | Some(("B", _)) => n.to_string(),
            Some((unit, size)) => format!("{}{unit}", n / size),
        }
    }
}

/// A URL with stars in the place of its password.
fn without_password(url: &str) -> String {
    let parts = url.split_once("://").and_then(|(scheme, rest)| {
        let (user, host) = rest.rsplit_once('@')?;
        let (name, _) = user.split_once(':')?;
        Some(format!("{scheme}://{name}:***@{host}"))
    });
    parts.unwrap_or_else(|| url.to_owned())
}

/// `1000` or `1_000`.
fn digits(text: &str) -> Option<u64> {
    let plain = text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(|b| b.is_ascii_digit() || b == b'_');
    plain.then(|| text.replace('_', "").parse().ok()).flatten()
}

/// `512KiB`, `512 KiB`, `524288`.
fn quantity(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '_')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let size = match unit.trim_start() {
        "" => 1,
        unit => units.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit))?.1,
    };
    digits(number)?.checked_mul(size)
}

/// An address to listen on: `127.0.0.1:8080`, `[::1]:8080`, `localhost:8080`.
fn address(text: &str) -> Result<SocketAddr, String> {
    let plain = text
        .strip_prefix("localhost:")
        .map(|port| format!("{}:{port}", Ipv4Addr::LOCALHOST));
    plain.as_deref().unwrap_or(text).parse().map_err(|_| {
        let hint = match text.parse::<IpAddr>() {
            Ok(_) => "it lacks a port",
            Err(_) => "that is no address and port",
        };
        format!("{hint}; one looks like {} or [::1]:8080", super::DEFAULT_LISTEN)
    })
}

/// What a setting is kept in.
pub(super) trait Field: Sized {
    /// What it holds.
    fn value(&self) -> Value;
    /// What holds a value; nothing if it is of another kind, or does not fit.
    fn of(value: Value) -> Option<Self>;
}

/// A field whose values are those of one variant.
macro_rules! field {
    ($($type:ty: $variant:ident, $into:expr, $from:expr;)*) => {$(
        impl Field for $type {
            fn value(&self) -> Value {
                Value::$variant($into(self))
            }

            fn of(value: Value) -> Option<Self> {
                match value {
                    Value::$variant(inner) => $from(inner),
                    _ => None,
                }
            }
        }
    )*};
}

field! {
    bool: Switch, |on: &bool| *on, Some;
    u64: Number, |n: &u64| *n, Some;
    usize: Number, |n: &usize| *n as u64, |n: u64| n.try_into().ok();
    Duration: Number, |time: &Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX), |ms| Some(Duration::from_millis(ms));
    SocketAddr: Address, |address: &SocketAddr| *address, Some;
    PathBuf: Path, PathBuf::clone, Some;
    String: Text, String::clone, Some;
    Durability: Text, |durability: &Durability| match durability {
        Durability::Fsync => "fsync".to_owned(),
        Durability::Memory => "memory".to_owned(),
    }, |name: String| match name.as_str() {
        "fsync" => Some(Durability::Fsync),
        "memory" => Some(Durability::Memory),
        _ => None,
    };
}

impl<T: Field> Field for Option<T> {
    fn value(&self) -> Value {
        self.as_ref().map_or(Value::None, Field::value)
    }

    fn of(value: Value) -> Option<Self> {
        match value {
            Value::None => Some(None),
            value => T::of(value).map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: Kind, text: &str) -> Result<Value, String> {
        kind.parse(OsStr::new(text), false)
    }

    #[test]
    fn sizes_and_times_are_read_with_units_and_as_plain_numbers_and_shown_as_they_are_read() {
        let (bytes, time) = (Kind::Bytes(0, u64::MAX), Kind::Time(0, u64::MAX));
        for (kind, text, number, shown) in [
            (bytes, "65536", 65_536, "64KiB"),
            (bytes, "65_537", 65_537, "65537"),
            (bytes, "512KiB", 512 << 10, "512KiB"),
            (bytes, "512 kib", 512 << 10, "512KiB"),
            (bytes, "1024MiB", 1 << 30, "1GiB"),
            (bytes, "3TiB", 3 << 40, "3TiB"),
            (bytes, "7B", 7, "7"),
            (bytes, "0", 0, "0"),
            (time, "1500", 1_500, "1500ms"),
            (time, "30s", 30_000, "30s"),
            (time, "90 s", 90_000, "90s"),
            (time, "60m", 3_600_000, "1h"),
            (time, "90d", 90 * DAY, "90d"),
        ] {
            let value = parse(kind, text).expect(text);
            assert_eq!(value, Value::Number(number), "{text}");
            assert_eq!(kind.show(&value), shown, "{text}");
            assert_eq!(parse(kind, shown), Ok(value), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_or_time_is_refused_with_examples_and_not_guessed_at() {
        let (bytes, time, count) = (
            Kind::Bytes(0, u64::MAX),
            Kind::Time(0, u64::MAX),
            Kind::Count(0, u64::MAX),
        );
        for (kind, texts, wants) in [
            (
                bytes,
                ["1.5MiB", "1MB", "1M", "-1", "", "KiB", "99999999999TiB", "_1"],
                "512KiB",
            ),
            (time, ["30sec", "1h30m", "1.5h", "-1s", "", "s", "∞", "1w"], "30s"),
            (
                count,
                ["1,000", "1e3", "+1", "-1", "", "many", "1KiB", "99999999999999999999"],
                "whole number",
            ),
        ] {
            for text in texts {
                let error = parse(kind, text).expect_err(text);
                assert!(error.contains(wants), "{text}: {error}");
            }
        }
    }

    #[test]
    fn a_number_out_of_range_is_refused_with_the_range() {
        let time = Kind::Time(SECOND, HOUR);
        assert_eq!(
            parse(time, "30"),
            Err("30ms is too little (a number without a unit is in ms); it may be 1s to 1h".to_owned())
        );
        assert_eq!(parse(time, "2h"), Err("2h is too much; it may be 1s to 1h".to_owned()));
        for edge in ["1s", "1h"] {
            parse(time, edge).expect(edge);
        }
        assert_eq!(
            parse(Kind::Count(1, u64::MAX), "0"),
            Err("0 is too little; it may be 1 or more".to_owned())
        );
    }

    #[test]
    fn none_is_for_what_may_have_no_limit() {
        let kind = Kind::Count(1, 9);
        assert_eq!(kind.parse(OsStr::new("none"), true), Ok(Value::None));
        assert!(parse(kind, "none").is_err());
    }

    #[test]
    fn an_address_has_a_port() {
        let parse = |text| parse(Kind::Address, text);
        assert_eq!(parse("localhost:2"), Ok(Value::Address("127.0.0.1:2".parse().unwrap())));
        assert_eq!(parse("[::1]:2"), Ok(Value::Address("[::1]:2".parse().unwrap())));
        assert!(parse("127.0.0.1").unwrap_err().contains("it lacks a port"));
        assert!(parse("here").unwrap_err().contains("no address"));
    }

    #[test]
    fn a_url_of_redis_is_shown_without_its_password() {
        let url = "redis://app:secret@host:6379/1";
        let value = parse(Kind::Redis, url).unwrap();
        assert_eq!(value, Value::Text(url.to_owned()));
        assert_eq!(Kind::Redis.show(&value), "redis://app:***@host:6379/1");
        for (url, wants) in [
            ("http://host", "redis://"),
            ("redis+unix:///socket", "another scheme"),
            ("rediss://host/#insecure", "redis.ca"),
            ("host", "redis://"),
        ] {
            assert!(parse(Kind::Redis, url).unwrap_err().contains(wants), "{url}");
        }
    }

    #[test]
    fn a_filter_that_the_log_cannot_read_is_refused() {
        assert!(parse(Kind::Filter, "warn,tidegate::session=debug").is_ok());
        let error = parse(Kind::Filter, "tidegate=loud").unwrap_err();
        assert!(error.contains("a level (error"), "{error}");
    }
}
