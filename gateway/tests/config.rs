//! Configuration of the real binary, and what `docs/` says of it. `UPDATE_DOCS=1` writes the generated parts anew.

#[path = "support/cli.rs"]
mod cli;

use cli::{Gateway, Process, root, said, text, tidegate};
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tidegate::config::{Config, File, ROWS, Row, sample, tables};
use tidegate::metrics;

/// Runs a command in a folder.
fn run(folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = tidegate(args);
    command.current_dir(folder).envs(variables.iter().copied());
    command.output().expect("it runs")
}

fn folder(file: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("tidegate.toml"), file).expect("written");
    folder
}

/// The complaint of a command that must fail with status 1.
fn refused(folder: &Path, args: &[&str], variables: &[(&str, &str)]) -> String {
    let output = run(folder, args, variables);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
    text(&output.stderr)
}

/// The value and the origin that `config show` prints for a setting.
fn shown(output: &Output, key: &str) -> (String, String) {
    let printed = text(&output.stdout);
    let line = printed.lines().find(|line| line.split_whitespace().next() == Some(key));
    let words: Vec<_> = line.expect(key).split_whitespace().collect();
    (words[1].to_owned(), words[2..].join(" "))
}

const FIVE: &str = "\
listen = 127.0.0.1:8080
dev = \"yes\"
[limits]
ops = 0
mesage_bytes = \"1MiB\"
[connections]
stall = 30
";

#[test]
fn check_names_every_mistake_with_its_line_and_serve_refuses_with_the_same_words() {
    let folder = folder(FIVE);
    let checked = refused(folder.path(), &["config", "check", "--dev"], &[]);
    let places: Vec<_> = checked
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tidegate.toml:"))
        .filter_map(|rest| rest.split(':').next()?.parse::<u32>().ok())
        .collect();
    assert_eq!(places, [1, 2, 4, 5, 7], "{checked}");
    assert!(
        checked.starts_with("tidegate: the configuration has 5 mistakes:\n"),
        "{checked}"
    );
    assert_eq!(refused(folder.path(), &["serve", "--dev"], &[]), checked);
    // Those of variables and options are said with them.
    let variables = [("TIDEGATE_LISTN", "x")];
    let more = refused(
        folder.path(),
        &["config", "check", "--max-space-docs", "few"],
        &variables,
    );
    for wants in [
        "has 8 mistakes",
        "TIDEGATE_LISTN=x: no setting is called so; TIDEGATE_LISTEN is one",
        "--max-space-docs few: write a whole number",
        "no authentication is configured",
    ] {
        assert!(more.contains(wants), "{wants}: {more}");
    }
}

#[test]
fn show_tells_every_value_and_who_says_so() {
    let folder = folder("max_space_docs = 5\n[limits]\nops = 7\ndepth = 9\n");
    let variables = [
        ("TIDEGATE_LIMITS_DEPTH", "10"),
        ("TIDEGATE_WRITES_RETRY", "2s"),
        ("TIDEGATE_URL", "ws://a"),
        ("TIDEGATE_TOKEN", "secret"),
    ];
    let args = [
        "config",
        "show",
        "--set",
        "writes.retry=3s",
        "--max-total-bytes",
        "1024MiB",
    ];
    let output = run(folder.path(), &args, &variables);
    assert!(output.status.success(), "{}", said(&output));
    for (key, value, origin) in [
        ("listen", "127.0.0.1:8080", "default"),
        ("max_space_docs", "5", "tidegate.toml:1"),
        ("max_space_bytes", "none", "default"),
        ("max_total_bytes", "1GiB", "--max-total-bytes"),
        ("limits.ops", "7", "tidegate.toml:3"),
        ("limits.depth", "10", "TIDEGATE_LIMITS_DEPTH"),
        ("writes.retry", "3s", "--set writes.retry"),
        ("retention.tombstones", "90d", "default"),
    ] {
        assert_eq!(shown(&output, key), (value.to_owned(), origin.to_owned()), "{key}");
    }
    assert_eq!(text(&output.stdout).lines().count(), ROWS.len() + 1);
    assert!(!said(&output).contains("secret"));
    // What is right is shown, also where something is wrong.
    let output = run(folder.path(), &["config", "show", "--set", "limits.ops=x"], &[]);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(shown(&output, "limits.depth").1, "tidegate.toml:4");
    assert!(text(&output.stderr).contains("--set limits.ops=x"), "{}", said(&output));
}

