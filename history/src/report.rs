//! The verdict: what was judged, how often, and what broke a promise.

use crate::trace::{Note, Notes};
use std::fmt;
use tidegate_protocol::{Position, SpaceId};

/// Violations that a report holds at most; more are counted only.
const VIOLATIONS: usize = 100;
/// How many of them come with a trace.
const TRACED: usize = 10;

/// A promise that was broken. Everything that the checker can say is one of these.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[non_exhaustive]
pub enum Breach {
    // What the store did.
    /// It gave out a seq that is not the one after its head, or an epoch that goes on from nowhere.
    StoreGap,
    /// It gave one (epoch, seq) two contents.
    SeqReused,
    /// Erased, and there all the same.
    NotErased,
    /// A client whose data was erased was not told so, and wrote on.
    ErasedWrites,
    /// A commit's time lies before that of the one before.
    TimeBackwards,
    /// A mutation was applied twice in one history.
    AppliedTwice,
    /// A counting mutation did not count one up.
    Miscounted,
    /// A commit changed one half of a pair.
    TornCommit,
    /// A commit left a leaf above another.
    Overlap,

    // The session guarantees and the order in real time.
    /// A writer's mutations are not in the order of their mids.
    WritesReordered,
    /// A mutation that was sent after another had been acked comes before it.
    RealTimeOrder,
    /// A mutation comes before what its client had seen when it sent it.
    WriteBeforeRead,
    /// A mutation comes before its own `base`.
    WriteBeforeBase,
    /// A catch-up, or a `get`, ends before a commit that had been acked when it was asked for.
    StaleRead,
    /// A replica went back.
    Backwards,
    /// An ack came before the change that it answers.
    AckBeforeChange,

    // What subscribers were sent.
    /// A commit in view was left out.
    Gap,
    /// A commit that was left out came later.
    OutOfOrder,
    /// A commit came again.
    Repeat,
    /// A commit came without some of its documents in view.
    Torn,
    /// A commit came with other content.
    Altered,
    /// Another commit came than others have there.
    Disagreement,
    /// A position or commit that the store never had.
    Invented,
    /// A message that its subscription does not allow there.
    Stray,
    /// An epoch that does not begin there.
    WrongEpoch,
    /// A position that is not of this history, or of another view, was taken up without a reset.
    NotReset,
    /// At the end of a catch-up, or in an answer to `get`: not the state of that position.
    WrongState,
    /// There is something that no commit put there, or that one took away.
    Ghost,
    /// `last_mid` leaves out what is in the state, or covers what came later or was never sent.
    LastMidLied,

    // What became of mutations.
    /// Acked, and there is no such commit, or it is gone and nothing says that the store lost it.
    AckedMissing,
    /// Acked, lost, and the store was to be one that loses nothing.
    AckedLost,
    /// An ack or a refusal of something that was not sent.
    AnswerToNothing,
    /// Refused or cancelled, and applied all the same.
    RefusedApplied,
    /// Acked and lost; its client was in a position to know, and did not tell.
    LossUnreported,
    /// Reported lost, and it never was.
    LostFalsely,
    /// Never answered.
    Vanished,

    // What apps saw.
    /// A client is elsewhere than what it was sent makes it.
    Misplaced,
    /// What is staged in a catch-up was shown before its end.
    StagedShown,
    /// A local view shows one half of a pair.
    TornView,
    /// A local view counts a mutation twice.
    CountedTwice,
    /// A local view does not count a mutation.
    NotCounted,
    /// At rest, not what the server holds.
    Diverged,
    /// At rest, mutations wait.
    StillQueued,
}

/// A broken promise.
#[derive(Clone, Debug)]
pub struct Violation {
    /// Which.
    pub breach: Breach,
    /// Where.
    pub space: SpaceId,
    /// At or about which position.
    pub position: Option<Position>,
    /// The number of the event at which it showed, from 0.
    pub event: usize,
    /// What was seen, and what should have been.
    pub text: String,
    /// For the first few: the history around the position, and the last events of the space.
    pub trace: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} in {} at event {}", self.breach, self.space, self.event)?;
        if let Some(position) = self.position {
            write!(f, ", {position}")?;
        }
        write!(f, ": {}", self.text)
    }
}

macro_rules! counts {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// How often each thing was judged. What was never judged was not proved.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        #[non_exhaustive]
        pub struct Counts {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counts {
            /// Every count by its name.
            pub fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name)),*]
            }

            /// Adds those of another history.
            pub fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

