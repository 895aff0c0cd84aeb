//! The commands for who runs a gateway, against the real one and its files.

#[path = "support/cli.rs"]
mod cli;

use cli::{Gateway, Process, Running, said, text, tidegate, until};
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Output, Stdio};

/// Runs a command on a data directory.
fn on(data: &Path, args: &[&str]) -> Output {
    let data = data.to_str().expect("a plain path");
    tidegate(args).args(["--data-dir", data]).output().expect("it runs")
}

/// As `on`; it must fail with status 1. Returns what it complained.
fn refused(data: &Path, args: &[&str]) -> String {
    let output = on(data, args);
    assert_eq!(output.status.code(), Some(1), "{args:?}: {}", said(&output));
    text(&output.stderr)
}

#[test]
fn check_reads_a_stopped_store_and_refuses_one_in_use() {
    let mut gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1", "b.c=2"]);
    gateway.run(&["unset", "demo", "notes/n1", "b"]);
    gateway.run(&["delete", "demo", "notes/n1"]);
    let data = gateway.data();
    let error = refused(&data, &["check"]);
    assert!(error.contains("in use") && error.contains("LOCK"), "{error}");
    gateway.stop();
    let output = on(&data, &["check"]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(
        text(&output.stdout).contains("1 spaces, 1 documents"),
        "{}",
        said(&output)
    );
}

#[test]
fn check_names_what_is_no_store_and_makes_none() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("nowhere");
    let error = refused(&data, &["check"]);
    assert!(error.contains("no store in") && error.contains("nowhere"), "{error}");
    assert!(!data.exists());
}

/// As `on`; it must succeed. Returns what it printed.
fn done(data: &Path, args: &[&str]) -> String {
    let output = on(data, args);
    assert!(output.status.success(), "{args:?}: {}", said(&output));
    text(&output.stdout)
}

fn plain(path: &Path) -> &str {
    path.to_str().expect("a plain path")
}

/// Every document of a space of the gateway on `data`, as `export` prints them.
fn exported(data: &Path, space: &str) -> String {
    Gateway::on(data).run(&["export", space])
}

