//! The command line against a real gateway.

#[path = "support/cli.rs"]
mod cli;

use cli::{Gateway, Process, Running, root, said, text, tidegate, until};
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

fn lines(text: &str) -> Vec<Json> {
    text.lines()
        .map(|line| serde_json::from_str(line).expect(line))
        .collect()
}

/// A document, as `get` prints it.
fn get(gateway: &Gateway, doc: &str) -> Json {
    serde_json::from_str(&gateway.run(&["get", "demo", doc])).expect("JSON")
}

#[test]
fn fields_are_written_read_and_removed() {
    let gateway = Gateway::start();
    let printed = gateway.run(&[
        "set",
        "demo",
        "notes/n1",
        "title=Hello",
        "address.city=Oslo",
        "stars:=5",
    ]);
    assert_eq!(printed, "#1 notes/n1\n");
    assert_eq!(
        get(&gateway, "notes/n1"),
        json!({"title": "Hello", "address": {"city": "Oslo"}, "stars": 5})
    );
    gateway.run(&["inc", "demo", "notes/n1", "stars"]);
    gateway.run(&["inc", "demo", "notes/n1", "stars", "-2.5"]);
    gateway.run(&["unset", "demo", "notes/n1", "address"]);
    gateway.run(&[
        "set",
        "demo",
        "notes/n1",
        r#"tags:=["a",{"$$b":1}]"#,
        r#"at:={"$ts":1500}"#,
    ]);
    let want = json!({"title": "Hello", "stars": 3.5, "tags": ["a", {"$$b": 1}], "at": {"$ts": 1500}});
    assert_eq!(get(&gateway, "notes/n1"), want);
    gateway.run(&["delete", "demo", "notes/n1"]);
    let absent = gateway.fail(&["get", "demo", "notes/n1"]);
    assert!(absent.contains("no document notes/n1"), "{absent}");
}

#[test]
fn create_refuses_a_document_that_exists_and_a_refusal_harms_nothing_after_it() {
    let gateway = Gateway::start();
    gateway.run(&["create", "demo", "notes/n1", "a=1"]);
    let refused = gateway.fail(&["create", "demo", "notes/n1", "a=2"]);
    assert!(refused.contains("notes/n1 exists already"), "{refused}");
    gateway.run(&["create", "demo", "notes/n2"]);
    assert_eq!(get(&gateway, "notes/n1"), json!({"a": "1"}));
    assert_eq!(get(&gateway, "notes/n2"), json!({}));
}

#[test]
fn watch_shows_the_state_and_then_every_change_as_json_lines() {
    let gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a.b=x", "c:=1"]);
    gateway.run(&["set", "demo", "other/o1", "a=x"]);
    let watch = gateway.command(&["watch", "demo", "--json", "--collection", "notes"]);
    let watching = Running::start(watch, gateway.folder().join("watched"));
    watching.wait_for(|so_far| so_far.contains("current"));
    gateway.run(&["set", "demo", "other/o1", "a=y"]);
    gateway.run(&["set", "demo", "notes/n1", "c:=2"]);
    gateway.run(&["unset", "demo", "notes/n1", "a"]);
    gateway.run(&["delete", "demo", "notes/n1"]);
    let printed = lines(&watching.wait_for(|so_far| so_far.contains("deleted")));
    let change = |seq: u64, set: Json, unset: Json| json!({"space": "demo", "seq": seq, "doc": "notes/n1", "set": set, "unset": unset});
    assert_eq!(printed[0], json!({"event": "reset", "space": "demo"}));
    assert_eq!(printed[1], change(2, json!({"a.b": "x", "c": 1}), json!([])));
    assert_eq!(
        (&printed[2]["event"], &printed[2]["seq"]),
        (&json!("current"), &json!(2))
    );
    assert_eq!(printed[3], change(4, json!({"c": 2}), json!([])));
    assert_eq!(printed[4], change(5, json!({}), json!(["a"])));
    assert_eq!(
        printed[5],
        json!({"space": "demo", "seq": 6, "doc": "notes/n1", "deleted": true})
    );
}

#[test]
fn watch_goes_on_where_it_was_when_the_gateway_comes_back() {
    let mut gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let watch = gateway.command(&["watch", "demo", "--json"]);
    let watching = Running::start(watch, gateway.folder().join("watched"));
    watching.wait_for(|so_far| so_far.contains("current"));
    gateway.restart();
    gateway.run(&["set", "demo", "notes/n1", "a=2"]);
    let printed = watching.wait_for(|so_far| so_far.contains("\"2\""));
    assert_eq!(printed.matches("reset").count(), 1, "nothing is sent twice: {printed}");
}

