use super::queue::FRAME;
use super::*;
use std::sync::Arc;
use tidegate_protocol::{Epoch, Seq};
use tokio::io::AsyncReadExt;

async fn pair() -> (TcpStream, TcpStream) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    (listener.accept().await.unwrap().0, client)
}

#[tokio::test]
async fn frames_arrive_whole_and_in_order_through_a_socket_that_blocks() {
    let (server, mut client) = pair().await;
    let outbox = Arc::new(Outbox::new(server, only_hard(1 << 30), Arc::default()));
    let frame = |n: u32| Bytes::from([n.to_be_bytes().repeat(250), vec![]].concat());
    let pushing = {
        let outbox = outbox.clone();
        async move {
            for n in 0..20_000 {
                outbox.push([frame(n)]);
                if n % 64 == 0 {
                    tokio::task::yield_now().await;
                }
            }
            outbox.finish([], true);
        }
    };
    let reading = async move {
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        all
    };
    let writing = async {
        assert_eq!(outbox.run_writer().await, End::Finished);
        outbox.transport().shutdown_write();
    };
    let ((), (), all) = tokio::join!(pushing, writing, reading);
    assert_eq!(all.len(), 20_000 * 1000);
    for (n, chunk) in all.chunks(1000).enumerate() {
        assert_eq!(chunk, frame(u32::try_from(n).unwrap()), "frame {n}");
    }
}

#[tokio::test]
async fn the_smallest_frames_fill_the_bound_by_what_they_take_in_memory() {
    let (server, _client) = pair().await;
    let outbox = Outbox::new(server, only_hard(1 << 16), Arc::default());
    let mut state = outbox.state.lock();
    state.queue().blocked = true;
    drop(state);
    let mut frames = 0;
    while outbox.ended().is_none() {
        outbox.push([Bytes::from_static(b"\x8a\x00")]);
        frames += 1;
    }
    assert!((500..1_100).contains(&frames), "{frames}");
    assert_eq!(outbox.budget.dropped.get(Drops::Overflow), (frames, 2 * frames));
    outbox.push([Bytes::from_static(b"late")]);
    assert_eq!(outbox.budget.dropped.get(Drops::Ended), (1, 4));
}

#[tokio::test]
async fn over_its_bound_it_ends_without_tearing_a_frame() {
    let (server, mut client) = pair().await;
    let outbox = Outbox::new(server, only_hard(1 << 20), Arc::default());
    while outbox.ended().is_none() {
        outbox.push([Bytes::from(vec![7; 10_000])]);
    }
    assert_eq!(outbox.run_writer().await, End::Overflow);
    assert!(outbox.queued() <= 10_000);
    outbox.finish([Bytes::from_static(b"last")], true);
    let writing = async {
        assert_eq!(outbox.run_writer().await, End::Finished);
        outbox.transport().shutdown_write();
    };
    let mut all = Vec::new();
    let (_, read) = tokio::join!(writing, client.read_to_end(&mut all));
    read.unwrap();
    assert_eq!((all.len() - 4) % 10_000, 0);
    assert!(all.ends_with(b"\x07last"));
}

fn only_hard(hard: usize) -> Bounds {
    Bounds { soft: hard, hard }
}

/// A socket that takes so many bytes and no more.
#[derive(Default)]
struct Narrow {
    room: Mutex<usize>,
    taken: Mutex<Vec<u8>>,
}

