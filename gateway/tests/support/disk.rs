//! A disk that loses power, or fails, for a process under test: what `disk.c` models, seen from outside.
#![allow(dead_code, reason = "each test binary uses a part of it")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

/// What a disk writes at once.
const PAGE: usize = 4_096;

/// A folder that a process has on this disk.
pub(crate) struct Disk {
    shim: PathBuf,
    root: PathBuf,
    synced: PathBuf,
    fault: PathBuf,
}

/// What fails from now on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    Nothing,
    /// Every write, as if the disk were full.
    Full,
    /// Every write, as if the disk were broken.
    Write,
    /// Syncs only.
    Sync,
    /// Writes and syncs of tables, which the database makes in the background.
    Tables,
}

/// What a power cut does to what was not synced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Unsynced {
    /// All of it is gone.
    Gone,
    /// Each file keeps a first part of it, torn anywhere, and each folder its names as of now or then.
    Torn,
    /// Any of the pages are there, in no order, and each folder's names as of now or then.
    Scattered,
}

impl Disk {
    /// Builds the shim in `folder`, for a disk at `folder/disk`.
    pub(crate) fn new(folder: &Path) -> Self {
        let folder = folder.canonicalize().expect("a folder");
        let shim = folder.join("disk.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/support/disk.c");
        let built = Command::new("cc")
            .args(["-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o"])
            .arg(&shim)
            .arg(&source)
            .args(["-ldl", "-lpthread"])
            .status()
            .expect("a C compiler, `cc`: this test builds a disk with it (Debian: build-essential)");
        assert!(built.success(), "{} does not build", source.display());
        let disk = Self {
            shim,
            root: folder.join("disk"),
            synced: folder.join("synced"),
            fault: folder.join("fault"),
        };
        fs::create_dir(&disk.root).expect("a folder");
        fs::write(&disk.fault, "-").expect("a file");
        disk
    }

    /// Where the disk is.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Lets a process fail as the disk does, and if `power` may be cut, keeps what it syncs.
    pub(crate) fn attach(&self, command: &mut Command, power: bool) {
        command
            .env("LD_PRELOAD", &self.shim)
            .env("TEST_DISK_ROOT", &self.root)
            .env("TEST_DISK_FAULT", &self.fault);
        if power {
            if self.synced.exists() {
                fs::remove_dir_all(&self.synced).expect("removed");
            }
            fs::create_dir(&self.synced).expect("a folder");
            command.env("TEST_DISK_SYNCED", &self.synced);
        }
    }

    /// What fails from now on.
    pub(crate) fn fail(&self, fault: Fault) {
        let kind = match fault {
            Fault::Nothing => b"-",
            Fault::Full => b"f",
            Fault::Write => b"e",
            Fault::Sync => b"s",
            Fault::Tables => b"t",
        };
        let file = File::options().write(true).open(&self.fault).expect("it is there");
        // In place: the process has it mapped.
        file.write_all_at(kind, 0).expect("written");
    }

    /// Cuts the power, after the process was killed: the disk now holds what would be left of it.
    /// `chance` gives random numbers below its argument.
    pub(crate) fn cut_power(&self, unsynced: Unsynced, chance: &mut dyn FnMut(usize) -> usize) {
        let left = self.root.with_file_name("left");
        let mut present = BTreeMap::new();
        if unsynced != Unsynced::Gone {
            walk(&self.root, &mut present);
        }
        let key = fs::read_to_string(self.synced.join("root")).expect("the process began");
        let mut cut = Cut {
            synced: &self.synced,
            present,
            unsynced,
            chance,
        };
        cut.folder(&key, &left);
        fs::remove_dir_all(&self.root).expect("removed");
        fs::rename(&left, &self.root).expect("renamed");
    }
}

/// As `disk.c` names files.
fn key(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).expect("there");
    let born = meta.created().expect("a time of birth");
    let born = born.duration_since(UNIX_EPOCH).expect("after 1970");
    format!("{}-{}-{}", meta.ino(), born.as_secs(), born.subsec_nanos())
}

fn walk(path: &Path, present: &mut BTreeMap<String, PathBuf>) {
    present.insert(key(path), path.to_owned());
    if path.is_dir() {
        for entry in fs::read_dir(path).expect("reads") {
            walk(&entry.expect("reads").path(), present);
        }
    }
}

struct Cut<'a> {
    synced: &'a Path,
    /// What was there, synced or not; empty if that does not matter.
    present: BTreeMap<String, PathBuf>,
    unsynced: Unsynced,
    chance: &'a mut dyn FnMut(usize) -> usize,
}

impl Cut<'_> {
    fn folder(&mut self, folder: &str, to: &Path) {
        fs::create_dir(to).expect("a folder");
        let now = self.present.get(folder).cloned();
        if let (Some(now), 1) = (now, (self.chance)(2)) {
            for entry in fs::read_dir(now).expect("reads") {
                let path = entry.expect("reads").path();
                let name = path.file_name().expect("a name").to_str().expect("text");
                self.entry(path.is_dir(), &key(&path), &to.join(name));
            }
            return;
        }
        // One that was never synced is empty.
        let listed = fs::read_to_string(self.synced.join(format!("d-{folder}"))).unwrap_or_default();
        for line in listed.lines() {
            let mut words = line.splitn(3, ' ');
            let mut word = || words.next().expect("three words");
            let (kind, key, name) = (word(), word(), word());
            self.entry(kind == "d", key, &to.join(name));
        }
    }

    fn entry(&mut self, folder: bool, key: &str, to: &Path) {
        match folder {
            true => self.folder(key, to),
            false => self.file(key, to),
        }
    }

    fn file(&mut self, key: &str, to: &Path) {
        let mut bytes = read(&self.synced.join(format!("f-{key}")));
        if let Some(now) = self.present.get(key) {
            let now = read(now);
            if (self.chance)(2) == 1 {
                bytes.resize(now.len(), 0);
            }
            let dirty: Vec<_> = (0..bytes.len().min(now.len()))
                .step_by(PAGE)
                .map(|at| at..(at + PAGE).min(bytes.len()).min(now.len()))
                .filter(|page| bytes[page.clone()] != now[page.clone()])
                .collect();
            let first = (self.chance)(dirty.len() + 1);
            for (n, mut page) in dirty.into_iter().enumerate() {
                match self.unsynced {
                    Unsynced::Gone => break,
                    Unsynced::Torn if n > first => break,
                    Unsynced::Torn if n == first => page.end = page.start + (self.chance)(page.len()),
                    Unsynced::Torn => {}
                    Unsynced::Scattered if (self.chance)(2) == 0 => continue,
                    Unsynced::Scattered => {}
                }
                bytes[page.clone()].copy_from_slice(&now[page]);
            }
        }
        let mut file = File::create(to).expect("a file");
        // Journals keep room that was never written: it stays a hole.
        let written = bytes.chunks(PAGE).rposition(|page| page != &[0; PAGE][..page.len()]);
        let written = written.map_or(0, |page| ((page + 1) * PAGE).min(bytes.len()));
        file.write_all(&bytes[..written]).expect("written");
        file.set_len(bytes.len() as u64).expect("its length");
    }
}

fn read(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Ok(mut file) => file.read_to_end(&mut bytes).map(drop).expect("reads"),
        Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{}", path.display()),
    }
    bytes
}