#[test]
fn commands_at_the_same_time_take_turns_under_one_client_id() {
    let gateway = Gateway::start();
    let running: Vec<_> = (0..12)
        .map(|_| {
            let mut command = gateway.command(&["inc", "demo", "notes/n1", "n"]);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it starts")
        })
        .collect();
    for child in running {
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{}", said(&output));
    }
    assert_eq!(get(&gateway, "notes/n1"), json!({"n": 12}));
    let files: Vec<_> = fs::read_dir(gateway.state().join("tidegate/clients"))
        .expect("the state folder")
        .map(|entry| entry.expect("readable").path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "json"))
        .collect();
    assert_eq!(files.len(), 1, "{files:?}");
    let kept: Json = serde_json::from_slice(&fs::read(&files[0]).expect("readable")).expect("JSON");
    assert_eq!(
        (&kept["client"]["next_mid"], &kept["unanswered"]),
        (&json!(13), &json!([]))
    );
}

/// Passes bytes on; from the moment that the client has sent its first write, nothing comes back as long
/// as `deaf` is set.
fn proxy(gateway: &Gateway, deaf: Arc<AtomicBool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("ws://{}", listener.local_addr().expect("an address"));
    let behind = gateway.url.strip_prefix("ws://").expect("a plain URL").to_owned();
    thread::spawn(move || {
        for client in listener.incoming() {
            let client = client.expect("accepted");
            let server = TcpStream::connect(&behind).expect("the gateway listens");
            let has_written = Arc::new(AtomicBool::new(false));
            let (mut from, mut to) = (client.try_clone().expect("cloned"), server.try_clone().expect("cloned"));
            let sees = has_written.clone();
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                let mut passed = 0;
                while let Ok(n @ 1..) = from.read(&mut bytes) {
                    // Upgrade, hello, and then what it came for.
                    passed += 1;
                    sees.store(passed > 2, Ordering::SeqCst);
                    if to.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
            });
            let (mut from, mut to, deaf) = (server, client, deaf.clone());
            thread::spawn(move || {
                let mut bytes = [0; 4096];
                while let Ok(n @ 1..) = from.read(&mut bytes) {
                    let is_lost = has_written.load(Ordering::SeqCst) && deaf.load(Ordering::SeqCst);
                    if !is_lost && to.write_all(&bytes[..n]).is_err() {
                        break;
                    }
                }
            });
        }
    });
    url
}

#[test]
fn a_write_whose_command_was_killed_before_the_answer_is_applied_once() {
    let gateway = Gateway::start();
    let deaf = Arc::new(AtomicBool::new(true));
    let url = proxy(&gateway, deaf.clone());
    let mut command = gateway.command_at(&url, &["inc", "demo", "notes/n1", "n"]);
    let killed = Process(command.stdout(Stdio::null()).spawn().expect("it starts"));
    until("the write", || {
        gateway
            .command(&["get", "demo", "notes/n1"])
            .output()
            .expect("it runs")
            .status
            .success()
    });
    drop(killed);
    assert_eq!(get(&gateway, "notes/n1"), json!({"n": 1}));
    deaf.store(false, Ordering::SeqCst);
    let next = gateway
        .command_at(&url, &["inc", "demo", "notes/n1", "n"])
        .output()
        .expect("it runs");
    assert!(next.status.success(), "{}", said(&next));
    assert_eq!(
        get(&gateway, "notes/n1"),
        json!({"n": 2}),
        "the first was sent again, and told to be a repeat"
    );
}

#[test]
fn a_wiped_gateway_gets_the_writes_under_a_new_client_id() {
    let mut gateway = Gateway::start();
    let stations = root().join("docs/sample/tide-stations.json");
    let import = ["import", "demo", "stations", stations.to_str().expect("a plain path")];
    gateway.run(&["inc", "demo", "notes/n1", "n"]);
    gateway.wipe();
    gateway.run(&["inc", "demo", "notes/n1", "n"]);
    assert_eq!(get(&gateway, "notes/n1"), json!({"n": 1}));
    gateway.wipe();
    let summary = gateway.run(&import);
    assert!(summary.contains("32 records, 32 written"), "{summary}");
}