#[test]
fn a_backup_is_made_with_a_gateway_running_and_without_and_restored_into_a_new_directory() {
    let mut gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1", "b.c=2"]);
    gateway.run(&["set", "other", "notes/n1", "a=2"]);
    let (data, folder) = (gateway.data(), gateway.folder().to_owned());
    let (online, offline) = (folder.join("online"), folder.join("offline"));
    let printed = done(&data, &["backup", plain(&online)]);
    assert!(printed.contains("online: 2 spaces, "), "{printed}");
    gateway.run(&["set", "demo", "notes/n1", "a=9"]);
    gateway.stop();
    let printed = done(&data, &["backup", plain(&offline)]);
    assert!(printed.contains("offline: 2 spaces, "), "{printed}");
    for (file, a) in [(&online, "1"), (&offline, "9")] {
        assert_eq!(fs::metadata(file).expect("there").permissions().mode() & 0o777, 0o600);
        let fresh = file.with_extension("data");
        let printed = done(&fresh, &["restore", plain(file)]);
        assert!(printed.contains("2 spaces, "), "{printed}");
        done(&fresh, &["check"]);
        let docs = exported(&fresh, "demo");
        assert!(docs.contains(&format!("\"a\":\"{a}\"")), "{docs}");
    }
    let left: Vec<_> = fs::read_dir(&folder)
        .expect("readable")
        .map(|entry| entry.expect("readable").file_name())
        .filter(|name| plain(Path::new(name)).ends_with(".part"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_backup_goes_to_standard_output_and_a_restore_reads_standard_input() {
    let gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let fresh = gateway.folder().join("fresh");
    let script = r#""$0" backup - --data-dir "$1" | "$0" restore - --data-dir "$2""#;
    let output = std::process::Command::new("bash")
        .args([
            "-eu",
            "-o",
            "pipefail",
            "-c",
            script,
            cli::TIDEGATE,
            plain(&gateway.data()),
            plain(&fresh),
        ])
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{}", said(&output));
    assert!(exported(&fresh, "demo").contains("notes/n1"));
}

#[test]
fn a_file_that_is_there_is_written_over_only_when_told_to() {
    let gateway = Gateway::start();
    let file = gateway.folder().join("file");
    fs::write(&file, "mine").expect("written");
    let error = refused(&gateway.data(), &["backup", plain(&file)]);
    assert!(
        error.contains("file is there already") && error.contains("--force"),
        "{error}"
    );
    assert_eq!(fs::read(&file).expect("there"), b"mine");
    done(&gateway.data(), &["backup", "--force", plain(&file)]);
    assert!(fs::read(&file).expect("there").starts_with(b"tidegate-backup 1 store "));
    let error = refused(
        &gateway.data(),
        &["backup", plain(&gateway.folder().join("no/such/file"))],
    );
    assert!(error.contains("no/such/file.part"), "{error}");
}

#[test]
fn what_lies_where_a_backup_is_written_opens_it_to_nobody_and_leads_it_nowhere() {
    let gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let (data, folder) = (gateway.data(), gateway.folder());
    let (file, part) = (folder.join("file"), folder.join("file.part"));
    fs::write(&part, "left behind").expect("written");
    fs::set_permissions(&part, fs::Permissions::from_mode(0o666)).expect("set");
    done(&data, &["backup", plain(&file)]);
    assert_eq!(fs::metadata(&file).expect("there").permissions().mode() & 0o777, 0o600);
    let other = folder.join("other");
    fs::write(&other, "mine").expect("written");
    std::os::unix::fs::symlink(&other, &part).expect("linked");
    let error = refused(&data, &["backup", "--force", plain(&file)]);
    assert!(error.contains("file.part"), "{error}");
    assert_eq!(fs::read(&other).expect("there"), b"mine");
    // What is no file is not replaced by one.
    let socket = data.join("control.sock");
    let error = refused(&data, &["backup", "--force", plain(&socket)]);
    assert!(error.contains("is no file"), "{error}");
    assert!(fs::metadata(&socket).expect("there").file_type().is_socket());
}

#[test]
fn a_damaged_backup_and_a_directory_with_something_in_it_are_refused_by_name() {
    let gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let (file, fresh) = (gateway.folder().join("file"), gateway.folder().join("fresh"));
    done(&gateway.data(), &["backup", plain(&file)]);
    let error = refused(&gateway.data(), &["restore", plain(&file)]);
    assert!(error.contains("is not empty"), "{error}");
    let bytes = fs::read(&file).expect("there");
    fs::write(&file, &bytes[..bytes.len() - 10]).expect("written");
    let error = refused(&fresh, &["restore", plain(&file)]);
    assert!(
        error.contains(&format!("{}: at byte {}", file.display(), bytes.len() - 10)),
        "{error}"
    );
    fs::write(&file, "{\"a\":1}\n").expect("written");
    let error = refused(&fresh, &["restore", plain(&file)]);
    assert!(error.contains("does not begin as a backup"), "{error}");
    assert!(!fresh.exists());
    let error = refused(&fresh, &["backup", plain(&file.with_extension("other"))]);
    assert!(error.contains("no store in"), "{error}");
    assert!(!fresh.exists() && !file.with_extension("other").exists());
}

#[test]
fn what_a_killed_gateway_left_is_no_obstacle_and_one_without_a_socket_is_told() {
    let mut gateway = Gateway::start();
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let (data, file) = (gateway.data(), gateway.folder().join("file"));
    gateway.kill();
    assert!(data.join("control.sock").exists());
    done(&data, &["backup", plain(&file)]);
    let gateway = Gateway::on(&data);
    done(&data, &["backup", "--force", plain(&file)]);
    fs::remove_file(data.join("control.sock")).expect("removed");
    let error = refused(&data, &["backup", "--force", plain(&file)]);
    assert!(error.contains("in use") && error.contains("control socket"), "{error}");
    drop(gateway);
}

#[test]
fn the_control_socket_is_its_owners_and_goes_with_the_gateway() {
    let mut gateway = Gateway::start();
    let socket = gateway.data().join("control.sock");
    let about = fs::metadata(&socket).expect("there");
    assert!(about.file_type().is_socket());
    assert_eq!(about.permissions().mode() & 0o777, 0o600);
    gateway.stop();
    assert!(!socket.exists());
}

#[test]
fn a_gateway_that_can_have_no_control_socket_serves_without() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("data");
    // In its place is what cannot be replaced.
    fs::create_dir_all(data.join("control.sock/full")).expect("created");
    let gateway = Gateway::on(&data);
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let error = refused(&data, &["backup", plain(&folder.path().join("file"))]);
    assert!(error.contains("control socket"), "{error}");
    let log = fs::read_to_string(data.with_extension("log")).expect("a log");
    assert!(log.contains("no control socket"), "{log}");
}

#[test]
fn a_path_longer_than_a_socket_may_have_works_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let data = folder.path().join("x".repeat(120)).join("data");
    fs::create_dir_all(&data).expect("created");
    let gateway = Gateway::on(&data);
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    let file = folder.path().join("file");
    let printed = done(&data, &["backup", plain(&file)]);
    assert!(printed.contains("1 spaces"), "{printed}");
}

#[test]
fn a_restore_that_was_killed_leaves_no_store_and_can_be_done_again() {
    let gateway = Gateway::start();
    fill(&gateway);
    let (file, fresh) = (gateway.folder().join("file"), gateway.folder().join("fresh"));
    done(&gateway.data(), &["backup", plain(&file)]);
    let bytes = fs::read(&file).expect("there");
    let command = tidegate(&["restore", "-", "--data-dir", plain(&fresh)])
        .stdin(Stdio::piped())
        .spawn();
    let mut restoring = Process(command.expect("it starts"));
    let mut input = restoring.0.stdin.take().expect("piped");
    // More than what waits on the way: some of it has been written to the new database.
    input.write_all(&bytes[..bytes.len() - 1]).expect("written");
    assert!(fresh.join("db.restore").exists());
    restoring.0.kill().expect("killed");
    restoring.0.wait().expect("it ends");
    let error = refused(&fresh, &["check"]);
    assert!(error.contains("no store in"), "{error}");
    // An empty store in its place would pass for the one that was to be restored.
    let error = does_not_serve(&fresh);
    assert!(
        error.contains("db.restore") && error.contains("restore the backup again"),
        "{error}"
    );
    assert!(!fresh.join("db").exists() && !fresh.join("FORMAT").exists());
    done(&fresh, &["restore", plain(&file)]);
    done(&fresh, &["check"]);
}

#[test]
fn a_users_data_and_then_the_space_are_erased_with_a_gateway_running_and_without() {
    let mut gateway = Gateway::start();
    let data = gateway.data();
    gateway.run(&["--token", "alice", "set", "demo", "notes/n1", "a=alice"]);
    gateway.run(&["--token", "bob", "set", "demo", "notes/n1", "b=bob"]);
    gateway.run(&["--token", "alice", "set", "demo", "notes/n2", "a=alice"]);
    gateway.run(&["set", "other", "notes/n1", "a=1"]);
    let watch = gateway.command(&["watch", "demo", "--json"]);
    let watching = Running::start(watch, gateway.folder().join("watched"));
    watching.wait_for(|so_far| so_far.contains("current"));

    let asked = refused(&data, &["erase", "demo", "--user", "alice"]);
    assert!(asked.contains("nothing was erased"), "{asked}");
    assert!(gateway.run(&["export", "demo"]).contains("alice"));
    let printed = in_a_shell(command_in(&asked));
    let counts = "alice in the space demo: 1 documents, 2 fields, 3 commits of the log, 0 conflicts, 1 clients";
    assert!(printed.contains(counts), "{printed}");
    assert_eq!(
        gateway.run(&["export", "demo"]),
        "{\"doc\":\"notes/n1\",\"fields\":{\"b\":\"bob\"}}\n"
    );
    // Who watches gets the whole anew, without it.
    let seen = watching.wait_for(|so_far| so_far.matches("\"current\"").count() > 1);
    let (_, after) = seen.rsplit_once("\"reset\"").expect("a reset");
    assert!(after.contains("bob") && !after.contains("alice"), "{seen}");
    // Alice writes on, as a new client; bob as the one that he was.
    gateway.run(&["--token", "alice", "set", "demo", "notes/n3", "a=again"]);
    gateway.run(&["--token", "bob", "set", "demo", "notes/n1", "b=again"]);

    gateway.stop();
    let printed = done(&data, &["erase", "demo", "--yes"]);
    assert!(
        printed.contains("everything of the space demo: 2 documents"),
        "{printed}"
    );
    done(&data, &["check"]);
    let gateway = Gateway::on(&data);
    assert_eq!(gateway.run(&["export", "demo"]), "");
    assert!(gateway.run(&["export", "other"]).contains("notes/n1"));
    let missing = data.with_extension("missing");
    let error = refused(&missing, &["erase", "demo", "--yes"]);
    assert!(error.contains("no store in") && !missing.exists(), "{error}");
}

/// The command that a message tells to run.
fn command_in(message: &str) -> &str {
    let command = message.lines().find_map(|line| line.strip_prefix("  "));
    command.unwrap_or_else(|| panic!("no command in {message}"))
}

/// Runs a line as a shell does; it must succeed. Returns what it printed.
fn in_a_shell(line: &str) -> String {
    let output = std::process::Command::new("sh").args(["-c", line]).output();
    let output = output.expect("a shell runs");
    assert!(output.status.success(), "{line}: {}", said(&output));
    text(&output.stdout)
}

#[test]
fn the_command_that_an_unsure_erase_prints_can_be_pasted_into_a_shell() {
    let mut gateway = Gateway::start();
    let user = "-it's $HOME; *";
    gateway.run(&[&format!("--token={user}"), "set", "demo", "notes/n1", "a=1"]);
    gateway.stop();
    let data = gateway.data().with_extension("with 'quotes'");
    fs::rename(gateway.data(), &data).expect("moved");
    let asked = refused(&data, &["erase", "demo", &format!("--user={user}")]);
    let printed = in_a_shell(command_in(&asked));
    assert!(
        printed.contains(&format!("user {user} in the space demo: 1 documents")),
        "{printed}"
    );
}

#[test]
fn an_erasure_whose_asker_hangs_up_goes_on_and_who_asks_again_is_told_of_its_end() {
    let gateway = Gateway::start();
    fill(&gateway);
    let data = gateway.data();
    let ask = || {
        let mut socket = UnixStream::connect(data.join("control.sock")).expect("connects");
        let request = b"{\"command\":\"erase\",\"space\":\"demo\",\"user\":null}\n";
        socket.write_all(request).expect("written");
        socket
    };
    drop(ask());
    until("it is gone", || gateway.run(&["export", "demo"]).is_empty());
    let mut line = String::new();
    BufReader::new(ask()).read_line(&mut line).expect("an answer");
    assert!(line.starts_with("{\"ok\":{\"docs\":0,"), "{line}");
}

/// Starts a gateway on `data`, which must end with status 1 before it listens. Returns what it complained.
fn does_not_serve(data: &Path) -> String {
    let mut command = tidegate(&["serve", "--dev", "--listen", "127.0.0.1:0", "--data-dir", plain(data)]);
    let started = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut process = Process(started.expect("it starts"));
    let (mut greeting, mut error) = (String::new(), String::new());
    let out = process.0.stdout.take().expect("piped");
    BufReader::new(out).read_line(&mut greeting).expect("text");
    assert_eq!(greeting, "", "it serves");
    let mut said = process.0.stderr.take().expect("piped");
    said.read_to_string(&mut error).expect("text");
    assert_eq!(process.0.wait().expect("it ends").code(), Some(1), "{error}");
    error
}

/// Says something to a control socket, and returns the first line of the answer.
fn say(data: &Path, bytes: &[u8]) -> String {
    let mut socket = UnixStream::connect(data.join("control.sock")).expect("connects");
    socket.set_read_timeout(Some(cli::PATIENCE)).expect("set");
    // The gateway may have refused before it has read all.
    let _ = socket.write_all(bytes);
    let _ = socket.shutdown(std::net::Shutdown::Write);
    let mut line = String::new();
    let _ = BufReader::new(socket).read_line(&mut line);
    line
}

#[test]
fn nothing_that_is_said_to_the_control_socket_harms_the_gateway() {
    let gateway = Gateway::start();
    let data = gateway.data();
    let huge = [b"{\"command\":\"".to_vec(), vec![b'x'; 1 << 20]].concat();
    for (bytes, wants) in [
        (&b"\n"[..], "that is no request"),
        (b"{}\n", "that is no request"),
        (b"\xff\x00\xfe\n", "that is no request"),
        (b"{\"command\":\"format\"}\n", "unknown variant"),
        (b"{\"command\":\"backup\",\"more\":1}\n", "unknown field"),
        (b"{\"command\":\"erase\",\"space\":\"de%mo\"}\n", "space"),
        (b"{\"command\":\"backup\"}", "ends before its line does"),
        (b"", "ends before its line does"),
        (&huge, "65536 bytes at most"),
    ] {
        let line = say(&data, bytes);
        assert!(line.starts_with("{\"error\":") && line.contains(wants), "{line}");
    }
    assert_eq!(say(&data, b"{\"command\":\"backup\"}\n"), "{\"ok\":{}}\n");
    // Half a line, and then nothing: it is given up, and others are served meanwhile.
    let waiting: Vec<_> = (0..8)
        .map(|_| {
            let mut socket = UnixStream::connect(data.join("control.sock")).expect("connects");
            socket.write_all(b"{\"comm").expect("written");
            socket
        })
        .collect();
    // The backup above, of which a line was read, may still be ending.
    until("the next one's turn", || {
        on(&data, &["backup", "--force", plain(&gateway.folder().join("file"))])
            .status
            .success()
    });
    for mut socket in waiting {
        socket.set_read_timeout(Some(cli::PATIENCE)).expect("set");
        let mut line = String::new();
        socket.read_to_string(&mut line).expect("an answer");
        assert!(line.contains("no request came"), "{line}");
    }
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
}

/// Writes documents of some size, so that a backup does not fit into what waits on its way.
fn fill(gateway: &Gateway) {
    let text = "x".repeat(100_000);
    let records: Vec<_> = (0..40)
        .map(|n| format!("{{\"id\":\"{n}\",\"text\":\"{text}\"}}"))
        .collect();
    let file = gateway.folder().join("records");
    fs::write(&file, records.join("\n")).expect("written");
    gateway.run(&["import", "demo", "c", plain(&file)]);
}

#[test]
fn one_backup_is_made_at_a_time_and_one_that_nobody_reads_ends() {
    let mut gateway = Gateway::start();
    fill(&gateway);
    let (data, file) = (gateway.data(), gateway.folder().join("file"));
    let mut slow = UnixStream::connect(data.join("control.sock")).expect("connects");
    slow.write_all(b"{\"command\":\"backup\"}\n").expect("written");
    let mut begin = [0; 64];
    slow.read_exact(&mut begin).expect("it begins");
    let error = refused(&data, &["backup", plain(&file)]);
    assert!(error.contains("another backup is under way"), "{error}");
    // Writes go on.
    gateway.run(&["set", "demo", "notes/n1", "a=1"]);
    drop(slow);
    until("the next one's turn", || {
        on(&data, &["backup", "--force", plain(&file)]).status.success()
    });
    // A gateway that is told to stop does not wait for a reader, and the reader is told.
    let command = tidegate(&["backup", "-", "--data-dir", plain(&data)])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut reader = Process(command.expect("it starts"));
    let mut begin = [0; 64];
    let mut printed = reader.0.stdout.take().expect("piped");
    printed.read_exact(&mut begin).expect("it begins");
    gateway.stop();
    let mut rest = Vec::new();
    printed.read_to_end(&mut rest).expect("it ends");
    let mut error = String::new();
    reader
        .0
        .stderr
        .take()
        .expect("piped")
        .read_to_string(&mut error)
        .expect("text");
    assert!(!reader.0.wait().expect("it ends").success());
    assert!(error.contains("not whole") || error.contains("stopping"), "{error}");
    let (fresh, cut) = (gateway.folder().join("fresh"), gateway.folder().join("cut"));
    fs::write(&cut, [&begin[..], &rest].concat()).expect("written");
    refused(&fresh, &["restore", plain(&cut)]);
    assert!(!fresh.exists());
}

/// The value of a metric of the gateway at this address.
fn metric(address: &str, name: &str) -> Option<u64> {
    let mut socket = std::net::TcpStream::connect(address).ok()?;
    socket
        .set_read_timeout(Some(std::time::Duration::from_secs(2)))
        .expect("set");
    socket
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut page = String::new();
    socket.read_to_string(&mut page).ok()?;
    let line = page
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// CPU time that a process has taken, in ticks of 10 ms.
fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).expect("it runs");
    // After the name, in brackets, the 12th and 13th: user and system.
    let fields: Vec<_> = stat.rsplit(')').next().expect("a name").split_whitespace().collect();
    [11, 12]
        .map(|field| fields[field].parse::<u64>().expect("a number"))
        .iter()
        .sum()
}

