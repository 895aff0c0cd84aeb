//! What a crash leaves of a journal is cut off; what a disk has lost is told.

use super::*;
use std::fs;
use std::path::PathBuf;

const COMMITS: u64 = 5;

/// A store of some commits, not open, with the path of its journal and where each batch begins.
async fn written() -> (Place, PathBuf, Vec<usize>) {
    let place = Place {
        durability: Durability::Fsync,
        ..Place::new()
    };
    let store = place.open();
    for mid in 1..=COMMITS {
        applied(&store, "s", item(1, mid, vec![set("c/a", mid == 1, &[("x", 1)])])).await;
    }
    store.close();
    let path = place.dir.path().join("db/0.jnl");
    let bytes = fs::read(&path).expect("reads");
    let mut starts = vec![0];
    while let Some((len, _)) = journal::batch(&bytes[starts[starts.len() - 1]..]) {
        starts.push(starts[starts.len() - 1] + len);
    }
    assert_eq!(starts.len() as u64, COMMITS + 1, "a batch a commit");
    (place, path, starts)
}

/// Whether a byte of a batch is one of the lower ones of its seqno, which nothing protects.
fn in_seqno(at: usize) -> bool {
    (5..8).contains(&at)
}

fn flip(path: &Path, at: usize) {
    let mut bytes = fs::read(path).expect("reads");
    bytes[at] ^= 0xff;
    fs::write(path, bytes).expect("writes");
}

#[tokio::test]
async fn a_torn_end_is_cut_off_wherever_it_is_torn() {
    let (place, path, starts) = written().await;
    let whole = fs::read(&path).expect("reads");
    let last = starts[starts.len() - 2]..starts[starts.len() - 1];
    for at in last.clone().filter(|at| !in_seqno(at - last.start)) {
        // Cut short, with the journal's room behind it; and a byte that never arrived.
        let mut cut = whole.clone();
        cut[at..].fill(0);
        let mut hole = whole.clone();
        hole[at] ^= 0xff;
        for (title, bytes) in [("cut", cut), ("hole", hole)] {
            fs::write(&path, bytes).expect("writes");
            journal::check(&place.dir.path().join("db"), Durability::Fsync)
                .unwrap_or_else(|error| panic!("{title} at {at}: {error}"));
            let left = fs::read(&path).expect("reads");
            let written = left.iter().rposition(|byte| *byte != 0).expect("some") + 1;
            assert!(written <= last.start, "{title} at {at}");
        }
    }
    let store = place.open();
    assert_eq!(state(&store, "s").await.head.seq, seq(COMMITS - 1));
    applied(&store, "s", item(1, COMMITS, vec![])).await;
}

#[tokio::test]
async fn a_broken_record_before_whole_ones_is_damage_and_nothing_is_touched() {
    let (place, path, starts) = written().await;
    for at in (starts[2]..starts[3]).step_by(7).filter(|at| !in_seqno(at - starts[2])) {
        flip(&path, at);
        let before = fs::read(&path).expect("reads");
        let error = open(place.dir.path(), place.options()).err().expect("refused");
        let text = error.to_string();
        assert!(matches!(error, OpenError::Damaged { .. }), "{at}: {text}");
        let names = [path.display().to_string(), format!("byte {}", starts[2])];
        assert!(names.iter().all(|name| text.contains(name)), "{at}: {text}");
        assert_eq!(fs::read(&path).expect("reads"), before);
        flip(&path, at);
    }
    // Without syncs between them records may go missing in any order, and none of it was promised.
    flip(&path, starts[2] + 20);
    let place = Place {
        durability: Durability::Memory,
        ..place
    };
    assert_eq!(state(&place.open(), "s").await.head.seq, seq(2));
}

#[tokio::test]
async fn a_missing_journal_is_damage() {
    let (place, path, _) = written().await;
    fs::rename(&path, path.with_file_name("1.jnl")).expect("renames");
    fs::write(path.with_file_name("3.jnl"), "").expect("writes");
    let error = open(place.dir.path(), place.options())
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("2.jnl"), "{error}");
    fs::remove_file(path.with_file_name("3.jnl")).expect("removes");
    fs::remove_file(path.with_file_name("1.jnl")).expect("removes");
    let error = open(place.dir.path(), place.options())
        .err()
        .expect("refused")
        .to_string();
    assert!(error.contains("no journal"), "{error}");
}