#[test]
fn import_writes_every_record_once_and_export_gives_the_file_back() {
    let gateway = Gateway::start();
    let movies = root().join("target/data/vega-datasets/data/movies.json");
    let records: Vec<Json> = serde_json::from_slice(&fs::read(&movies).expect("make data was run")).expect("JSON");
    let import = [
        "import",
        "demo",
        "movies",
        movies.to_str().expect("a plain path"),
        "--id-from",
        "Title",
    ];
    let summary = gateway.run(&import);
    assert!(
        summary.contains("movies: 3201 records, 3201 written, 0 unchanged\n"),
        "{summary}"
    );
    let numbers = records.iter().filter(|record| record["Title"].is_number()).count();
    let ids =
        format!("ids: {numbers} from numbers, 7 percent-encoded, 24 repeats (~2, ~3 …), 1 null or missing (row-N)\n");
    assert!(summary.contains(&ids), "{summary}");
    let summary = gateway.run(&import);
    assert!(
        summary.contains("movies: 3201 records, 0 written, 3201 unchanged\n"),
        "{summary}"
    );

    let exported = lines(&gateway.run(&["export", "demo"]));
    let docs: Vec<_> = exported
        .iter()
        .map(|line| line["doc"].as_str().expect("text"))
        .collect();
    assert!(docs.is_sorted(), "export is sorted by document");
    let by_doc: BTreeMap<_, _> = exported
        .iter()
        .map(|line| (line["doc"].as_str().expect("text"), &line["fields"]))
        .collect();
    assert_eq!(by_doc.len(), records.len());
    let sorted = |mut all: Vec<String>| {
        all.sort();
        all
    };
    let there = sorted(by_doc.values().map(ToString::to_string).collect());
    assert_eq!(there, sorted(records.iter().map(ToString::to_string).collect()));
    for doc in ["movies/Face%2FOff", "movies/The Alamo~2", "movies/1776"] {
        assert!(by_doc.contains_key(doc), "{doc}");
    }
}

#[test]
fn geojson_keeps_its_nesting() {
    let gateway = Gateway::start();
    let file = root().join("target/data/vega-datasets/data/earthquakes.json");
    let all: Json = serde_json::from_slice(&fs::read(&file).expect("make data was run")).expect("JSON");
    let summary = gateway.run(&["import", "demo", "quakes", file.to_str().expect("a plain path")]);
    let features = all["features"].as_array().expect("features");
    assert!(
        summary.contains(&format!("{0} records, {0} written", features.len())),
        "{summary}"
    );
    let exported = lines(&gateway.run(&["export", "demo"]));
    let by_doc: BTreeMap<_, _> = exported
        .iter()
        .map(|line| (line["doc"].as_str().expect("text"), &line["fields"]))
        .collect();
    for feature in features {
        let doc = format!("quakes/{}", feature["id"].as_str().expect("an id"));
        assert_eq!(
            *by_doc[doc.as_str()],
            json!({"properties": feature["properties"], "geometry": feature["geometry"]})
        );
    }
}

#[test]
fn a_file_with_an_error_is_refused_as_a_whole() {
    let gateway = Gateway::start();
    let file = gateway.folder().join("bad.ndjson");
    fs::write(&file, "{\"id\":1}\n{\"id\":2,\"\":1}\n").expect("written");
    let error = gateway.fail(&["import", "demo", "c", file.to_str().expect("a plain path")]);
    assert!(
        error.contains("bad.ndjson: record 2 (line 2)") && error.contains("Nothing was written"),
        "{error}"
    );
    assert_eq!(gateway.run(&["export", "demo"]), "");
}

#[test]
fn records_come_from_standard_input_too() {
    let gateway = Gateway::start();
    let mut command = gateway.command(&["import", "demo", "c", "-"]);
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    child
        .stdin
        .take()
        .expect("piped")
        .write_all(b"[{\"id\":\"x\",\"a\":{}}]")
        .expect("written");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(get(&gateway, "c/x"), json!({"id": "x", "a": {}}));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let gateway = Gateway::start();
    let station = root().join("docs/sample/tide-stations.json");
    gateway.run(&["import", "demo", "stations", station.to_str().expect("a plain path")]);
    let mut command = gateway.command(&["export", "demo"]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success() && output.stderr.is_empty(), "{}", said(&output));
}

#[test]
fn without_a_gateway_commands_say_where_they_looked_and_how_to_start_one() {
    let port = TcpListener::bind("127.0.0.1:0")
        .expect("a port")
        .local_addr()
        .expect("an address")
        .port();
    let folder = tempfile::tempdir().expect("a folder");
    let url = format!("ws://127.0.0.1:{port}");
    for args in [
        &["get", "demo", "a/b"][..],
        &["set", "demo", "a/b", "c=d"],
        &["export", "demo"],
        &["watch", "demo"],
    ] {
        let output = tidegate(args)
            .env("XDG_STATE_HOME", folder.path())
            .env("TIDEGATE_URL", &url)
            .output()
            .expect("it runs");
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{args:?}: {error}");
        assert!(error.contains(&url) && error.contains("serve --dev"), "{error}");
    }
}

