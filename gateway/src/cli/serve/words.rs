//! What `serve` says: when it is up, and when its port is taken. Every command in it can be pasted
//! into a shell as it stands.

use crate::cli::args::{DEFAULT_URL, ServeArgs};
use crate::config::{Argument, Kind, Settings, Value};
use crate::store::embedded::Durability;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

/// How to call this executable from the present folder: `tidegate` if the shell's search finds just
/// that, a relative path if it is below the folder, the full path otherwise.
pub(crate) fn call(exe: &Path, folder: &Path, found_on_path: Option<&Path>) -> String {
    if found_on_path == Some(exe) {
        return "tidegate".into();
    }
    let path = match exe.strip_prefix(folder) {
        Ok(below) if below.components().count() > 1 => below.to_owned(),
        Ok(below) => PathBuf::from(".").join(below),
        Err(_) => exe.to_owned(),
    };
    quote(&path.display().to_string())
}

/// A word as a shell takes it.
pub(crate) fn quote(word: &str) -> String {
    if !word.is_empty()
        && word
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"/._-+=:@,%[]".contains(&b))
    {
        // Only [ and ] are special among these, and only where they match a file.
        return if word.contains('[') {
            format!("'{word}'")
        } else {
            word.to_owned()
        };
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// The URL of a gateway on this machine.
pub(crate) fn url(listen: SocketAddr) -> String {
    format!("ws://{listen}")
}

/// The message of a gateway that has begun to listen.
pub(crate) fn up(settings: &Settings, file: Option<&Path>, listen: SocketAddr, call: &str) -> String {
    let url = url(listen);
    let environment = if url == DEFAULT_URL {
        String::new()
    } else {
        format!("  export TIDEGATE_URL={}\n", quote(&url))
    };
    let durability = match settings.durability {
        Durability::Fsync => "an ack means: on disk",
        Durability::Memory => "an ack means: handed to the system, and a power cut may lose it",
    };
    let data = match &settings.redis_url {
        Some(redis) => format!("in Redis at {}", Kind::Redis.show(&Value::Text(redis.clone()))),
        None => format!("in {} ({durability})", settings.data_dir.display()),
    };
    format!(
        "Tidegate {version} listens on {url}\n\
         Its data is {data}.\n\
         {configuration}\
         Dev mode: anyone on this machine may read and write everything; nobody else can connect.\n\
         \n\
         Next, in other terminals:\n\
         \n\
         {environment}  {call} watch demo\n  {call} set demo notes/n1 title=Hello stars:=5\n\
         \n\
         Ctrl-C stops it.\n",
        version = env!("CARGO_PKG_VERSION"),
        configuration = file.map_or_else(String::new, |path| format!(
            "Its configuration is {}.\n",
            path.display()
        )),
    )
}

/// The message when another program has the port: how to start on the free one, and how to find it then.
pub(crate) fn port_taken(args: &ServeArgs, taken: SocketAddr, free: Option<SocketAddr>, call: &str) -> String {
    let mut text = format!("{taken} is taken by another program.");
    let Some(free) = free else {
        text.push_str("\nStop that, or choose a free port with --listen.");
        return text;
    };
    let mut command = format!("{call} serve --listen {}", quote(&free.to_string()));
    if let Some(path) = &args.config {
        command.push_str(&format!(" --config {}", quote(&path.display().to_string())));
    }
    for argument in args.settings() {
        match &argument {
            _ if argument.key() == Some("listen") => {}
            Argument::Own("--dev", _) => command.push_str(" --dev"),
            Argument::Own(option, value) => {
                command.push_str(&format!(" {option} {}", quote(&value.display().to_string())))
            }
            Argument::Set(set) => command.push_str(&format!(" --set {}", quote(&set.display().to_string()))),
        }
    }
    let url = quote(&url(free));
    text.push_str(&format!(
        "\nIf that is a Tidegate gateway, it needs no second one. Otherwise start this one beside it:\n\n  {command}\n\n\
         and tell the other commands where it is:\n\n  export TIDEGATE_URL={url}\n"
    ));
    text
}

/// How many ports after the one that is taken are tried.
const PORTS_TRIED: u16 = 100;

/// The first free port after that of `taken`.
pub(crate) fn free_after(taken: SocketAddr) -> Option<SocketAddr> {
    (1..=PORTS_TRIED)
        .filter_map(|n| taken.port().checked_add(n))
        .map(|port| SocketAddr::new(taken.ip(), port))
        .find(|address| TcpListener::bind(address).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_is_called_as_briefly_as_the_shell_can_find_it() {
        let exe = Path::new("/src/tidegate/target/release/tidegate");
        let call = |folder: &str, found: Option<&str>| call(exe, Path::new(folder), found.map(Path::new));
        assert_eq!(call("/src/tidegate", None), "target/release/tidegate");
        assert_eq!(call("/src/tidegate/target/release", None), "./tidegate");
        assert_eq!(call("/src/other", None), "/src/tidegate/target/release/tidegate");
        assert_eq!(
            call("/src/other", Some("/src/tidegate/target/release/tidegate")),
            "tidegate"
        );
        assert_eq!(
            call("/src/other", Some("/usr/bin/tidegate")),
            "/src/tidegate/target/release/tidegate"
        );
        assert_eq!(
            super::call(Path::new("/a b/it's"), Path::new("/"), None),
            r"'a b/it'\''s'"
        );
    }

    #[test]
    fn the_first_message_names_the_url_who_may_come_in_and_the_next_commands() {
        let settings = Settings::default();
        let text = up(&settings, None, settings.listen, "target/release/tidegate");
        for wants in [
            "ws://127.0.0.1:8080",
            "on this machine",
            "  target/release/tidegate watch demo\n",
            "./tidegate-data",
        ] {
            assert!(text.contains(wants), "{wants}: {text}");
        }
        assert!(!text.contains("TIDEGATE_URL"), "the default needs no variable: {text}");
        assert!(!text.contains("configuration"), "there is no file: {text}");
        let file = Some(Path::new("etc/tidegate.toml"));
        let text = up(&settings, file, "[::1]:8081".parse().unwrap(), "tidegate");
        assert!(text.contains("Its configuration is etc/tidegate.toml.\n"), "{text}");
        assert!(text.contains("export TIDEGATE_URL='ws://[::1]:8081'\n"), "{text}");
    }

    #[test]
    fn a_taken_port_gets_the_exact_lines_to_start_on_the_next_free_one() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let taken_at = taken.local_addr().unwrap();
        let free = free_after(taken_at).expect("one of a hundred ports is free");
        assert!(free.port() > taken_at.port());
        let args = ServeArgs {
            dev: true,
            data_dir: Some("my data".into()),
            max_space_docs: Some("9".into()),
            set: vec!["limits.ops=7".into(), "listen=127.0.0.1:8080".into()],
            ..ServeArgs::default()
        };
        let text = port_taken(
            &args,
            "127.0.0.1:8080".parse().unwrap(),
            Some("127.0.0.1:8081".parse().unwrap()),
            "tidegate",
        );
        for wants in [
            "127.0.0.1:8080 is taken",
            "\n  tidegate serve --listen 127.0.0.1:8081 --dev --data-dir 'my data' --max-space-docs 9 --set limits.ops=7\n",
            "\n  export TIDEGATE_URL=ws://127.0.0.1:8081\n",
        ] {
            assert!(text.contains(wants), "{wants}: {text}");
        }
    }
}
