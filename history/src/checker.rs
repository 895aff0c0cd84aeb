//! The judge: takes events, finds out what they are about, and has them judged.

use crate::connection::Connection;
use crate::event::{ConnectionId, Event};
use crate::fold::Map;
use crate::report::{Breach, Out, Report};
use crate::space::{Held, Space};
use crate::trace::{EVERYWHERE, Note};
use crate::truth::{Covers, Node, Record, START};
use tidegate_protocol::{Position, SpaceId, ViewId};

/// Judges one history. Memory and time grow with the history, linearly.
#[derive(Debug)]
pub struct Checker {
    out: Out,
    spaces: Spaces,
    connections: Map<ConnectionId, Connection>,
    covers: Map<ViewId, Covers>,
}

/// Spaces by name.
#[derive(Debug, Default)]
pub(crate) struct Spaces {
    all: Vec<Space>,
    by_name: Map<SpaceId, usize>,
}

impl Spaces {
    pub(crate) fn get(&mut self, name: &SpaceId) -> &mut Space {
        let number = match self.by_name.get(name) {
            Some(number) => *number,
            None => {
                let number = self.all.len();
                self.by_name.insert(name.clone(), number);
                self.all.push(Space::new(number, name.clone()));
                number
            }
        };
        &mut self.all[number]
    }

    pub(crate) fn at(&mut self, number: usize) -> &mut Space {
        &mut self.all[number]
    }
}

impl Default for Checker {
    fn default() -> Self {
        Self::new()
    }
}

impl Checker {
    /// Nothing observed yet. The store is to tell its own account. Commits that were acked may be lost where it
    /// says so (`FellBack`, or an `Epoch` after less than everything), and must then be reported by their clients.
    pub fn new() -> Self {
        let mut checker = Self::outside();
        checker.out.account = true;
        checker
    }

    /// As [`Self::new`], of a store that loses nothing that it acked.
    pub fn durable() -> Self {
        let mut checker = Self::new();
        checker.out.durable = true;
        checker
    }

    /// Nothing observed yet, and the store is silent: what subscribers of the full view were sent first is the
    /// truth that everybody is compared with. What it does not reach is counted as unverified.
    pub fn outside() -> Self {
        Self {
            out: Out::default(),
            spaces: Spaces::default(),
            connections: Map::default(),
            covers: Map::default(),
        }
    }

