//! What holds for every setting, row by row, so that none can be forgotten.

use super::check::{RULES, Rule};
use super::*;
use std::collections::BTreeSet;

const PATH: &str = "etc/tidegate.toml";

fn load(file: &str, variables: &[(&str, &str)], sets: &[&str]) -> (Config, Vec<String>) {
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.into(), value.into()))
        .collect();
    let arguments: Vec<_> = sets.iter().map(|set| Argument::Set(set.into())).collect();
    let file = File {
        path: Path::new(PATH),
        text: file,
    };
    let (config, wrong) = Config::load(Some(file), &variables, &arguments);
    (config, wrong.iter().map(ToString::to_string).collect())
}

/// Values of a setting that differ from each other, where it has more than two: none of them is its default.
fn values(row: &Row) -> [String; 3] {
    let default = row.default();
    match row.kind {
        Kind::Switch => ["true", "false", "true"].map(str::to_owned),
        Kind::Choice(words) => [words[1], words[0], words[1]].map(str::to_owned),
        Kind::Address => ["127.0.0.1:1", "127.0.0.1:2", "[::1]:3"].map(str::to_owned),
        Kind::Directory | Kind::File | Kind::Name(_) => ["one", "two", "three"].map(str::to_owned),
        Kind::Redis => ["redis://one", "redis://two:1/", "redis://three/4"].map(str::to_owned),
        Kind::Filter => ["warn", "debug", "trace,tidegate=info"].map(str::to_owned),
        Kind::Count(least, _) | Kind::Bytes(least, _) | Kind::Time(least, _) => {
            let mut others = (least..).map(Value::Number).filter(|value| *value != default);
            [(); 3].map(|()| row.kind.show(&others.next().expect("endless")))
        }
    }
}

/// A line of the file.
fn line(row: &Row, value: &str) -> String {
    let section = row
        .section()
        .map(|section| format!("[{section}]\n"))
        .unwrap_or_default();
    format!("\n{section}{} = {value:?}\n", row.name())
}

#[test]
fn every_setting_is_set_by_the_file_a_variable_and_an_option_and_the_later_wins() {
    for row in ROWS {
        let (key, variable) = (row.key, row.variable());
        let [in_file, in_variable, in_option] = values(row);
        let file = line(row, &in_file);
        let at = if row.section().is_some() { 3 } else { 2 };
        let by_file = (
            Origin::File {
                path: PATH.into(),
                line: at,
            },
            match row.kind {
                Kind::Directory | Kind::File => format!("etc/{in_file}"),
                _ => in_file,
            },
        );
        let by_variable = (Origin::Variable(variable.clone()), in_variable.clone());
        let by_option = (Origin::Option(format!("--set {key}")), in_option.clone());
        let set = format!("{key}={in_option}");
        let set = set.as_str();
        let environment = [(variable.as_str(), in_variable.as_str())];
        for (wants, file, variables, sets) in [
            ((Origin::Default, row.kind.show(&row.default())), "", &[][..], &[][..]),
            (by_file, &file, &[], &[]),
            (by_variable.clone(), "", &environment, &[]),
            (by_variable, &file, &environment, &[]),
            (by_option.clone(), "", &[], &[set]),
            (by_option.clone(), &file, &[], &[set]),
            (by_option, &file, &environment, &[set]),
        ] {
            let (config, _) = load(file, variables, sets);
            let (_, value, origin) = config.rows().find(|(row, ..)| row.key == key).expect("a row");
            assert_eq!((origin, value), (&wants.0, wants.1), "{key}");
            let others = config.rows().filter(|(row, ..)| row.key != key);
            assert!(
                others.into_iter().all(|(.., origin)| *origin == Origin::Default),
                "{key}"
            );
        }
    }
}