#[test]
fn a_gateway_without_a_free_file_waits_and_then_takes_connections_again() {
    use rustix::process::{Pid, Resource, Rlimit, prlimit};
    let gateway = Gateway::start();
    let address = gateway.url.trim_start_matches("ws://").trim_end_matches('/').to_owned();
    let open = fs::read_dir(format!("/proc/{}/fd", gateway.pid()))
        .expect("it runs")
        .count();
    let pid = i32::try_from(gateway.pid()).ok().and_then(Pid::from_raw);
    let files = |current| Rlimit {
        current: Some(current),
        maximum: Some(4_096),
    };
    prlimit(pid, Resource::Nofile, files(open as u64 + 8)).expect("set");
    // The kernel accepts them all; the gateway has no files for most.
    let silent: Vec<_> = (0..40)
        .map(|_| std::net::TcpStream::connect(&address).expect("accepted"))
        .collect();
    let before = ticks(gateway.pid());
    #[allow(clippy::disallowed_methods, reason = "the test's own thread")]
    std::thread::sleep(std::time::Duration::from_millis(1_500));
    let busy = ticks(gateway.pid()) - before;
    assert!(busy < 50, "it takes {busy} of 150 ticks to wait");
    drop(silent);
    let errors = "tidegate_accept_errors_total{reason=\"files\"}";
    until("it takes connections again", || metric(&address, errors).is_some());
    let errors = metric(&address, errors).expect("it answers");
    // 10 ms, 20 ms and so on up to a second between two of them.
    assert!((3..=20).contains(&errors), "{errors}");
}
