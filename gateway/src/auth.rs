//! The seam for authentication and rules. So far there is one authoriser: dev mode, which admits
//! anyone from this machine to everything.

use crate::store::UserTag;
use tidegate_protocol::{Code, Collection, DocPath, Policy, SpaceId};

/// Who a connection speaks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    user: String,
    tag: UserTag,
    /// When the token expires, ms since 1970.
    pub expires: Option<u64>,
}

impl Identity {
    /// This user, until then.
    pub fn new(user: impl Into<String>, expires: Option<u64>) -> Self {
        let user = user.into();
        let tag = UserTag::of(&user);
        Self { user, tag, expires }
    }

    /// The user's name; part of the writer.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The user, as the store knows one.
    pub fn tag(&self) -> UserTag {
        self.tag
    }
}

/// A refusal, in words for the one refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denial {
    /// `forbidden`, `unauthenticated`, `auth_unavailable` …
    pub code: Code,
    /// What to do next.
    pub message: String,
}

/// What of a space a user may read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ReadScope {
    /// Everything, now and later.
    All,
    /// These collections.
    Collections(Vec<Collection>),
}

/// Decides who may do what. Pure and quick: it is asked on the hot path.
pub trait Authoriser: Send + Sync + 'static {
    /// Checks a token. `None`: none was sent.
    fn authenticate(&self, token: Option<&str>, now_ms: u64) -> Result<Identity, Denial>;
    /// What of a space may be read.
    fn read(&self, who: &Identity, space: &SpaceId) -> Result<ReadScope, Denial>;
    /// Whether a document may be written, given its leaves before and after (`None`: it does not exist).
    fn write(&self, who: &Identity, space: &SpaceId, doc: &DocPath) -> Result<(), Denial>;
    /// The conflict policy of a collection, where the mutation names none.
    fn policy(&self, space: &SpaceId, doc: &DocPath) -> Policy;
}

/// Dev mode: anyone is `dev`, or whoever the token says, and may do everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct DevAuthoriser;

impl Authoriser for DevAuthoriser {
    fn authenticate(&self, token: Option<&str>, _now_ms: u64) -> Result<Identity, Denial> {
        let user = token.filter(|t| !t.is_empty()).unwrap_or("dev");
        if user.len() > 128 || user.chars().any(char::is_control) {
            return Err(Denial {
                code: Code::Unauthenticated,
                message: "in dev mode the token is the user's name: 1 to 128 bytes without control characters".into(),
            });
        }
        Ok(Identity::new(user, None))
    }

    fn read(&self, _who: &Identity, _space: &SpaceId) -> Result<ReadScope, Denial> {
        Ok(ReadScope::All)
    }

    fn write(&self, _who: &Identity, _space: &SpaceId, _doc: &DocPath) -> Result<(), Denial> {
        Ok(())
    }

    fn policy(&self, _space: &SpaceId, _doc: &DocPath) -> Policy {
        Policy::Lww
    }
}