#[test]
fn an_option_of_its_own_is_as_good_as_any_and_two_options_for_one_setting_are_a_mistake() {
    for row in ROWS {
        let Some(option) = row.option else { continue };
        let [value, other, _] = values(row);
        let own = Argument::Own(option, (&value).into());
        let (config, _) = Config::load(
            None,
            &[(row.variable().into(), other.into())],
            std::slice::from_ref(&own),
        );
        assert_eq!(config.origin(row.key), &Origin::Option(option.to_owned()));
        assert_eq!(row.show(&config.settings), value);
        let set = Argument::Set(format!("{}={value}", row.key).into());
        let (_, wrong) = Config::load(None, &[], &[own, set]);
        let said = format!("{} is set by {option} already", row.key);
        assert!(wrong.iter().any(|mistake| mistake.why == said), "{wrong:?}");
    }
}

#[test]
fn every_number_is_taken_from_the_least_to_the_most_and_refused_beyond() {
    let mut numbers = 0;
    for row in ROWS {
        let (Kind::Count(least, most) | Kind::Bytes(least, most) | Kind::Time(least, most)) = row.kind else {
            continue;
        };
        numbers += 1;
        let inside = [least, most];
        let beyond = [least.checked_sub(1), most.checked_add(1)];
        for n in inside {
            let (config, _) = load("", &[], &[&format!("{}={n}", row.key)]);
            assert_eq!((row.get)(&config.settings), Value::Number(n), "{}", row.key);
        }
        for n in beyond.into_iter().flatten() {
            let (config, wrong) = load("", &[], &[&format!("{}={n}", row.key)]);
            assert_eq!((row.get)(&config.settings), row.default(), "{}", row.key);
            let range = row.kind.range(false);
            assert!(wrong.len() == 1 && wrong[0].contains(&range), "{}: {wrong:?}", row.key);
        }
    }
    assert!(numbers > 30);
}

