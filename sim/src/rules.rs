//! Rules that change while the fleet runs.

use parking_lot::Mutex;
use std::sync::LazyLock;
use tidegate::auth::{Authoriser, Denial, Identity, ReadScope};
use tidegate::session::view_of;
use tidegate_protocol::{Code, Collection, DocPath, Policy, SpaceId, ViewId};

/// Filters that apps choose from, by the collections named; `None` is all.
pub(crate) const FILTERS: [Option<&[&str]>; 5] = [
    None,
    Some(&["counters", "tags"]),
    Some(&["counters", "pairs", "tags"]),
    Some(&["notes"]),
    Some(&["notes", "pairs"]),
];

/// What the rules may let a user read; `None` is all.
const SCOPES: [Option<&[&str]>; 3] = [None, Some(&["counters", "pairs", "tags"]), Some(&["notes", "pairs"])];

/// What a user may do in a space.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Right {
    /// Read what this one of [`SCOPES`] says, and write there.
    Scope(usize),
    /// Nothing.
    Nothing,
    /// The rules cannot be asked now.
    Unknown,
}

/// Who may do what, changed by the scheduler.
pub(crate) struct Rules {
    spaces: Vec<SpaceId>,
    /// By user, then by space.
    rights: Mutex<Vec<Vec<Right>>>,
}

pub(crate) fn collections(names: &[&str]) -> Vec<Collection> {
    let parse = |name: &&str| Collection::parse(name).expect("a constant name");
    names.iter().map(parse).collect()
}

/// A user's name; her token is the same.
pub(crate) fn user_name(user: usize) -> String {
    format!("user{user}")
}

/// Every view that a filter and the rules can make, and what it covers.
pub(crate) static VIEWS: LazyLock<Vec<(ViewId, Option<Vec<Collection>>)>> = LazyLock::new(|| {
    let mut all = Vec::new();
    for filter in FILTERS {
        for scope in SCOPES {
            let scope = scope.map_or(ReadScope::All, |names| ReadScope::Collections(collections(names)));
            let view = view_of(filter.map(collections).as_deref(), &scope);
            all.push((view.id, view.collections.map(|set| set.into_iter().collect())));
        }
    }
    all
});

impl Rules {
    pub(crate) fn new(users: usize, spaces: Vec<SpaceId>) -> Self {
        Self {
            rights: Mutex::new(vec![vec![Right::Scope(0); spaces.len()]; users]),
            spaces,
        }
    }

    /// A right that somebody may be given.
    pub(crate) fn some_right(n: usize) -> Right {
        match n {
            0 => Right::Nothing,
            1 => Right::Unknown,
            n => Right::Scope(n % SCOPES.len()),
        }
    }

    pub(crate) fn set(&self, user: usize, space: usize, right: Right) {
        self.rights.lock()[user][space] = right;
    }

    fn right(&self, who: &Identity, space: &SpaceId) -> Right {
        let user = who.user().strip_prefix("user").and_then(|n| n.parse::<usize>().ok());
        let space = self.spaces.iter().position(|name| name == space);
        match (user, space) {
            (Some(user), Some(space)) => self.rights.lock()[user][space],
            _ => Right::Nothing,
        }
    }
}

impl Authoriser for Rules {
    fn authenticate(&self, token: Option<&str>, _now_ms: u64) -> Result<Identity, Denial> {
        Ok(Identity::new(token.unwrap_or_default(), None))
    }

    fn read(&self, who: &Identity, space: &SpaceId) -> Result<ReadScope, Denial> {
        match self.right(who, space) {
            Right::Scope(n) => Ok(SCOPES[n].map_or(ReadScope::All, |names| ReadScope::Collections(collections(names)))),
            Right::Nothing => Err(Denial {
                code: Code::Forbidden,
                message: "not yours".into(),
            }),
            Right::Unknown => Err(Denial {
                code: Code::Unavailable,
                message: "cannot be asked".into(),
            }),
        }
    }

    fn write(&self, who: &Identity, space: &SpaceId, doc: &DocPath) -> Result<(), Denial> {
        let allowed = match self.right(who, space) {
            Right::Scope(n) => SCOPES[n].is_none_or(|names| names.contains(&doc.collection())),
            Right::Nothing => false,
            Right::Unknown => {
                return Err(Denial {
                    code: Code::Unavailable,
                    message: "cannot be asked".into(),
                });
            }
        };
        if allowed {
            return Ok(());
        }
        Err(Denial {
            code: Code::Forbidden,
            message: "not yours".into(),
        })
    }

    fn policy(&self, _space: &SpaceId, _doc: &DocPath) -> Policy {
        Policy::Lww
    }
}
