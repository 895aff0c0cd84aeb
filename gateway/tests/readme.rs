//! The README's tour, run as it stands: `sh tour` blocks one after another, each compared with the `text`
//! block that follows; `sh watch` in the background, compared with `text watch`.

#[path = "support/cli.rs"]
mod cli;

use cli::{Gateway, Running, TIDEGATE, root, said, text};
use std::path::Path;
use std::process::{Command, Stdio};

/// The fenced blocks: what follows the fence, and the content.
fn blocks(markdown: &str) -> Vec<(&str, String)> {
    let mut found = Vec::new();
    let mut lines = markdown.lines();
    while let Some(line) = lines.next() {
        if let Some(info) = line.strip_prefix("```") {
            let content = lines
                .by_ref()
                .take_while(|line| *line != "```")
                .flat_map(|line| [line, "\n"])
                .collect();
            found.push((info, content));
        }
    }
    found
}

fn shell(gateway: &Gateway, script: &str) -> Command {
    let folder = Path::new(TIDEGATE).parent().expect("a folder").display().to_string();
    let path = option_env!("PATH").map_or_else(|| folder.clone(), |rest| format!("{folder}:{rest}"));
    let mut command = Command::new("bash");
    command.args(["-euc", script]).current_dir(root()).stdin(Stdio::null());
    command
        .env("PATH", path)
        .env("TIDEGATE_URL", &gateway.url)
        .env("XDG_STATE_HOME", gateway.state());
    command.env_remove("TIDEGATE_TOKEN");
    command
}

#[test]
fn the_readmes_tour_does_what_the_readme_shows() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let gateway = Gateway::start();
    let mut watching = None;
    let mut printed: Option<String> = None;
    let (mut tours, mut compared) = (0, 0);
    for (info, content) in blocks(&readme) {
        match info {
            "sh watch" => {
                let command = shell(&gateway, &format!("exec {}", content.trim()));
                let running = Running::start(command, gateway.folder().join("watched"));
                running.wait_for(|so_far| so_far.contains("up to date"));
                watching = Some(running);
            }
            "sh tour" => {
                let output = shell(&gateway, &content).output().expect("bash runs");
                assert!(output.status.success(), "{content}\n{}", said(&output));
                printed = Some(text(&output.stdout));
                tours += 1;
            }
            "text" => {
                assert_eq!(
                    printed.take().as_deref(),
                    Some(content.as_str()),
                    "what the tour prints"
                );
                compared += 1;
            }
            "text watch" => {
                let watching = watching.as_ref().expect("something is watched");
                let so_far = watching.wait_for(|so_far| so_far.len() >= content.len());
                assert_eq!(so_far, content);
            }
            _ => {}
        }
    }
    assert!(
        tours >= 5 && compared == tours,
        "{tours} parts of the tour, {compared} of them compared"
    );
}

#[test]
fn the_readme_names_the_two_commands_and_what_a_fresh_machine_needs() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let commands: Vec<_> = blocks(&readme)
        .into_iter()
        .filter(|(info, _)| *info == "sh")
        .map(|(_, text)| text)
        .collect();
    assert_eq!(commands[..2], ["cargo run --release -- serve --dev\n", "make test\n"]);
    for needed in ["build-essential git", "https://rustup.rs"] {
        assert!(readme.contains(needed), "{needed}");
    }
    for (link, _) in readme.split("](").skip(1).filter_map(|rest| rest.split_once(')')) {
        assert!(
            link.starts_with("https://") || root().join(link).exists(),
            "a dead link: {link}"
        );
    }
}
