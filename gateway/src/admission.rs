//! Who is let in: how many connections there may be, and how many of them that have not been welcomed yet.
//!
//! A connection over the bound is told when to come back. Of those that have not been welcomed, the oldest makes
//! room for a new one once it has had a second: a client takes milliseconds, whatever takes longer while
//! others wait is slow on purpose or lost.

use crate::metrics::{Gauged, Metrics};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bounds of admission.
#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// Connections at a time, of any kind. `None`: what open files allow.
    pub connections: Option<usize>,
    /// Connections that have not been welcomed, among them those on which only HTTP is spoken.
    pub handshakes: usize,
    /// What a connection that has not been welcomed has before another may take its place.
    pub grace: Duration,
}

/// Files that a process needs beside its connections: the store's, the log's, the runtime's.
const OTHER_FILES: u64 = 512;

impl Default for AdmissionConfig {
    fn default() -> Self {
        Self {
            connections: None,
            handshakes: 1_024,
            grace: Duration::from_secs(1),
        }
    }
}

/// As many as the process may have open files, less what else it needs.
fn most_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    limit.map_or(usize::MAX, |files| {
        usize::try_from(files.saturating_sub(OTHER_FILES).max(files / 2)).unwrap_or(usize::MAX)
    })
}

/// The door.
pub struct Admission {
    config: AdmissionConfig,
    most: usize,
    metrics: Arc<Metrics>,
    connections: AtomicUsize,
    last: AtomicU64,
    /// Those that have not been welcomed, oldest first.
    guests: Mutex<BTreeMap<u64, (Instant, CancellationToken)>>,
}

/// Why a connection is not let in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Full {
    /// There are as many connections as there may be.
    Connections,
    /// As many are being made as may be.
    Handshakes,
}

impl Full {
    /// Its name in metrics and to the client.
    pub fn name(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Handshakes => "handshakes",
        }
    }
}

/// A connection's place, for as long as it lives.
pub struct Place {
    admission: Arc<Admission>,
}

/// A connection that has not been welcomed yet. Dropped when it has been, or has ended.
pub struct Guest {
    admission: Arc<Admission>,
    id: u64,
    evicted: CancellationToken,
    _gauge: Gauged,
}

/// What a connection holds of the door.
#[derive(Clone, Default)]
pub struct Admitted {
    /// Until it ends. `None` where nobody counts.
    pub place: Option<Arc<Place>>,
    /// Until it has been welcomed.
    pub guest: Option<Arc<Guest>>,
}

impl Admission {
    /// With nobody in.
    pub fn new(config: AdmissionConfig, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            most: config.connections.unwrap_or_else(most_connections),
            config,
            metrics,
            connections: AtomicUsize::new(0),
            last: AtomicU64::new(0),
            guests: Mutex::default(),
        })
    }

    /// Lets a connection in, or says why not.
    pub fn admit(self: &Arc<Self>) -> Result<Admitted, Full> {
        let count = self.connections.fetch_add(1, Ordering::Relaxed);
        // Given back if it is not let in.
        let place = Place {
            admission: self.clone(),
        };
        if count >= self.most {
            return Err(Full::Connections);
        }
        let now = Instant::now();
        let mut guests = self.guests.lock();
        if guests.len() >= self.config.handshakes {
            let Some(oldest) = guests.first_entry() else {
                return Err(Full::Handshakes);
            };
            if now.duration_since(oldest.get().0) < self.config.grace {
                return Err(Full::Handshakes);
            }
            let (_, (_, evicted)) = oldest.remove_entry();
            evicted.cancel();
            self.metrics.evicted.inc();
        }
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let evicted = CancellationToken::new();
        guests.insert(id, (now, evicted.clone()));
        drop(guests);
        Ok(Admitted {
            place: Some(Arc::new(place)),
            guest: Some(Arc::new(Guest {
                admission: self.clone(),
                id,
                evicted,
                _gauge: Gauged::new(&self.metrics.handshakes),
            })),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.admission.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Guest {
    /// Waits until its place is needed.
    pub async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.admission.guests.lock().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn door(connections: usize, handshakes: usize) -> Arc<Admission> {
        let config = AdmissionConfig {
            connections: Some(connections),
            handshakes,
            ..AdmissionConfig::default()
        };
        Admission::new(config, Arc::default())
    }

    #[test]
    fn a_place_is_free_again_when_its_connection_has_ended() {
        let door = door(2, 10);
        let (first, second) = (door.admit().unwrap(), door.admit().unwrap());
        for _ in 0..3 {
            assert_eq!(door.admit().err(), Some(Full::Connections));
        }
        drop(first);
        let third = door.admit().unwrap();
        assert_eq!(door.admit().err(), Some(Full::Connections));
        drop((second, third));
        assert_eq!(door.connections.load(Ordering::Relaxed), 0);
        assert!(door.guests.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_guest_makes_room_once_it_has_had_its_time() {
        let door = door(100, 2);
        let oldest = door.admit().unwrap();
        tokio::time::advance(Duration::from_millis(600)).await;
        let newer = door.admit().unwrap();
        assert_eq!(door.admit().err(), Some(Full::Handshakes), "each has its second");
        tokio::time::advance(Duration::from_millis(600)).await;
        let newest = door.admit().unwrap();
        oldest.guest.as_ref().unwrap().evicted().await;
        assert_eq!(door.metrics.evicted.get(), 1);
        assert_eq!(door.admit().err(), Some(Full::Handshakes));
        // One that is welcomed keeps its place, and makes room among the guests.
        let welcomed = Admitted {
            guest: None,
            ..newer.clone()
        };
        drop(newer);
        let another = door.admit().unwrap();
        assert_eq!(
            door.metrics.handshakes.get(),
            3,
            "the one that has to go has not gone yet"
        );
        drop((oldest, newest, welcomed, another));
        assert_eq!(door.metrics.handshakes.get(), 0);
        assert_eq!(door.connections.load(Ordering::Relaxed), 0);
    }
}