#[test]
fn every_default_is_written_as_it_is_read() {
    for row in ROWS {
        let shown = row.kind.show(&row.default());
        let read = row.kind.parse(OsStr::new(&shown), row.optional());
        assert_eq!(read, Ok(row.default()), "{}: {shown}", row.key);
    }
    let (_, wrong) = load("", &[], &[]);
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn keys_and_variables_are_unique_and_every_section_is_described() {
    let keys: BTreeSet<_> = ROWS.iter().map(|row| row.key).collect();
    let variables: BTreeSet<_> = ROWS.iter().map(Row::variable).collect();
    assert_eq!((keys.len(), variables.len()), (ROWS.len(), ROWS.len()));
    for other in ["TIDEGATE_CONFIG", "TIDEGATE_URL", "TIDEGATE_TOKEN"] {
        assert!(!variables.contains(other), "{other} has another meaning");
    }
    let used: BTreeSet<_> = ROWS.iter().filter_map(Row::section).collect();
    let described: BTreeSet<_> = SECTIONS.iter().map(|(section, _)| *section).collect();
    assert_eq!(used, described);
    assert!(keys.is_disjoint(&described));
}

#[test]
fn every_limit_that_is_an_operators_to_set_is_a_setting() {
    let limits = tidegate_protocol::limits::table();
    let configurable: Vec<_> = limits.iter().filter(|limit| limit.configurable).collect();
    assert_eq!(configurable.len(), 8);
    for limit in configurable {
        let row = find(&format!("limits.{}", limit.name)).expect(limit.name);
        assert_eq!(ROWS[row].default(), Value::Number(limit.bound), "{}", limit.name);
    }
}

#[test]
fn five_mistakes_on_five_lines_are_five_messages_in_their_order() {
    let file = "\
listen = 127.0.0.1:8080
dev = \"yes\"
[limits]
ops = 0
mesage_bytes = \"1MiB\"
depth = 1.5
[connections]
stall = 30
";
    let (_, wrong) = load(file, &[], &[]);
    let expected = [
        (
            "etc/tidegate.toml:1: listen = 127.0.0.1:8080: this is not TOML",
            "stands in quotes: \"127.0.0.1:8080\"",
        ),
        ("etc/tidegate.toml:2: dev = \"yes\": write true or false", ""),
        (
            "etc/tidegate.toml:4: limits.ops = 0: 0 is too little; it may be 1 to 10000",
            "",
        ),
        (
            "etc/tidegate.toml:5: limits.mesage_bytes: no setting is called so",
            "limits.message_bytes is one",
        ),
        ("etc/tidegate.toml:6: limits.depth = 1.5: write a whole number", ""),
        (
            "etc/tidegate.toml:8: connections.stall = 30: 30ms is too little",
            "without a unit is in ms",
        ),
    ];
    assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
    for (found, (begins, contains)) in wrong.iter().zip(expected) {
        assert!(
            found.starts_with(begins) && found.contains(contains),
            "{begins}: {found}"
        );
    }
}

#[test]
fn every_line_that_is_not_toml_is_one_message() {
    let file =
        "listen = \"127.0.0.1:80\nname = x\n= 3\nreserve_bytes = 1 MiB\n[limits\ndata_dir: \"d\"\nlisten = 5 5\n";
    let (_, wrong) = load(file, &[], &[]);
    let lines: Vec<_> = wrong
        .iter()
        .map(|text| text.split(' ').next().unwrap_or_default())
        .collect();
    let expected: Vec<_> = (1..=7).map(|line| format!("etc/tidegate.toml:{line}:")).collect();
    assert_eq!(lines, expected, "{wrong:#?}");
}

#[test]
fn what_is_wrong_behind_a_line_that_cannot_be_read_is_said_too_and_in_its_section() {
    let file = "name \"x\"\n[limits\nops = 0\ndepth = 5\n[connections]\nstall = 30\n[limits]\nops = 0\n[fan_out]\nlinger = x\nring = 1\n";
    let (config, wrong) = load(file, &[], &[]);
    let lines: Vec<usize> = wrong
        .iter()
        .filter_map(|text| text.split(':').nth(1)?.parse().ok())
        .collect();
    assert_eq!(lines, [1, 2, 3, 6, 7, 8, 10, 11], "{wrong:#?}");
    assert!(wrong[2].contains("limits.ops = 0: 0 is too little"), "{wrong:#?}");
    assert_eq!(config.settings.server.node.limits.depth, 5);
    // A text that does not end takes the rest with it.
    let (_, wrong) = load("name = \"\"\"x\n[limits]\nops = 0\n", &[], &[]);
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
    assert!(wrong[0].contains("this is not TOML"), "{wrong:#?}");
}

#[test]
fn what_is_wrong_in_the_file_in_variables_and_in_options_is_said_together() {
    let variables = [
        ("TIDEGATE_LIMITS_OPS", "many"),
        ("TIDEGATE_LISTN", "x"),
        ("TIDEGATE_URL", "ws://a"),
        ("OTHER", "x"),
        ("TIDEGATE_NAME", ""),
    ];
    let (config, wrong) = load("x = 1", &variables, &["limits.depth=65", "limits.depth", "nothing=1"]);
    let expected = [
        "etc/tidegate.toml:1: x: no setting is called so",
        "TIDEGATE_LIMITS_OPS=many: write a whole number",
        "TIDEGATE_LISTN=x: no setting is called so; TIDEGATE_LISTEN is one",
        "--set limits.depth=65: 65 is too much; it may be 1 to 64",
        "--set limits.depth: write --set key=value",
        "--set nothing=1: no setting is called so",
    ];
    assert_eq!(wrong.len(), expected.len(), "{wrong:#?}");
    for (found, begins) in wrong.iter().zip(expected) {
        assert!(found.starts_with(begins), "{begins}: {found}");
    }
    assert_eq!(config.origin("name"), &Origin::Default, "an empty variable is none");
}

#[test]
fn a_key_stands_where_it_belongs_and_once() {
    for (file, wants) in [
        ("limits = 5", ":1: limits is a section; write [limits]"),
        ("[[limits]]\nops = 1", ":1: limits is a section; write [limits]"),
        (
            "[limit]\nops = 0\ndepth = 0",
            ":1: [limit]: no section is called so; [limits] is one",
        ),
        ("[server]\nlisten = \"127.0.0.1:1\"", "at the top of the file"),
        (
            "[limits]\nlisten = \"127.0.0.1:1\"",
            ":2: limits.listen: no setting is called so; listen is one",
        ),
        ("\"limits.ops\" = 1", ":1: limits.ops: no setting is called so"),
        (
            "[limits]\nops = 1\nops = 2",
            ":3: ops = 2: this is not TOML: duplicate key",
        ),
        ("name = \"a\nb\"", ":1: "),
        ("[limits]\n\nops = [1]", ":3: limits.ops = [1]: write a whole number"),
    ] {
        let (_, wrong) = load(file, &[], &[]);
        assert!(wrong[0].contains(wants), "{file}: {wrong:#?}");
    }
    for file in ["limits.ops = 3", "[limits]\nops = 0x3", "limits = { ops = \"3\" }"] {
        let (config, wrong) = load(file, &[], &[]);
        assert_eq!(
            (wrong.len(), config.settings.server.node.limits.ops),
            (0, 3),
            "{file}: {wrong:?}"
        );
    }
}

#[test]
fn what_has_no_limit_may_be_given_one_and_lose_it_again() {
    let file = "max_space_docs = 5\nmax_total_bytes = \"1GiB\"";
    let (config, wrong) = load(file, &[("TIDEGATE_MAX_SPACE_DOCS", "none")], &["max_space_bytes=7"]);
    assert_eq!(wrong, [""; 0]);
    let quota = config.settings.server.engine.quota;
    assert_eq!(
        (quota.space_docs, quota.space_bytes, quota.total_bytes),
        (None, Some(7), Some(1 << 30))
    );
}

#[test]
fn a_data_directory_in_the_file_is_relative_to_it_and_any_other_is_not() {
    let of = |file: &str, sets: &[&str]| load(file, &[], sets).0.settings.data_dir;
    assert_eq!(of("data_dir = \"data\"", &[]), Path::new("etc/data"));
    assert_eq!(of("data_dir = \"/data\"", &[]), Path::new("/data"));
    assert_eq!(of("data_dir = \"data\"", &["data_dir=other"]), Path::new("other"));
}

#[test]
fn what_does_not_go_together_is_refused_with_both_values_their_places_and_what_to_do() {
    let (_, wrong) = load(
        "[limits]\npage_bytes = \"512KiB\"",
        &[("TIDEGATE_DEV", "true")],
        &["listen=0.0.0.0:80"],
    );
    assert_eq!(wrong.len(), 2, "{wrong:#?}");
    for wants in [
        "etc/tidegate.toml:2: limits.page_bytes (512KiB, etc/tidegate.toml:2) is too much",
        "limits.message_bytes (1MiB, default)",
        "set limits.page_bytes to 349525 at most, or limits.message_bytes to more",
    ] {
        assert!(wrong[0].contains(wants), "{wants}: {}", wrong[0]);
    }
    for wants in ["--set listen: listen: 0.0.0.0:80", "TIDEGATE_DEV", "loopback"] {
        assert!(wrong[1].contains(wants), "{wants}: {}", wrong[1]);
    }
    // Where one of the two is wrong by itself, that is said, and no more.
    let (_, wrong) = load("[limits]\npage_bytes = \"512KiB\"\nmessage_bytes = 5", &[], &[]);
    assert_eq!(wrong.len(), 1, "{wrong:#?}");
}

#[test]
fn each_rule_holds_up_to_its_bound_and_not_beyond() {
    for Rule { over, under, most, .. } in RULES {
        let row = &ROWS[find(over).expect("a setting")];
        find(under).expect("a setting");
        let mut config = Config::default();
        let most = most(&config.settings);
        for (n, broken) in [(most, false), (most + 1, true)] {
            assert!((row.put)(&mut config.settings, Value::Number(n)), "{over}");
            let found = check::check(&config, &[]);
            let named = found.iter().any(|mistake| {
                mistake.why.starts_with(&format!("{over} ("))
                    && mistake.why.contains(&format!("too much for {under} ("))
            });
            assert_eq!(named, broken, "{over} {n}: {found:?}");
        }
    }
}
