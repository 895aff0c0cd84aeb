//! The one table of error codes: name on the wire, close code if it closes, meaning, what a client does.

use std::fmt;

/// What a client does about an error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Consumes the mid; settles the mutation; the app is told.
    Settle,
    /// The mutation stays queued and is sent again, after `retry_ms` where given.
    Retry,
    /// Go back to `expected` and send from there.
    GoBack,
    /// Take a new client id in that space (`docs/PROTOCOL.md`, "Mids").
    NewClient,
    /// Tell the developer; the connection goes on.
    Report,
    /// Get a new token, then connect again.
    Renew,
    /// Do not come back without a change of program, configuration or user.
    Stop,
    /// Reconnect after backoff.
    Reconnect,
}

impl Action {
    /// The action as the specification's table words it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Settle => "settle: the mid is consumed, the app is told",
            Self::Retry => "keep the mutation queued, send it again after `retry_ms`",
            Self::GoBack => "send again from `expected`",
            Self::NewClient => "take a new client id in that space",
            Self::Report => "tell the developer; the connection goes on",
            Self::Renew => "get a new token, then connect again",
            Self::Stop => "do not come back without a change",
            Self::Reconnect => "reconnect after backoff",
        }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The code.
    pub code: Code,
    /// Its name on the wire and as a metric label.
    pub name: &'static str,
    /// The WebSocket close code, where the error ends the connection.
    pub close: Option<u16>,
    /// What it means.
    pub meaning: &'static str,
    /// What a client does.
    pub action: Action,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident $name:literal $close:expr, $action:ident, $meaning:literal;)*) => {
        /// Code of an error, a refusal or a close.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
        pub enum Code {
            $(#[doc = $meaning] $variant,)*
        }

        /// The table. `docs/PROTOCOL.md` shows it, and a test compares the two.
        pub const TABLE: &[Row] = &[
            $(Row { code: Code::$variant, name: $name, close: $close, meaning: $meaning, action: Action::$action },)*
        ];

        impl Code {
            /// This code's row.
            pub const fn row(self) -> &'static Row {
                &TABLE[self as usize]
            }
        }
    };
}

codes! {
    // Permanent refusals of a mutation: each consumes its mid.
    Forbidden "forbidden" None, Settle, "The rules do not allow it.";
    Invalid "invalid" None, Settle, "A name, value or combination that the protocol does not allow; the message names it.";
    Unsupported "unsupported" None, Settle, "A message type, key or op that this gateway does not know.";
    TooLarge "too_large" None, Settle, "Over a limit; the message names the limit, its bound and the value.";
    Conflict "conflict" None, Settle, "Policy `reject`, and another writer was first; `cells` has what stands.";
    PreconditionFailed "precondition_failed" None, Settle, "`exists` or `unchanged_since` does not hold; `cells` has what stands.";
    // Temporary refusals of a mutation: the mid is not consumed.
    Unavailable "unavailable" None, Retry, "The store or this node cannot do it now.";
    RateLimited "rate_limited" None, Retry, "Too many requests.";
    OutOfOrder "out_of_order" None, GoBack, "A mid before this one has not arrived; `expected` names it.";
    ClientCloned "client_cloned" None, NewClient, "Another copy of this client's database has written.";
    ClientUnknown "client_unknown" None, NewClient, "No record of this client is kept, so a repeat could not be told.";
    // Of a subscription or a connection.
    TooMany "too_many" None, Report, "Over a limit on how many; the message names it.";
    Malformed "malformed" Some(4000), Stop, "A frame that is not a message of the negotiated form.";
    Oversize "oversize" Some(4001), Stop, "A message over the size limit, or a `hello.max_message` below it.";
    Protocol "protocol" Some(4002), Stop, "A message that is not allowed at this point, such as a second `hello`.";
    Unauthenticated "unauthenticated" Some(4003), Stop, "No token, or one that does not verify.";
    UserChanged "user_changed" Some(4004), Stop, "`auth` with another user's token.";
    TokenExpired "token_expired" Some(4005), Renew, "The token's time is over.";
    HandshakeTimeout "handshake_timeout" Some(4100), Reconnect, "TLS, upgrade and `hello` took more than 10 s.";
    Idle "idle" Some(4101), Reconnect, "Nothing was heard for twice `ping_ms`.";
    SlowReader "slow_reader" Some(4102), Reconnect, "The connection takes too little: its send queue is over its bound, or does not move.";
    Overloaded "overloaded" Some(4103), Reconnect, "The node admits no more now.";
    AuthUnavailable "auth_unavailable" Some(4104), Reconnect, "The token cannot be checked now.";
    Internal "internal" Some(4105), Reconnect, "A defect or a failure in the gateway; it is in the gateway's log.";
    GoingAway "going_away" Some(1012), Reconnect, "The node is stopping.";
}

impl Code {
    /// The code's name on the wire.
    pub const fn name(self) -> &'static str {
        self.row().name
    }

    /// The code of a wire name.
    pub fn from_name(name: &str) -> Option<Self> {
        TABLE.iter().find(|row| row.name == name).map(|row| row.code)
    }

    /// Whether a mutation refused with this code is settled: its mid is consumed.
    pub fn consumes_mid(self) -> bool {
        matches!(self.row().action, Action::Settle)
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Input that the protocol does not allow, in words for the one who sent it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invalid {
    /// `invalid`, `too_large`, `unsupported`, `malformed` or `oversize`.
    pub code: Code,
    /// What is wrong: the field, the limit and the value.
    pub message: String,
}

impl Invalid {
    /// `what` breaks the rule `why`.
    pub fn new(what: &str, why: &str) -> Self {
        Self {
            code: Code::Invalid,
            message: format!("{what} {why}"),
        }
    }

    /// `what` must be 1 to `limit` bytes long and is `found`.
    pub fn length(what: &str, limit: usize, found: usize) -> Self {
        Self {
            code: Code::Invalid,
            message: format!("{what} must be 1 to {limit} bytes, is {found}"),
        }
    }

    /// `limit` allows `bound` and `found` was sent.
    pub fn too_large(limit: &str, bound: usize, found: usize) -> Self {
        Self {
            code: Code::TooLarge,
            message: format!("{limit} is limited to {bound}, found {found}"),
        }
    }

    /// A message type, key or op that is not known.
    pub fn unsupported(what: &str, name: &str) -> Self {
        Self {
            code: Code::Unsupported,
            message: format!("unknown {what} {:?}", name.chars().take(64).collect::<String>()),
        }
    }

    /// Bytes that are not of the form at all.
    pub fn malformed(why: &str) -> Self {
        Self {
            code: Code::Malformed,
            message: why.to_owned(),
        }
    }

    /// The same error, said of a part of what `place` names.
    #[must_use]
    pub fn within(mut self, place: &str) -> Self {
        self.message = format!("{place}: {}", self.message);
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_the_order_of_the_codes_and_its_close_codes_say_whether_to_come_back() {
        for (at, row) in TABLE.iter().enumerate() {
            assert_eq!(row.code as usize, at);
            assert_eq!(Code::from_name(row.name), Some(row.code));
            match row.close {
                Some(4000..=4099) => assert!(matches!(row.action, Action::Stop | Action::Renew)),
                Some(4100..=4199 | 1001 | 1012) => assert_eq!(row.action, Action::Reconnect),
                Some(other) => panic!("close code {other} is in no range"),
                None => {}
            }
        }
    }
}
