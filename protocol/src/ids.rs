//! Numbers with a meaning: positions in a space's history, and the names of writers and mutations.

use crate::limits::SEQ_LIMIT;
use sha2::{Digest, Sha256};
use std::fmt;

macro_rules! opaque_u64 {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u64);
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({:016x})"), self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

opaque_u64! {
    /// Random name of one unbroken stretch of a space's history. 0 is "no history yet".
    Epoch
}
opaque_u64! {
    /// One user's local copy of one space on one installation: 64 random bits.
    ClientId
}
opaque_u64! {
    /// 64 random bits that mark a mutation, so that two databases that count alike are told apart.
    MutationKey
}
opaque_u64! {
    /// Digest of what a subscription covers. A position is valid only for its view.
    ViewId
}
opaque_u64! {
    /// Who wrote: the first 8 bytes, big-endian, of SHA-256(user ‖ 0 ‖ client as 8 bytes big-endian).
    Writer
}

impl Writer {
    /// The writer of a user's client. `user` is the name that `welcome` gave.
    pub fn of(user: &str, client: ClientId) -> Self {
        let mut hash = Sha256::new();
        hash.update(user.as_bytes());
        hash.update([0]);
        hash.update(client.0.to_be_bytes());
        let digest = hash.finalize();
        let mut first = [0; 8];
        first.copy_from_slice(&digest[..8]);
        Self(u64::from_be_bytes(first))
    }
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(u64);
        impl $name {
            /// Before the first.
            pub const ZERO: Self = Self(0);
            /// The number, if it is below 2^53.
            pub const fn new(n: u64) -> Option<Self> {
                if n < SEQ_LIMIT { Some(Self(n)) } else { None }
            }
            /// The number.
            pub const fn get(self) -> u64 {
                self.0
            }
            /// The one after. Panics at 2^53, which a space reaches after 285 years at a million a second.
            #[must_use]
            pub const fn next(self) -> Self {
                assert!(self.0 + 1 < SEQ_LIMIT, "counter exhausted");
                Self(self.0 + 1)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

counter! {
    /// Number of a commit within its space: 1, 2, 3 … without a gap. 0 is "before the first".
    Seq
}
counter! {
    /// Number of a mutation within its writer and space: 1, 2, 3 … without a gap.
    Mid
}

/// A place in a space's history. Seqs of different epochs are never compared.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Debug)]
pub struct Position {
    /// The stretch of history that `seq` counts in.
    pub epoch: Epoch,
    /// Everything up to and including this commit.
    pub seq: Seq,
}

impl Position {
    /// The position of a space without history.
    pub const START: Self = Self {
        epoch: Epoch(0),
        seq: Seq::ZERO,
    };

    /// A position.
    pub const fn new(epoch: Epoch, seq: Seq) -> Self {
        Self { epoch, seq }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.seq, self.epoch)
    }
}