counts! {
    /// Events observed.
    events,
    /// Commits of the true history: order, time, effect.
    commits,
    /// … of which nobody was seen to send the mutation.
    foreign_commits,
    /// Epochs of the true history.
    epochs,
    /// Commits that were lost.
    lost_commits,
    /// Changes to subscribers, compared in content.
    changes,
    /// … of a filtered view.
    filtered_changes,
    /// Commits left out of a filtered view, rightly.
    skipped_commits,
    /// `progress` judged.
    progresses,
    /// `epoch` judged.
    epoch_changes,
    /// Catch-ups by log judged.
    logs,
    /// Catch-ups by delta judged.
    deltas,
    /// Catch-ups by reset judged.
    resets,
    /// Catch-ups that were resumed behind a cursor.
    resumed,
    /// Catch-ups of a filtered view.
    filtered_catch_ups,
    /// `last_mid` judged.
    last_mids,
    /// Catch-ups and `get`s judged against what had been acked when they were asked for.
    recent_reads,
    /// Answers to `get`, compared in content.
    gets,
    /// Mutations sent for the first time.
    mutations,
    /// … and again.
    resent,
    /// … and others under a mid that was taken: storage that was copied counts alike.
    contested,
    /// Acks whose commit is what they say.
    acks,
    /// … that repeat an earlier one.
    repeated_acks,
    /// Acks that came after their change on a live subscription.
    acks_after_change,
    /// Refusals for good.
    refusals,
    /// Commits of mutations sent after another was acked.
    real_time_pairs,
    /// Commits of mutations sent by clients that had read.
    writes_after_reads,
    /// Commits of mutations with a base.
    writes_after_base,
    /// Losses reported, and rightly.
    losses,
    /// Acked mutations that were lost, whose client never was in a position to know.
    unheard_losses,
    /// Acked mutations that were lost longer ago than records are kept.
    aged_losses,
    /// Mutations of apps with an end.
    fates,
    /// Local views compared with what they must show.
    views,
    /// … with own mutations over the confirmed state.
    overlaid_views,
    /// … whose count may be one of several, for mutations of copied storage.
    loose_views,
    /// Pairs in local views.
    pairs,
    /// Confirmed states compared in content.
    held,
    /// Replicas at rest compared with the server.
    at_rest,
    /// What could not be judged, for want of a true history there.
    unverified,
    /// Violations, also those that the report leaves out.
    violations,
}

/// The verdict on a history.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Broken promises, in the order in which they showed; the first 100.
    pub violations: Vec<Violation>,
    /// What was judged.
    pub counts: Counts,
}

impl Report {
    /// What was judged, if nothing was broken; else the violations, with traces, to be shown.
    pub fn verdict(self) -> Result<Counts, String> {
        if self.violations.is_empty() {
            return Ok(self.counts);
        }
        let lines = self.violations.iter().map(|v| format!("{v}\n{}", v.trace));
        Err(lines.collect())
    }

    /// The broken promises, by name.
    pub fn breaches(&self) -> Vec<Breach> {
        self.violations.iter().map(|violation| violation.breach).collect()
    }
}

/// The report as it grows, and the latest events for its traces.
#[derive(Debug, Default)]
pub(crate) struct Out {
    pub(crate) report: Report,
    pub(crate) notes: Notes,
    /// Whether the store tells its own account.
    pub(crate) account: bool,
    /// Whether the store is to be one that loses nothing that it acked.
    pub(crate) durable: bool,
}

impl Out {
    pub(crate) fn counts(&mut self) -> &mut Counts {
        &mut self.report.counts
    }

    /// The number of the event that is being observed.
    pub(crate) fn event(&self) -> usize {
        usize::try_from(self.report.counts.events.saturating_sub(1)).unwrap_or(usize::MAX)
    }

    pub(crate) fn note(&mut self, space: usize, note: Note) {
        let event = self.event();
        self.notes.push(event, space, note);
    }

    /// Returns the violation's index in the report, by which it can be corrected. `history` tells the true
    /// history around the position.
    pub(crate) fn breach(
        &mut self,
        breach: Breach,
        (number, space): (usize, &SpaceId),
        position: Option<Position>,
        text: String,
        history: impl FnOnce() -> String,
    ) -> Option<usize> {
        self.report.counts.violations += 1;
        let index = self.report.violations.len();
        if index >= VIOLATIONS {
            return None;
        }
        let trace = if index < TRACED {
            format!("{}{}", history(), self.notes.tell(number))
        } else {
            String::new()
        };
        self.report.violations.push(Violation {
            breach,
            space: space.clone(),
            position,
            event: self.event(),
            text,
            trace,
        });
        Some(index)
    }

    /// A violation turns out to be another.
    pub(crate) fn rename(&mut self, index: usize, breach: Breach, text: String) {
        if let Some(violation) = self.report.violations.get_mut(index) {
            violation.breach = breach;
            violation.text = text;
        }
    }
}