impl Transport for Narrow {
    fn poll_read(&self, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }
    fn try_write_vectored(&self, bufs: &[IoSlice<'_>]) -> io::Result<usize> {
        let mut room = self.room.lock();
        if *room == 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let mut written = 0;
        for buf in bufs {
            let part = &buf[..buf.len().min(*room)];
            self.taken.lock().extend_from_slice(part);
            *room -= part.len();
            written += part.len();
        }
        Ok(written)
    }
    fn poll_write_ready(&self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if *self.room.lock() > 0 {
            Poll::Ready(Ok(()))
        } else {
            Poll::Pending
        }
    }
    fn shutdown_write(&self) {}
}

const FRAME_BYTES: usize = 100;

fn at(seq: u64) -> Position {
    Position::new(Epoch(1), Seq::new(seq).unwrap())
}

/// Hands a stream the commits of this range.
fn hand(outbox: &Outbox<Narrow>, stream: Stream, seqs: std::ops::RangeInclusive<u64>) -> Handed {
    let mut out = outbox.hand(stream);
    for seq in seqs {
        let byte = u8::try_from(10 * stream + seq % 10).unwrap();
        out.follow(at(seq - 1), Bytes::from(vec![byte; FRAME_BYTES]));
    }
    out.done()
}

/// Lets everything out, and returns which frames came: whole, in order.
fn taken(outbox: &Outbox<Narrow>) -> Vec<u8> {
    *outbox.transport.room.lock() = usize::MAX;
    outbox.write(&mut outbox.state.lock());
    assert_eq!(outbox.queued(), 0);
    let taken = outbox.transport.taken.lock();
    let frames = taken.chunks(FRAME_BYTES);
    frames
        .map(|frame| {
            assert!(
                frame.len() == FRAME_BYTES && frame.iter().all(|byte| byte == &frame[0]),
                "{frame:?}"
            );
            frame[0]
        })
        .collect()
}

fn narrow(room: usize, frames: usize) -> Outbox<Narrow> {
    let soft = frames * (FRAME_BYTES + FRAME);
    let outbox = Outbox::new(Narrow::default(), Bounds { soft, hard: 1 << 20 }, Arc::default());
    *outbox.transport.room.lock() = room;
    outbox
}

const TAKEN: Handed = Handed {
    behind: None,
    others: false,
};

#[test]
fn a_stream_of_which_too_much_waits_is_cut_behind_what_is_on_its_way() {
    let outbox = narrow(250, 4);
    // Two are gone, and half of the third.
    assert_eq!(hand(&outbox, 1, 1..=5), TAKEN);
    let cut = hand(&outbox, 1, 6..=7);
    assert_eq!((cut.behind, cut.others), (Some(at(3)), false));
    assert_eq!(taken(&outbox), [11, 12, 13]);
}

#[test]
fn the_stream_of_which_most_waits_is_cut_and_the_others_are_not() {
    let outbox = narrow(50, 7);
    assert_eq!(hand(&outbox, 1, 1..=5), TAKEN);
    assert_eq!(hand(&outbox, 2, 1..=2), TAKEN);
    assert!(hand(&outbox, 2, 3..=3).others);
    assert_eq!(outbox.cuts(), [(1, at(1))]);
    // It takes nothing more: what comes next would not follow.
    assert_eq!(hand(&outbox, 1, 6..=6).behind, Some(at(1)));
    assert_eq!(outbox.cuts(), []);
    assert_eq!(taken(&outbox), [11, 21, 22, 23]);
}

#[test]
fn what_is_of_no_stream_or_of_one_that_was_closed_is_not_cut() {
    let outbox = narrow(0, 3);
    outbox.push([Bytes::from(vec![1; FRAME_BYTES])]);
    assert_eq!(hand(&outbox, 1, 1..=1), TAKEN);
    outbox.close(1);
    assert_eq!(hand(&outbox, 2, 1..=2).behind, Some(at(0)));
    let mut out = outbox.hand(3);
    out.say(Bytes::from(vec![2; FRAME_BYTES]));
    assert_eq!(out.done(), TAKEN);
    assert_eq!(taken(&outbox), [1, 11, 2]);
}

#[test]
fn what_a_socket_takes_at_once_cuts_nothing_however_much_it_is() {
    let outbox = narrow(usize::MAX, 2);
    assert_eq!(hand(&outbox, 1, 1..=9), TAKEN);
    assert_eq!(taken(&outbox).len(), 9);
}

#[tokio::test(start_paused = true)]
async fn a_socket_stalls_from_when_it_last_took_something() {
    let outbox = narrow(50, 100);
    let later = || tokio::time::advance(Duration::from_secs(10));
    assert_eq!(hand(&outbox, 1, 1..=1), TAKEN);
    later().await;
    assert_eq!(outbox.stalled(), Duration::from_secs(10));
    *outbox.transport.room.lock() = 10;
    outbox.write(&mut outbox.state.lock());
    assert_eq!(outbox.stalled(), Duration::ZERO);
    later().await;
    taken(&outbox);
    assert_eq!(outbox.stalled(), Duration::ZERO);
}

/// An outbox whose socket takes nothing more.
async fn full() -> (Outbox<TcpStream>, TcpStream) {
    let (server, client) = pair().await;
    let outbox = Outbox::new(server, only_hard(1 << 30), Arc::default());
    while outbox.queued() == 0 {
        outbox.push([Bytes::from(vec![7; 1 << 20])]);
    }
    (outbox, client)
}

#[tokio::test]
async fn what_waits_takes_memory_and_what_does_not_takes_none() {
    let (outbox, mut client) = full().await;
    assert!(outbox.state.lock().queue.is_some());
    let reading = async {
        let mut some = vec![0; 1 << 20];
        while outbox.queued() > 0 {
            client.read_exact(&mut some[..1]).await.unwrap();
            let _ = client.try_read(&mut some);
        }
    };
    tokio::select! {
        end = outbox.run_writer() => panic!("{end:?}"),
        () = reading => {}
    }
    assert!(outbox.state.lock().queue.is_none());
    assert!(size_of_val(&outbox) <= 112, "{}", size_of_val(&outbox));
}

#[tokio::test]
async fn a_socket_that_would_block_is_not_asked_again_and_again() {
    let (outbox, _client) = full().await;
    let sends = outbox.budget.sends.get();
    for _ in 0..10 {
        assert!(futures_util::FutureExt::now_or_never(outbox.run_writer()).is_none());
    }
    // The system may make some room meanwhile; who is always told that there is some, asks until its task's budget is spent.
    let asked = outbox.budget.sends.get() - sends;
    assert!(asked < 100, "{asked}");
}
