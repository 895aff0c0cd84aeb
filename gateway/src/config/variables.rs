//! Variables of the environment: `TIDEGATE_` and the key in capitals, `.` as `_`. One that is not known is a mistake, since
//! it is most likely one that was mistyped.

use super::table::{ROWS, Row};
use super::{Config, Mistake, Origin};
use std::ffi::OsString;

/// How the gateway's variables begin.
pub const PREFIX: &str = "TIDEGATE_";
/// Names the configuration file.
pub const CONFIG: &str = "TIDEGATE_CONFIG";
/// Those that are no setting of the gateway, but the client commands' (and [`CONFIG`]).
const OTHERS: [&str; 3] = [CONFIG, "TIDEGATE_URL", "TIDEGATE_TOKEN"];
/// How like two names have to be for one to be taken for the other mistyped; of 1.
const ALIKE: f64 = 0.6;

pub(super) fn read(variables: &[(OsString, OsString)], config: &mut Config) -> Vec<Mistake> {
    // The order of the environment is nobody's; that of the names is the same every time.
    let mut ours: Vec<_> = variables
        .iter()
        .filter_map(|(name, value)| Some((name.to_str()?, value)))
        .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
        .collect();
    ours.sort();
    let mut wrong = Vec::new();
    for (name, value) in ours {
        let at = format!("{name}={}", value.display());
        match ROWS.iter().position(|row| row.variable() == name) {
            Some(row) => wrong.extend(config.text(row, value, Origin::Variable(name.to_owned()), at)),
            None if OTHERS.contains(&name) || is_of_a_service(name, &value.to_string_lossy()) => {}
            None => wrong.push(Mistake::new(at, unknown(name, Row::variable))),
        }
    }
    wrong
}

/// Kubernetes gives every container variables for each service, and Docker did for links: one called `tidegate` would keep
/// the gateway from starting. <https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables>
fn is_of_a_service(name: &str, value: &str) -> bool {
    let port = |rest: &str| {
        let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
        ["_TCP", "_UDP", "_SCTP"].iter().any(|of| rest.starts_with(of))
    };
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_SERVICE_PORT")
        || name.contains("_SERVICE_PORT_")
        || name.ends_with("_PORT") && value.contains("://")
        || name.split_once("_PORT_").is_some_and(|(_, rest)| port(rest))
}

/// That nothing is called so, and what may have been meant. `name` gives a row's name in the place that is spoken of.
pub(super) fn unknown(found: &str, name: impl Fn(&Row) -> String) -> String {
    let last = |text: &str| text.rsplit('.').next().map(str::to_lowercase).unwrap_or_default();
    let likeness = |row: &Row| {
        let whole = strsim::normalized_damerau_levenshtein(&found.to_lowercase(), &name(row).to_lowercase());
        // A key without its section, or in another one.
        let tail = strsim::normalized_damerau_levenshtein(&last(found), &last(&name(row)));
        whole.max(tail * 0.9)
    };
    let rows = ROWS.iter().map(|row| (likeness(row), row));
    match rows.max_by(|(one, _), (other, _)| one.total_cmp(other)) {
        Some((alike, row)) if alike >= ALIKE => format!("no setting is called so; {} is one", name(row)),
        _ => "no setting is called so; `tidegate config show` lists them all".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_have_been_meant_is_the_name_most_like_it() {
        let key = |row: &Row| row.key.to_owned();
        for (found, wants) in [
            ("limits.mesage_bytes", "limits.message_bytes is one"),
            ("message_bytes", "limits.message_bytes is one"),
            ("connections.ops", "limits.ops is one"),
            ("lisen", "listen is one"),
            ("data-dir", "data_dir is one"),
            ("colour", "config show"),
        ] {
            let text = unknown(found, key);
            assert!(text.contains(wants), "{found}: {text}");
        }
        let text = unknown("TIDEGATE_LIMIT_OPS", Row::variable);
        assert!(text.contains("TIDEGATE_LIMITS_OPS is one"), "{text}");
    }

    #[test]
    fn what_kubernetes_says_of_a_service_called_tidegate_is_nobodys_mistake() {
        let variables = |list: &[(&str, &str)]| -> Vec<(OsString, OsString)> {
            list.iter().map(|(name, value)| (name.into(), value.into())).collect()
        };
        let kubernetes = variables(&[
            ("TIDEGATE_SERVICE_HOST", "10.0.0.11"),
            ("TIDEGATE_SERVICE_PORT", "80"),
            ("TIDEGATE_SERVICE_PORT_WS", "80"),
            ("TIDEGATE_PORT", "tcp://10.0.0.11:80"),
            ("TIDEGATE_PORT_80_TCP", "tcp://10.0.0.11:80"),
            ("TIDEGATE_PORT_80_TCP_PROTO", "tcp"),
            ("TIDEGATE_PORT_80_TCP_ADDR", "10.0.0.11"),
            ("TIDEGATE_REDIS_PORT_6379_TCP_PORT", "6379"),
        ]);
        assert_eq!(read(&kubernetes, &mut Config::default()), []);
        let mistyped = variables(&[("TIDEGATE_PORT", "8080"), ("TIDEGATE_PORTS", "tcp://10.0.0.11:80")]);
        assert_eq!(read(&mistyped, &mut Config::default()).len(), 2);
    }
}
