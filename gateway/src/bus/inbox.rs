//! What has arrived and the hub has not taken in yet, bounded space by space. A flood of one space costs its
//! subscribers a look at the log, and neither memory nor the others.

use crate::store::LogEntry;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use tidegate_protocol::{Epoch, SpaceId};
use tokio::sync::Notify;

/// Bounds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of one space.
    pub(super) space: usize,
    /// Bytes of all.
    pub(super) all: usize,
}

/// What has arrived of a space.
#[derive(Default, Debug, PartialEq, Eq)]
pub(super) struct Arrived {
    /// In the order of its arrival. Without commits: news of the lineage.
    pub(super) heard: Vec<(Epoch, Vec<LogEntry>)>,
    /// Something was left out: the store has it.
    pub(super) is_cut: bool,
    bytes: usize,
}

/// Bytes that a message takes without its commits, about.
const MESSAGE: usize = 64;

#[derive(Default)]
struct Slot {
    arrived: Arrived,
    /// Somebody is taking in what came before.
    is_busy: bool,
}

#[derive(Default)]
struct Slots {
    spaces: HashMap<SpaceId, Slot>,
    /// Spaces of which something has arrived and that nobody is taking in, each once.
    queue: VecDeque<SpaceId>,
    bytes: usize,
}

/// The inbox.
pub(super) struct Inbox {
    bounds: Bounds,
    slots: Mutex<Slots>,
    news: Notify,
}

impl Inbox {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            slots: Mutex::default(),
            news: Notify::new(),
        }
    }

    /// Puts in what has arrived; `None` is something that could not be read. Says whether it was kept.
    pub(super) fn put(&self, space: &SpaceId, message: Option<(Epoch, Vec<LogEntry>)>) -> bool {
        let size = |entry: &LogEntry| entry.payload.len() + size_of::<LogEntry>();
        let bytes = MESSAGE + message.iter().flat_map(|(_, commits)| commits).map(size).sum::<usize>();
        let mut slots = self.slots.lock();
        let has_room = slots.bytes + bytes <= self.bounds.all;
        if !slots.spaces.contains_key(space) {
            slots.spaces.insert(space.clone(), Slot::default());
        }
        let slots = &mut *slots;
        let slot = slots.spaces.get_mut(space).expect("put there if it was not");
        let is_new = slot.arrived == Arrived::default();
        let kept = match message {
            // One alone is taken in whatever its size, or all that is large were read again.
            Some(message)
                if has_room && !slot.arrived.is_cut && (is_new || slot.arrived.bytes + bytes <= self.bounds.space) =>
            {
                slot.arrived.heard.push(message);
                slot.arrived.bytes += bytes;
                slots.bytes += bytes;
                true
            }
            // What came before it is in the log as well.
            _ => {
                slots.bytes -= slot.arrived.bytes;
                slot.arrived = Arrived {
                    is_cut: true,
                    ..Arrived::default()
                };
                false
            }
        };
        if is_new && !slot.is_busy {
            slots.queue.push_back(space.clone());
            self.news.notify_one();
        }
        kept
    }

    /// Hands the next space's arrivals to `take`, in whose time nobody else has that space.
    pub(super) async fn take(&self, take: impl FnOnce(&SpaceId, Arrived)) {
        let (space, arrived) = loop {
            let news = self.news.notified();
            if let Some(found) = self.next() {
                break found;
            }
            news.await;
        };
        take(&space, arrived);
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        let slot = slots.spaces.get_mut(&space).expect("it is there while it is busy");
        slot.is_busy = false;
        match slot.arrived == Arrived::default() {
            true => {
                slots.spaces.remove(&space);
            }
            false => {
                slots.queue.push_back(space);
                self.news.notify_one();
            }
        }
    }

    fn next(&self) -> Option<(SpaceId, Arrived)> {
        let mut slots = self.slots.lock();
        let slots = &mut *slots;
        let space = slots.queue.pop_front()?;
        let slot = slots.spaces.get_mut(&space).expect("it is there while it is in line");
        slot.is_busy = true;
        let arrived = std::mem::take(&mut slot.arrived);
        slots.bytes -= arrived.bytes;
        Some((space, arrived))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use tidegate_protocol::Seq;

    fn space(name: &str) -> SpaceId {
        SpaceId::parse(name).unwrap()
    }

    fn commit(seq: u64, bytes: usize) -> Option<(Epoch, Vec<LogEntry>)> {
        let entry = LogEntry {
            seq: Seq::new(seq).unwrap(),
            payload: Bytes::from(vec![0; bytes]),
        };
        Some((Epoch(1), vec![entry]))
    }

    fn seqs(arrived: &Arrived) -> Vec<u64> {
        let commits = arrived.heard.iter().flat_map(|(_, commits)| commits);
        commits.map(|commit| commit.seq.get()).collect()
    }

    #[tokio::test]
    async fn arrivals_come_in_order_and_a_flood_is_cut_to_nothing() {
        let inbox = Inbox::new(Bounds {
            space: 1_200,
            all: 1_700,
        });
        assert!(inbox.put(&space("a"), commit(1, 400)));
        assert!(inbox.put(&space("b"), commit(1, 10)));
        assert!(inbox.put(&space("a"), commit(2, 400)));
        assert!(!inbox.put(&space("a"), commit(3, 400)), "over the space's bound");
        assert!(
            !inbox.put(&space("a"), commit(4, 1)),
            "what follows a hole is of no use"
        );
        assert!(inbox.put(&space("c"), commit(1, 800)), "what was cut takes no room");
        assert!(!inbox.put(&space("d"), commit(1, 800)), "over the bound of all");
        let mut got = vec![];
        for _ in 0..4 {
            inbox
                .take(|space, arrived| got.push((space.to_string(), arrived.is_cut, seqs(&arrived))))
                .await;
        }
        let expected = [
            ("a", true, vec![]),
            ("b", false, vec![1]),
            ("c", false, vec![1]),
            ("d", true, vec![]),
        ];
        assert_eq!(
            got,
            expected.map(|(name, is_cut, seqs)| (name.to_owned(), is_cut, seqs))
        );
        assert!(inbox.slots.lock().spaces.is_empty());
        assert_eq!(inbox.slots.lock().bytes, 0);
        assert!(inbox.put(&space("a"), commit(5, 400)), "and then it is as before");
    }

    #[tokio::test]
    async fn what_arrives_while_a_space_is_taken_in_waits_its_turn() {
        let inbox = Inbox::new(Bounds {
            space: 1_000,
            all: 1_000,
        });
        inbox.put(&space("a"), commit(1, 1));
        let mut got = vec![];
        inbox
            .take(|space, arrived| {
                inbox.put(space, commit(2, 1));
                assert!(inbox.slots.lock().queue.is_empty(), "nobody else takes it meanwhile");
                got.extend(seqs(&arrived));
            })
            .await;
        inbox.take(|_, arrived| got.extend(seqs(&arrived))).await;
        assert_eq!(got, [1, 2]);
    }
}
