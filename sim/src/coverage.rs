//! What the histories have met. A simulator that never gets somewhere proves nothing about it.

use std::fmt;

macro_rules! rows {
    ($($row:ident $text:literal,)*) => {
        /// Something that has to occur.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Row {
            $($row,)*
        }

        const ROWS: &[&str] = &[$($text,)*];
    };
}

rows! {
    Operations "operations",
    Commits "commits",
    Connections "connections",
    JsonConnections "connections in JSON",
    CompressedUp "compressed message to a node",
    CompressedDown "compressed message from a node",
    Cuts "fault: connection cut",
    HalfOpen "fault: connection cut and noticed late",
    Stalls "fault: connection stalled",
    Blocked "fault: socket that takes no more",
    TornFrames "fault: frame in two pieces",
    Refused "fault: connection refused",
    NodeCrashes "fault: node crashed",
    NodeDrains "node drained",
    StoreErrors "fault: store call not made",
    StoreUnknown "fault: store call made, outcome unknown",
    StoreOutages "fault: store unavailable",
    Failovers "fault: failover that loses a tail",
    CleanFailovers "failover that loses nothing",
    LostCommits "commits lost by failovers",
    Reopens "store reopened",
    Trims "log trimmed",
    Floors "floor raised",
    ErasedSpaces "space erased",
    ErasedUsers "user erased",
    ErasedClients "client erased",
    BusLost "fault: publication lost",
    BusRepeated "fault: publication repeated",
    BusLate "fault: publication late",
    NodeClocks "fault: node's clock jumps",
    ClientClocks "fault: client's clock jumps",
    Months "months pass",
    CrashBeforeCommit "client crashes before its storage commits",
    CrashAfterCommit "client crashes after its storage has committed",
    CrashBeforeSend "client crashes between commit and send",
    CrashAfterSend "client crashes after sending",
    Clones "database cloned",
    RollBacks "database rolled back",
    Offline "installation without network for a while",
    Filters "filter changed",
    Unsubscribed "unsubscribed",
    Permissions "permissions changed",
    Denied "subscription denied",
    ByLog "catch-up by log",
    ByDelta "catch-up by delta",
    ByReset "catch-up by reset",
    Resumed "catch-up resumed from a cursor",
    NotResumed "cursor not taken up",
    Pages "pages",
    ResetLost "reset: position of a lost history",
    ResetFloor "reset: position below the floor",
    ResetView "reset: other view",
    ResetCursor "reset: foreign cursor",
    Behind "subscription catches up again on a live connection",
    EpochLive "epoch on a live subscription",
    Progress "progress",
    GapFilled "commits read from the log by the hub",
    Loss "loss reported",
    IdCloned "new id: cloned",
    IdUnknown "new id: unknown",
    IdLoss "new id: loss",
    IdGap "new id: gap",
    Duplicates "mutation answered again",
    OutOfOrder "out of order",
    Stale "plan made again",
    Acks "ack",
    Overwritten "conflict: overwritten",
    Skipped "conflict: left out",
    Conflict "refused: conflict",
    Precondition "refused: precondition",
    Forbidden "refused: forbidden",
    Unavailable "refused for now: unavailable",
    Uncertain "mutation uncertain",
    Cancelled "mutation cancelled",
    Coalesced "mutation coalesced",
    Gets "get answered",
    SlowReader "closed: slow reader",
    Idle "closed: idle",
    Goaway "goaway",
}

/// How often each occurred.
#[derive(Clone)]
pub struct Coverage([u64; ROWS.len()]);

impl Default for Coverage {
    fn default() -> Self {
        Self([0; ROWS.len()])
    }
}

impl Coverage {
    pub(crate) fn add(&mut self, row: Row, n: u64) {
        self.0[row as usize] += n;
    }

    pub(crate) fn hit(&mut self, row: Row) {
        self.add(row, 1);
    }

    /// Steps of the workload, and messages that arrived.
    pub fn operations(&self) -> u64 {
        self.0[Row::Operations as usize]
    }

    /// Adds what other histories have met.
    pub fn join(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(sum, n)| *sum += n);
    }

    /// What never occurred.
    pub fn missing(&self) -> Vec<&'static str> {
        let rows = ROWS.iter().zip(self.0);
        rows.filter(|(_, n)| *n == 0).map(|(text, _)| *text).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        ROWS.iter()
            .zip(self.0)
            .try_for_each(|(text, n)| writeln!(f, "{n:>12}  {text}"))
    }
}