#[test]
fn every_form_of_url_leads_to_the_gateway() {
    let gateway = Gateway::start();
    let plain = gateway.url.strip_prefix("ws://").expect("a plain URL");
    for url in [
        format!("http://{plain}"),
        format!("ws://{plain}/v1/ws"),
        format!("{plain}/"),
    ] {
        let printed = gateway.run(&["--url", &url, "set", "demo", "notes/n1", "a=1"]);
        assert!(printed.ends_with("notes/n1\n"), "{printed}");
    }
    let state = gateway.state().join("tidegate/clients");
    let files = fs::read_dir(state).expect("the folder").filter(|e| {
        e.as_ref()
            .expect("readable")
            .path()
            .extension()
            .is_some_and(|k| k == "json")
    });
    assert_eq!(files.count(), 1, "one gateway, however its URL is written");
    let error = gateway.fail(&["--url", "ftp://x", "get", "demo", "a/b"]);
    assert!(error.contains("ftp://x"), "{error}");
}

#[test]
fn a_taken_port_gets_lines_that_work_as_they_stand() {
    let gateway = Gateway::start();
    let listen = gateway.url.strip_prefix("ws://").expect("a plain URL");
    let data = gateway.folder().join("second");
    let output = tidegate(&[
        "serve",
        "--dev",
        "--listen",
        listen,
        "--data-dir",
        data.to_str().expect("a plain path"),
    ])
    .output()
    .expect("it runs");
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(&format!("{listen} is taken")), "{error}");
    let line = |wants: &str| {
        error
            .lines()
            .map(str::trim)
            .find(|line| line.contains(wants))
            .expect(wants)
            .to_owned()
    };
    let (serve, export) = (line("--listen"), line("TIDEGATE_URL="));
    let mut shell = std::process::Command::new("bash");
    let running = Running::start(
        {
            cli::plain(&mut shell)
                .args(["-c", &format!("exec {serve}")])
                .stderr(Stdio::null());
            shell
        },
        gateway.folder().join("served"),
    );
    running.wait_for(|so_far| so_far.contains("Ctrl-C"));
    let url = export.rsplit_once('=').expect("a value").1;
    let output = gateway
        .command_at(url, &["set", "demo", "a/b", "c=d"])
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", said(&output));
}

#[test]
fn serve_refuses_to_start_open_to_others() {
    let output = tidegate(&["serve"]).output().expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains("no authentication is configured") && error.contains("--dev"),
        "{error}"
    );
    let output = tidegate(&["serve", "--dev", "--listen", "0.0.0.0:0"])
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("loopback"), "{}", said(&output));
}

#[test]
fn serve_refuses_to_keep_more_free_than_the_disk_has() {
    let folder = tempfile::tempdir().expect("a folder");
    let (config, data) = (folder.path().join("tidegate.toml"), folder.path().join("data"));
    let refused = |reserve: u64| {
        fs::write(&config, format!("reserve_bytes = {reserve}\ndata_dir = \"data\"")).expect("written");
        let config = config.to_str().expect("a plain path");
        let output = tidegate(&["serve", "--dev", "--listen", "127.0.0.1:0", "--config", config]).output();
        let output = output.expect("it runs");
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        text(&output.stderr)
    };
    let error = refused(1 << 62);
    let names = [
        "reserve_bytes",
        &(1_u64 << 62).to_string(),
        data.to_str().expect("a plain path"),
    ];
    assert!(names.iter().all(|name| error.contains(name)), "{error}");
    let numbers = error
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|word| word.parse().ok());
    let size: u64 = numbers.filter(|n| *n != 1 << 62).max().expect("the disk's size");
    assert!(refused(size).contains(&size.to_string()), "all of it is too much, too");
}

#[test]
fn the_greeting_names_the_url_and_commands_that_work_as_they_stand() {
    let gateway = Gateway::start();
    assert!(gateway.greeting.contains("on this machine"), "{}", gateway.greeting);
    let lines: Vec<_> = gateway.greeting.lines().map(str::trim).collect();
    let find = |wants: &str| *lines.iter().find(|line| line.contains(wants)).expect(wants);
    let script = format!("{}\n{}", find("export TIDEGATE_URL"), find(" set demo "));
    let output = std::process::Command::new("bash")
        .args(["-ec", &script])
        .env("XDG_STATE_HOME", gateway.state())
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{}", said(&output));
    assert!(get(&gateway, "notes/n1").is_object());
}
