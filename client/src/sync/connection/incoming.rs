//! What comes from the gateway, and whom it is for.

use super::session::Phase;
use super::{Machine, RESUBSCRIBE_MS};
use crate::sync::event::{Event, Refusal};
use crate::sync::replica::Violation;
use crate::sync::space::Space;
use crate::sync::{Entropy, Now};
use tidegate_protocol::{Code, ServerMessage, SpaceId};

impl Machine {
    pub(super) fn handle(&mut self, now: Now, message: ServerMessage) -> Result<(), Violation> {
        match message {
            ServerMessage::Begin(begin) => {
                let Some(name) = self.subs.get(&begin.id).cloned() else {
                    return Ok(());
                };
                // What this subscription replaced is answered in full.
                self.subs.retain(|id, space| *space != name || *id >= begin.id);
                if !self.spaces.get(&name).is_some_and(Space::is_subscribed) {
                    return Ok(());
                }
                self.numbers.retain(|_, space| *space != name);
                self.numbers.insert(begin.n, name.clone());
                self.in_space(&name, |space, _| space.begin(&begin))
            }
            ServerMessage::Page { id, docs, cursor } => {
                let Some(name) = self.subs.get(&id).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, _| space.page(id, docs, cursor))
            }
            ServerMessage::Current { id, position, last_mid } => {
                let Some(name) = self.subs.get(&id).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, entropy| {
                    space.current(now, id, position, last_mid, entropy)
                })
            }
            ServerMessage::Change(change) => {
                let Some(name) = self.numbers.get(&change.n).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, _| space.commit(change.commit))
            }
            ServerMessage::Epoch { n, position } => {
                let Some(name) = self.numbers.get(&n).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, entropy| space.epoch(position, entropy))
            }
            ServerMessage::Progress { n, seq } => {
                let Some(name) = self.numbers.get(&n).cloned() else {
                    return Ok(());
                };
                self.in_space(&name, |space, _| space.progress(seq))
            }
            ServerMessage::Ack(ack) => {
                let name = ack.space.clone();
                self.in_space(&name, |space, _| {
                    space.ack(now, ack);
                    Ok(())
                })
            }
            ServerMessage::Reject(reject) => {
                let name = reject.space.clone();
                self.in_space(&name, |space, entropy| {
                    space.reject(now, reject, entropy);
                    Ok(())
                })
            }
            ServerMessage::Denied { id, code, purge } => {
                self.denied(now, id, code, purge);
                Ok(())
            }
            ServerMessage::Docs { id, position, docs } => {
                if self.gets.remove(&id).is_some() {
                    self.events.push_back(Event::Got {
                        id,
                        result: Ok((position, docs)),
                    });
                }
                Ok(())
            }
            ServerMessage::Goaway { retry_ms, jitter_ms } => {
                let jitter = self.entropy.up_to(jitter_ms);
                if let Phase::Online(session) = &mut self.phase {
                    session.leave_at = Some(now.mono_ms.saturating_add(retry_ms).saturating_add(jitter));
                }
                Ok(())
            }
            ServerMessage::Error { code, message, re } => {
                match re {
                    Some(id) if self.subs.contains_key(&id) => self.denied(now, id, code, false),
                    re => self.error(code, message, re),
                }
                Ok(())
            }
            ServerMessage::Pong { .. } | ServerMessage::Welcome(_) => Ok(()),
        }
    }

    fn in_space(
        &mut self,
        name: &SpaceId,
        step: impl FnOnce(&mut Space, &mut dyn Entropy) -> Result<(), Violation>,
    ) -> Result<(), Violation> {
        let Some(space) = self.spaces.get_mut(name) else {
            return Ok(());
        };
        let result = step(space, &mut *self.entropy);
        self.collect(name);
        self.wake(name);
        result
    }

    fn denied(&mut self, now: Now, id: u64, code: Code, purge: bool) {
        let Some(name) = self.subs.remove(&id) else { return };
        if !self.subs.values().any(|space| *space == name) {
            self.numbers.retain(|_, space| *space != name);
        }
        let retry_ms = RESUBSCRIBE_MS / 2 + self.entropy.up_to(RESUBSCRIBE_MS);
        let _ = self.in_space(&name, |space, _| {
            space.denied(now, id, code, purge, retry_ms);
            Ok(())
        });
    }

    pub(super) fn error(&mut self, code: Code, message: String, re: Option<u64>) {
        if let Some(id) = re.filter(|id| self.gets.remove(id).is_some()) {
            self.events.push_back(Event::Got {
                id,
                result: Err(Refusal::new(code, message)),
            });
            return;
        }
        if code.row().close.is_some() {
            self.last_error = Some((code, message.clone()));
        }
        self.events.push_back(Event::Problem { code, message });
    }
}