#[test]
fn the_file_is_the_one_named_or_the_one_that_is_there() {
    let folder = folder("name = \"here\"");
    for name in ["named", "option"] {
        fs::create_dir(folder.path().join(name)).expect("made");
        let file = folder.path().join(name).join("my.toml");
        fs::write(file, format!("name = {name:?}\ndata_dir = \"data\"")).expect("written");
    }
    let show = |args: &[&str], variables: &[(&str, &str)]| {
        let output = run(folder.path(), &[&["config", "show"], args].concat(), variables);
        assert!(output.status.success(), "{}", said(&output));
        (shown(&output, "name").0, shown(&output, "data_dir").0)
    };
    let variable = [("TIDEGATE_CONFIG", "named/my.toml")];
    let pair = |name: &str, dir: &str| (name.to_owned(), dir.to_owned());
    assert_eq!(show(&[], &[]), pair("here", "./tidegate-data"));
    assert_eq!(show(&[], &variable), pair("named", "named/data"));
    assert_eq!(
        show(&["--config", "option/my.toml"], &variable),
        pair("option", "option/data")
    );
    let error = refused(
        folder.path(),
        &["config", "check", "--dev", "--config", "nowhere.toml"],
        &[],
    );
    assert!(error.contains("--config nowhere.toml: No such file"), "{error}");
    let error = refused(
        folder.path(),
        &["config", "check", "--dev"],
        &[("TIDEGATE_CONFIG", "nowhere.toml")],
    );
    assert!(error.contains("TIDEGATE_CONFIG=nowhere.toml: No such file"), "{error}");
    let output = run(folder.path(), &["config", "check", "--dev"], &[]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(
        text(&output.stdout),
        "in order (tidegate.toml): dev=true (--dev), name=here (tidegate.toml:1)\n"
    );
}

#[test]
fn a_mistyped_variable_is_no_matter_of_the_commands_that_talk_to_a_gateway() {
    let gateway = Gateway::start();
    let mut command = gateway.command(&["set", "demo", "notes/n1", "a=1"]);
    let output = command.env("TIDEGATE_LISTN", "x").output().expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn serve_runs_with_what_is_configured_and_says_with_what() {
    let folder = folder("name = \"one\"\ndev = true\n[limits]\ndoc_bytes = \"1KiB\"\n");
    let mut command = tidegate(&["serve", "--set", "limits.ops=7"]);
    command
        .current_dir(folder.path())
        .env("TIDEGATE_LISTEN", "127.0.0.1:0")
        .env("TIDEGATE_DATA_DIR", "data");
    let log = fs::File::create(folder.path().join("log")).expect("a log");
    let mut child = command.stdout(Stdio::piped()).stderr(log).spawn().expect("it starts");
    let out = child.stdout.take().expect("piped");
    let process = Process(child);
    let greeting: Vec<_> = BufReader::new(out)
        .lines()
        .map(|line| line.expect("text"))
        .take_while(|line| !line.contains("Ctrl-C"))
        .collect();
    let greeting = greeting.join("\n");
    assert!(greeting.contains("Its configuration is tidegate.toml."), "{greeting}");
    let url = greeting
        .split_whitespace()
        .find(|word| word.starts_with("ws://"))
        .expect("a URL");
    let client = |args: &[&str]| {
        let mut command: Command = tidegate(args);
        command
            .env("TIDEGATE_URL", url)
            .env("XDG_STATE_HOME", folder.path().join("state"));
        command.output().expect("it runs")
    };
    let output = client(&["set", "demo", "notes/n1", &format!("a={}", "x".repeat(1_020))]);
    assert!(output.status.success(), "{}", said(&output));
    let output = client(&["set", "demo", "notes/n1", &format!("a={}", "x".repeat(1_030))]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("1024"), "{}", said(&output));
    // The store is where the variable says, and the commands that work on it find it there.
    assert!(folder.path().join("data/control.sock").exists());
    let backup = run(folder.path(), &["backup", "copy"], &[("TIDEGATE_DATA_DIR", "data")]);
    assert!(backup.status.success(), "{}", said(&backup));
    drop(process);
    let log = fs::read_to_string(folder.path().join("log")).expect("the log");
    for wants in [
        "limits.doc_bytes=1KiB (tidegate.toml:4)",
        "limits.ops=7 (--set limits.ops)",
        "TIDEGATE_LISTEN",
    ] {
        assert!(log.contains(wants), "{wants}: {log}");
    }
}

/// A file is this text, or is made to be.
fn written(path: &Path, expected: &str) {
    #[allow(
        clippy::disallowed_methods,
        reason = "a switch of the developer at the test, not a setting of the program"
    )]
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(path, expected).expect("written");
    }
    let found = fs::read_to_string(path).expect("a file");
    assert!(
        found == expected,
        "{} is not what the code says: run with UPDATE_DOCS=1",
        path.display()
    );
}

