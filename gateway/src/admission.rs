//! Who is let in: how many connections there may be, and how many of them that have not been welcomed yet.
//!
//! A connection over the bound is told when to come back. Of those that have not been welcomed, the oldest makes
//! room for a new one once it has had a second: a client takes milliseconds, whatever takes longer while
//! others wait is slow on purpose or lost. Until then nobody is accepted: who comes waits where the kernel keeps it,
//! and with `n` waiting before it has its turn within `1 + n / handshakes` graces, whatever these do.
//!
//! Those who come are let in at a pace, and those who go let out at one, so that a crowd leaves most of the cores' time
//! to those who stay.

use crate::metrics::{Gauged, Metrics};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
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
    /// Told when one of them has been welcomed, or has ended.
    fewer: Notify,
    /// Of those who come, and of those who go.
    coming: Pace,
    going: Pace,
}

/// Lets those who wait pass one after another, no more often than so.
struct Pace {
    every: Duration,
    /// When the next would pass if all were spaced evenly.
    next: tokio::sync::Mutex<Instant>,
}

/// What one core takes of those who come, and of those who go: a connection costs it some 100 µs until it has
/// subscribed, and some 40 at its end, so that most of its time is left to those who stay.
const EVERY: Duration = Duration::from_micros(500);
/// So much of the pace may pass at once; a timer is no finer than a millisecond.
const BURST: Duration = Duration::from_millis(4);

impl Pace {
    fn new() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            every: EVERY / u32::try_from(cores).unwrap_or(u32::MAX),
            next: tokio::sync::Mutex::new(Instant::now()),
        }
    }

    async fn pass(&self) {
        // Whoever holds it sleeps for all who are behind.
        let mut next = self.next.lock().await;
        if *next > Instant::now() + BURST {
            tokio::time::sleep_until(*next - BURST).await;
        }
        *next = Instant::now().max(*next) + self.every;
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
            fewer: Notify::new(),
            coming: Pace::new(),
            going: Pace::new(),
        })
    }

    /// Waits until whoever comes next can be dealt with at once: let in, or told that there is no room. Without this the
    /// oldest guest would not have its time. For the one who accepts. However many come, no more than 2,000 a second and
    /// core are let in.
    pub async fn room(&self) {
        self.coming.pass().await;
        while let Some(until) = self.full_until() {
            tokio::select! {
                () = self.fewer.notified() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    /// When the oldest guest has had its time, while they are as many as there may be, and all young.
    fn full_until(&self) -> Option<Instant> {
        if self.connections.load(Ordering::Relaxed) >= self.most {
            return None;
        }
        let guests = self.guests.lock();
        let (_, (since, _)) = guests.first_key_value()?;
        let until = *since + self.config.grace;
        (guests.len() >= self.config.handshakes && until > Instant::now()).then_some(until)
    }

    /// Lets a connection in, after `room`. `None`: there are as many as there may be.
    pub fn admit(self: &Arc<Self>) -> Option<Admitted> {
        let count = self.connections.fetch_add(1, Ordering::Relaxed);
        // Given back if it is not let in.
        let place = Place {
            admission: self.clone(),
        };
        if count >= self.most {
            return None;
        }
        let mut guests = self.guests.lock();
        if guests.len() >= self.config.handshakes
            && let Some((_, (_, evicted))) = guests.pop_first()
        {
            evicted.cancel();
            self.metrics.evicted.inc();
        }
        let id = self.last.fetch_add(1, Ordering::Relaxed);
        let evicted = CancellationToken::new();
        guests.insert(id, (Instant::now(), evicted.clone()));
        drop(guests);
        Some(Admitted {
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

impl Place {
    /// Waits until it may go: when many do at once, one after another.
    pub async fn leave(&self) {
        self.admission.going.pass().await;
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
        self.admission.fewer.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    fn door(connections: usize, handshakes: usize) -> Arc<Admission> {
        let config = AdmissionConfig {
            connections: Some(connections),
            handshakes,
            ..AdmissionConfig::default()
        };
        Admission::new(config, Arc::default())
    }

    /// Whether who comes now would be dealt with at once.
    fn has_room(door: &Admission) -> bool {
        door.room().now_or_never().is_some()
    }

    #[tokio::test]
    async fn a_place_is_free_again_when_its_connection_has_ended() {
        let door = door(2, 10);
        let (first, second) = (door.admit().unwrap(), door.admit().unwrap());
        for _ in 0..3 {
            assert!(has_room(&door), "who comes is told at once");
            assert!(door.admit().is_none());
        }
        drop(first);
        let third = door.admit().unwrap();
        assert!(door.admit().is_none());
        drop((second, third));
        assert_eq!(door.connections.load(Ordering::Relaxed), 0);
        assert!(door.guests.lock().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_guest_makes_room_once_it_has_had_its_time_and_nobody_is_let_in_before() {
        let door = door(100, 2);
        let began = Instant::now();
        let oldest = door.admit().unwrap();
        tokio::time::advance(Duration::from_millis(600)).await;
        let newer = door.admit().unwrap();
        assert!(!has_room(&door), "each has its second");
        door.room().await;
        let waited = began.elapsed();
        assert!((1_000..1_100).contains(&waited.as_millis()), "{waited:?}");
        assert_eq!(door.metrics.evicted.get(), 0, "nobody needs its place yet");
        let newest = door.admit().unwrap();
        oldest.guest.as_ref().unwrap().evicted().await;
        assert_eq!(door.metrics.evicted.get(), 1);
        assert!(!has_room(&door));
        // One that is welcomed keeps its place, and makes room among the guests: who waits for that is told.
        let welcomed = Admitted {
            guest: None,
            ..newer.clone()
        };
        let before = Instant::now();
        let ((), ()) = tokio::join!(door.room(), async { drop(newer) });
        assert_eq!(before.elapsed(), Duration::ZERO);
        let another = door.admit().unwrap();
        assert_eq!(door.metrics.evicted.get(), 1, "there was room");
        assert_eq!(
            door.metrics.handshakes.get(),
            3,
            "the one that has to go has not gone yet"
        );
        drop((oldest, newest, welcomed, another));
        assert_eq!(door.metrics.handshakes.get(), 0);
        assert_eq!(door.connections.load(Ordering::Relaxed), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_comes_and_goes_at_a_pace_and_a_few_do_not_wait() {
        let door = door(10_000, 10_000);
        let began = Instant::now();
        let mut crowd = Vec::new();
        for _ in 0..8 {
            door.room().await;
            crowd.push(door.admit().unwrap());
        }
        assert_eq!(began.elapsed(), Duration::ZERO);
        for _ in 8..5_000 {
            door.room().await;
            crowd.push(door.admit().unwrap());
        }
        let pace = EVERY * 5_000 / u32::try_from(std::thread::available_parallelism().unwrap().get()).unwrap();
        let came = began.elapsed();
        assert!(came <= pace && pace <= came + 2 * BURST, "{came:?}, at a pace {pace:?}");
        let began = Instant::now();
        let leaving = crowd.iter().map(|admitted| admitted.place.as_ref().unwrap().leave());
        futures_util::future::join_all(leaving).await;
        let left = began.elapsed();
        assert!(left <= pace && pace <= left + 2 * BURST, "{left:?}, at a pace {pace:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn where_there_are_as_many_connections_as_may_be_who_comes_does_not_wait_for_guests() {
        let door = door(2, 2);
        let both = (door.admit().unwrap(), door.admit().unwrap());
        assert!(has_room(&door) && door.admit().is_none());
        drop(both);
    }
}
