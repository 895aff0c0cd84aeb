//! Real files, imported by the command line while others watch over connections that break.

use crate::support::*;
use serde_json::{Map, Value as Json};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;
use tempfile::TempDir;
use tidegate_client::{Client, Options, Space};

fn data(name: &str) -> PathBuf {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../target/data/vega-datasets/data")
        .join(name);
    assert!(path.is_file(), "{} is missing: run `make data`", path.display());
    path
}

/// Runs the command line with a state folder of its own.
async fn tidegate(gateway: &Gateway, state: &TempDir, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    command
        .args(arguments)
        .env("TIDEGATE_URL", format!("ws://{}", gateway.addr));
    command
        .env("XDG_STATE_HOME", state.path())
        .env("TIDEGATE_TOKEN", "importer");
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    output
}

type Docs = BTreeMap<String, Json>;

/// What the client library shows of a space.
fn docs(space: &Space) -> Docs {
    let json = |doc: &tidegate_client::Doc| tidegate_protocol::json::doc_to_json(doc.leaves().unwrap());
    space
        .docs()
        .iter()
        .map(|doc| (doc.path().to_string(), json(doc)))
        .collect()
}

/// Names records as the documentation says: numbers as decimal text, `/` and `%` percent-encoded,
/// repeats `~2`, `~3` in file order, none `row-N`.
fn expected(collection: &str, records: Vec<(Option<Json>, Json)>) -> Docs {
    let mut times: HashMap<String, usize> = HashMap::new();
    let mut all = Docs::new();
    for (n, (id, fields)) in records.into_iter().enumerate() {
        let plain = match id {
            Some(Json::String(text)) => text.replace('%', "%25").replace('/', "%2F"),
            Some(Json::Number(number)) => number.to_string(),
            _ => format!("row-{}", n + 1),
        };
        let count = times.entry(plain.clone()).or_default();
        *count += 1;
        let id = if *count == 1 { plain } else { format!("{plain}~{count}") };
        assert!(all.insert(format!("{collection}/{id}"), fields).is_none());
    }
    all
}

fn movies() -> Docs {
    let file: Vec<Map<String, Json>> = serde_json::from_slice(&std::fs::read(data("movies.json")).unwrap()).unwrap();
    assert_eq!(file.len(), 3_201);
    expected(
        "movies",
        file.into_iter()
            .map(|record| (record.get("Title").cloned(), Json::Object(record)))
            .collect(),
    )
}

fn earthquakes() -> Docs {
    let file: Json = serde_json::from_slice(&std::fs::read(data("earthquakes.json")).unwrap()).unwrap();
    let features = file["features"].as_array().unwrap().iter().map(|feature| {
        let fields = serde_json::json!({ "properties": feature["properties"], "geometry": feature["geometry"] });
        (feature.get("id").cloned(), fields)
    });
    expected("quakes", features.collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_files_imported_by_one_are_the_same_for_all_who_watch_and_equal_to_the_files() {
    let gateway = Gateway::start().await;
    let cutter = Cutter::before(gateway.addr).await;
    let state = TempDir::new().unwrap();
    let mut watchers = Vec::new();
    for n in 0..5 {
        // Two of the five are disconnected again and again.
        let addr = if n < 2 { cutter.addr } else { gateway.addr };
        let client = Client::connect(
            Options::new(&format!("ws://{addr}"))
                .unwrap()
                .token(format!("watcher{n}")),
        );
        let space = client.space("demo").unwrap();
        space.current().await.unwrap();
        watchers.push((client, space));
    }
    let cutting = async {
        let mut cuts = 0;
        loop {
            tokio::time::sleep(Duration::from_millis(20 + cuts * 53 % 130)).await;
            cutter.cut();
            cuts += 1;
        }
    };
    let (movies_file, quakes_file) = (data("movies.json"), data("earthquakes.json"));
    let import = async {
        let file = movies_file.to_str().unwrap();
        let first = tidegate(
            &gateway,
            &state,
            &["import", "demo", "movies", file, "--id-from", "Title"],
        )
        .await;
        let second = tidegate(
            &gateway,
            &state,
            &["import", "demo", "quakes", quakes_file.to_str().unwrap()],
        )
        .await;
        (first, second)
    };
    let (first, second) = tokio::select! {
        () = cutting => unreachable!("it has no end"),
        done = import => done,
    };
    println!(
        "{}{}",
        String::from_utf8_lossy(&first.stdout),
        String::from_utf8_lossy(&second.stdout)
    );

    let mut wanted = movies();
    wanted.extend(earthquakes());
    let mut replica = Replica::default();
    gateway.peer("fresh").await.follow("demo", &mut replica, None).await;
    let sixth: Docs = replica
        .docs
        .iter()
        .map(|(path, leaves)| (path.clone(), tidegate_protocol::json::doc_to_json(leaves)))
        .collect();
    same("a fresh replica", &sixth, &wanted);
    for (n, (client, space)) in watchers.iter().enumerate() {
        let there = async {
            while space.position() != Some(replica.at) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, there).await.unwrap_or_else(|_| {
            panic!("watcher {n} is at {:?} and not at {}", space.position(), replica.at);
        });
        same(&format!("watcher {n}"), &docs(space), &wanted);
        client.close().await;
    }
    let exported = tidegate(&gateway, &state, &["export", "demo"]).await;
    let exported: Docs = String::from_utf8(exported.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let line: Json = serde_json::from_str(line).unwrap();
            (line["doc"].as_str().unwrap().to_owned(), line["fields"].clone())
        })
        .collect();
    same("the export", &exported, &wanted);

    // A second run changes nothing.
    let head = replica.at;
    let arguments = [
        "import",
        "demo",
        "movies",
        movies_file.to_str().unwrap(),
        "--id-from",
        "Title",
    ];
    let again = String::from_utf8(tidegate(&gateway, &state, &arguments).await.stdout).unwrap();
    assert!(again.contains("3201") || again.contains("3,201"), "{again}");
    gateway.peer("fresh").await.follow("demo", &mut replica, None).await;
    assert_eq!(replica.at, head, "{again}");
    gateway.stop().await;
}

fn same(who: &str, found: &Docs, wanted: &Docs) {
    for (path, fields) in wanted {
        assert_eq!(found.get(path), Some(fields), "{who}: {path}");
    }
    assert_eq!(found.len(), wanted.len(), "{who} has more");
}
