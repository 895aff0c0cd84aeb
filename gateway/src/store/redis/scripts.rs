//! The scripts: each is one atomic step.

use sha1::{Digest, Sha1};
use std::sync::OnceLock;

/// A Lua script with the prelude in front of it.
pub(super) struct Script {
    body: &'static str,
    text: OnceLock<String>,
    sha: OnceLock<String>,
}

impl Script {
    const fn new(body: &'static str) -> Self {
        Self {
            body,
            text: OnceLock::new(),
            sha: OnceLock::new(),
        }
    }

    pub(super) fn text(&self) -> &str {
        self.text.get_or_init(|| format!("{PRELUDE}\n{}", self.body))
    }

    /// Its name on a server: SHA-1, in hexadecimal.
    pub(super) fn sha(&self) -> &str {
        self.sha.get_or_init(|| {
            let digest = Sha1::digest(self.text());
            digest.iter().map(|byte| format!("{byte:02x}")).collect()
        })
    }
}

const PRELUDE: &str = include_str!("scripts/prelude.lua");
pub(super) static COMMIT: Script = Script::new(include_str!("scripts/commit.lua"));
pub(super) static READ: Script = Script::new(include_str!("scripts/read.lua"));
pub(super) static LOG: Script = Script::new(include_str!("scripts/log.lua"));
pub(super) static NEXT: Script = Script::new(include_str!("scripts/next.lua"));
pub(super) static CHANGES: Script = Script::new(include_str!("scripts/changes.lua"));
pub(super) static POSITIONS: Script = Script::new(include_str!("scripts/positions.lua"));
pub(super) static CONFLICTS: Script = Script::new(include_str!("scripts/conflicts.lua"));
pub(super) static RAISE: Script = Script::new(include_str!("scripts/raise.lua"));
pub(super) static SWEEP: Script = Script::new(include_str!("scripts/sweep.lua"));
pub(super) static TRIM: Script = Script::new(include_str!("scripts/trim.lua"));
pub(super) static TAKE: Script = Script::new(include_str!("scripts/take.lua"));
pub(super) static CARRY: Script = Script::new(include_str!("scripts/carry.lua"));
pub(super) static LOOK: Script = Script::new(include_str!("scripts/look.lua"));
pub(super) static FORGET: Script = Script::new(include_str!("scripts/forget.lua"));
pub(super) static ERASE_BEGIN: Script = Script::new(include_str!("scripts/erase_begin.lua"));
pub(super) static ERASE: Script = Script::new(include_str!("scripts/erase.lua"));
pub(super) static ERASE_END: Script = Script::new(include_str!("scripts/erase_end.lua"));
pub(super) static ALL: &[&Script] = &[
    &COMMIT,
    &READ,
    &LOG,
    &NEXT,
    &CHANGES,
    &POSITIONS,
    &CONFLICTS,
    &RAISE,
    &SWEEP,
    &TRIM,
    &TAKE,
    &CARRY,
    &LOOK,
    &FORGET,
    &ERASE_BEGIN,
    &ERASE,
    &ERASE_END,
];