    /// Takes in what happened next.
    pub fn observe(&mut self, event: Event<'_>) {
        self.out.counts().events += 1;
        match event {
            Event::Epoch { space, epoch, after } => {
                let (out, space) = self.account(space);
                out.note(space.number, Note::Epoch(epoch, after));
                space.begin_epoch(out, epoch, after);
            }
            Event::FellBack { space, head } => {
                let (out, space) = self.account(space);
                out.note(space.number, Note::FellBack(head));
                let epoch = match head.seq.get() {
                    0 => Some(START.epoch),
                    _ => space.truth.find(head.epoch),
                };
                match epoch {
                    Some(epoch) => {
                        let seq = head.seq.get();
                        space.forget(Node { epoch, seq });
                        space.fall_back(out, Node { epoch, seq });
                    }
                    None => {
                        space.breach(
                            out,
                            Breach::StoreGap,
                            Some(head),
                            "fell back to what never was".to_owned(),
                        );
                    }
                }
            }
            Event::Erased {
                space,
                epoch,
                start,
                user,
                docs,
            } => {
                let (out, space) = self.account(space);
                out.note(space.number, Note::Erased(epoch, start));
                space.erased(out, (epoch, start), user, docs);
            }
            Event::Commit { space, epoch, commit } => {
                let (out, space) = self.account(space);
                let at = Position::new(epoch, commit.seq);
                out.note(
                    space.number,
                    Note::Commit(at, commit.writer, commit.mid, commit.docs.len()),
                );
                space.commit(out, epoch, commit.seq.get(), Record::of(commit));
            }
            Event::RecordsAged => {
                self.out.note(EVERYWHERE, Note::RecordsAged);
                let now = self.out.event();
                self.spaces.all.iter_mut().for_each(|space| space.aged = Some(now));
            }
            Event::Connected {
                connection,
                installation,
                user,
            } => {
                self.out.note(EVERYWHERE, Note::Connected(connection, installation));
                self.connections
                    .insert(connection, Connection::new(connection, installation, user));
            }
            Event::Sent { connection, message } => {
                if let Some(on) = self.connections.get_mut(&connection) {
                    on.sent(&mut self.out, &mut self.spaces, message);
                }
            }
            Event::Received { connection, message } => {
                if let Some(on) = self.connections.get_mut(&connection) {
                    on.received(&mut self.out, &mut self.spaces, &mut self.covers, message);
                }
            }
            Event::Disconnected { connection } => {
                self.out.note(EVERYWHERE, Note::Disconnected(connection));
                self.connections.remove(&connection);
            }
            Event::Covers { view, collections } => {
                self.covers.insert(view, Covers::of(collections));
            }
            Event::Restarted {
                installation,
                space,
                standing,
            } => {
                let space = self.spaces.get(space);
                let note = Note::Restarted(installation, standing.map(|(position, _)| position));
                self.out.note(space.number, note);
                let replica = space.replica(installation);
                space.stands(&mut self.out, replica, held(&self.covers, standing), false);
            }
            Event::Replaced {
                installation,
                space,
                standing,
            } => {
                let space = self.spaces.get(space);
                let note = Note::Replaced(installation, standing.map(|(position, _)| position));
                self.out.note(space.number, note);
                let replica = space.replica(installation);
                space.stands(&mut self.out, replica, held(&self.covers, standing), true);
            }
            Event::Issued {
                installation,
                space,
                tag,
                counts,
            } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Issued(installation, tag));
                let replica = space.replica(installation);
                space.issued(replica, tag, counts);
            }
            Event::Settled {
                installation,
                space,
                tag,
                fate,
            } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Settled(installation, tag, fate));
                let replica = space.replica(installation);
                space.settled(&mut self.out, replica, tag, fate);
            }
            Event::Lost {
                installation,
                space,
                client,
                from,
                through,
            } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Lost(installation, from, through));
                let replica = space.replica(installation);
                space.lost(&mut self.out, replica, client, (from, through));
            }
            Event::Shown {
                installation,
                space,
                position,
                count,
                pairs,
            } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Shown(installation, position, count));
                let replica = space.replica(installation);
                space.shown(&mut self.out, replica, position, count, pairs);
            }
            Event::Held {
                installation,
                space,
                position,
                docs,
            } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Held(installation, position));
                let replica = space.replica(installation);
                space.holds(&mut self.out, replica, position, docs);
            }
            Event::Rest { space, position, docs } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Rest(position));
                space.at_rest(&mut self.out, position, docs);
            }
            Event::AtRest {
                installation,
                space,
                position,
                docs,
                queued,
            } => {
                let space = self.spaces.get(space);
                self.out.note(space.number, Note::Held(installation, position));
                let replica = space.replica(installation);
                space.rests(&mut self.out, replica, position, docs, queued);
            }
        }
    }

    /// The verdict.
    pub fn finish(mut self) -> Report {
        for connection in self.connections.values_mut() {
            connection.rests(&mut self.out, &mut self.spaces);
        }
        for space in &mut self.spaces.all {
            space.finish(&mut self.out);
        }
        self.out.report
    }

    /// The store speaks for itself.
    fn account(&mut self, space: &SpaceId) -> (&mut Out, &mut Space) {
        (&mut self.out, self.spaces.get(space))
    }
}

fn held(covers: &Map<ViewId, Covers>, standing: Option<(Position, ViewId)>) -> Option<Held> {
    let (position, view) = standing?;
    let covers = covers.get(&view).cloned().unwrap_or(Covers::All);
    Some(Held { position, view, covers })
}