#[test]
fn the_manuals_tables_of_settings_are_those_of_the_code() {
    let path = root().join("docs/CONFIG.md");
    let text = fs::read_to_string(&path).expect("the manual");
    let (begin, end) = ("<!-- settings: written by the test -->\n", "<!-- /settings -->");
    let (before, rest) = text.split_once(begin).expect("a begin marker");
    let (_, after) = rest.split_once(end).expect("an end marker");
    written(&path, &format!("{before}{begin}{}{end}{after}", tables()));
}

#[test]
fn the_manuals_table_of_metrics_is_that_of_the_code_and_names_settings_that_there_are() {
    let path = root().join("docs/METRICS.md");
    let text = fs::read_to_string(&path).expect("the manual");
    let (begin, end) = ("<!-- metrics: written by the test -->\n", "<!-- /metrics -->");
    let (before, rest) = text.split_once(begin).expect("a begin marker");
    let (_, after) = rest.split_once(end).expect("an end marker");
    written(&path, &format!("{before}{begin}{}{end}{after}", metrics::table()));
    let words = metrics::TABLE
        .iter()
        .flat_map(|row| row.advice.split('`').skip(1).step_by(2));
    for word in words.filter(|word| word.contains('.')) {
        assert!(ROWS.iter().any(|row| row.key == word), "{word} is no setting");
    }
}

#[test]
fn the_sample_file_has_every_setting_at_its_default() {
    let path = root().join("docs/sample/tidegate.toml");
    written(&path, &sample());
    let text = fs::read_to_string(&path).expect("the sample");
    let load = |text: &str| {
        let path = Path::new("tidegate.toml");
        Config::load(Some(File { path, text }), &[], &[])
    };
    assert_eq!(load(&text).1, [], "as it stands");
    // Each line of a setting, the # removed.
    let lines: Vec<_> = text
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(setting) if !setting.starts_with(' ') => setting,
            _ => line,
        })
        .collect();
    let (config, wrong) = load(&lines.join("\n"));
    assert_eq!(wrong, []);
    let default = Config::default();
    for ((row, value, origin), (_, expected, _)) in config.rows().zip(default.rows()) {
        assert!(
            origin.to_string().starts_with("tidegate.toml:"),
            "{} is missing",
            row.key
        );
        let expected = if row.key == "data_dir" {
            "tidegate-data"
        } else {
            &expected
        };
        assert_eq!(value.trim_start_matches("./"), expected, "{}", row.key);
    }
}

#[test]
fn every_example_in_the_manuals_is_a_configuration_without_a_mistake() {
    let mut examples = 0;
    for name in ["docs/CONFIG.md", "docs/CLI.md", "README.md"] {
        let manual = fs::read_to_string(root().join(name)).expect("the manual");
        for block in manual.split("```toml\n").skip(1) {
            let text = block.split("```").next().expect("at least one part");
            let path = Path::new(name);
            assert_eq!(Config::load(Some(File { path, text }), &[], &[]).1, [], "{text}");
            examples += 1;
        }
    }
    assert!(examples > 0);
}

#[test]
fn a_row_is_named_in_the_manual_by_its_key_and_its_variable() {
    let ops: &Row = ROWS.iter().find(|row| row.key == "limits.ops").expect("a row");
    assert_eq!(ops.variable(), "TIDEGATE_LIMITS_OPS");
    let line = "| `limits.ops`<br>`TIDEGATE_LIMITS_OPS` | `500` | 1 to 10000 | Ops of a mutation. |\n";
    assert!(tables().contains(line));
    assert!(sample().contains("# Ops of a mutation. (1 to 10000)\n#ops = 500\n"));
}
