//! What an app relies on, over real sockets, against the toy gateway.

#![allow(clippy::unwrap_used, clippy::result_large_err, missing_docs)] // a test may panic; the library's signature

mod toy;

use futures_util::future::BoxFuture;
use futures_util::{SinkExt, StreamExt};
use parking_lot::Mutex;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tidegate_client::protocol::{Code, Limits, SUBPROTOCOL_MSGPACK, SpaceId, deflate, msgpack};
use tidegate_client::storage::{MemoryStorage, Storage, StorageError, Stored, Transaction};
use tidegate_client::transport::{Connector, Transport};
use tidegate_client::{
    Client, ConnectionState, Failure, GatewayUrl, Options, Value, WATCH_ITEMS, WatchItem, WriteError, fields,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::server::{Request, Response};
use toy::Gateway;

const PATIENCE: Duration = Duration::from_secs(20);

/// What goes by on the sockets of a server.
#[derive(Default)]
struct Wire {
    /// Compressed messages that came in, and that went out.
    compressed: (AtomicUsize, AtomicUsize),
    /// Bytes to be sent as a message, whatever they are.
    raw: Mutex<Vec<Vec<u8>>>,
}

/// A toy gateway behind a listener. Dropped, it is gone with its connections.
struct Server {
    addr: SocketAddr,
    gateway: Arc<Mutex<Gateway>>,
    moved: Arc<Notify>,
    wire: Arc<Wire>,
    tasks: JoinSet<()>,
    cut: Arc<Notify>,
}

impl Server {
    async fn start() -> Self {
        let gateway = Arc::new(Mutex::new(Gateway::new(SpaceId::parse("s").unwrap(), 0, vec![])));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut server = Self {
            addr: listener.local_addr().unwrap(),
            gateway,
            moved: Arc::new(Notify::new()),
            wire: Arc::default(),
            tasks: JoinSet::new(),
            cut: Arc::new(Notify::new()),
        };
        let (gateway, moved, cut) = (server.gateway.clone(), server.moved.clone(), server.cut.clone());
        let wire = server.wire.clone();
        server.tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (gateway, moved, cut) = (gateway.clone(), moved.clone(), cut.clone());
                let wire = wire.clone();
                connections.spawn(async move {
                    tokio::select! {
                        () = serve(stream, gateway, moved, wire) => {}
                        () = cut.notified() => {}
                    }
                });
            }
        });
        server
    }

    fn options(&self) -> Options {
        Options::new(&format!("http://{}", self.addr)).unwrap()
    }

    fn client(&self) -> Client {
        Client::connect(self.options())
    }

    /// Every connection breaks.
    fn cut(&self) {
        self.cut.notify_waiters();
    }
}

async fn serve(stream: TcpStream, gateway: Arc<Mutex<Gateway>>, moved: Arc<Notify>, wire: Arc<Wire>) {
    let choose = |_: &Request, mut response: Response| {
        let name = SUBPROTOCOL_MSGPACK.parse().unwrap();
        response.headers_mut().insert("sec-websocket-protocol", name);
        Ok(response)
    };
    let Ok(socket) = tokio_tungstenite::accept_hdr_async(stream, choose).await else {
        return;
    };
    let (mut sink, mut stream) = socket.split();
    let at = {
        let mut gateway = gateway.lock();
        gateway.sessions.push(None);
        let at = gateway.sessions.len() - 1;
        gateway.connect(at, "ann");
        at
    };
    loop {
        let due = moved.notified();
        let out: Vec<_> = gateway.lock().sessions[at]
            .as_mut()
            .unwrap()
            .to_client
            .drain(..)
            .collect();
        let mut frames = std::mem::take(&mut *wire.raw.lock());
        for message in out {
            let frame = msgpack::encode_server(&message);
            let z = (frame.len() > deflate::THRESHOLD)
                .then(|| deflate::compress(&frame))
                .flatten();
            wire.compressed.1.fetch_add(usize::from(z.is_some()), Ordering::Relaxed);
            frames.push(z.unwrap_or(frame));
        }
        for frame in frames {
            if sink.send(Message::Binary(frame.into())).await.is_err() {
                return;
            }
        }
        tokio::select! {
            message = stream.next() => match message {
                Some(Ok(Message::Binary(frame))) => {
                    let plain = deflate::expand(&frame, Limits::default().message_bytes).unwrap();
                    wire.compressed.0.fetch_add(usize::from(*plain != *frame), Ordering::Relaxed);
                    let message = msgpack::decode_client(&plain, &Limits::default()).unwrap();
                    gateway.lock().receive(at, message, 0);
                    moved.notify_waiters();
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                _ => break,
            },
            () = due => {}
        }
    }
    gateway.lock().sessions[at] = Some(toy::Session::default());
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("in time")
}

#[tokio::test]
async fn a_write_shows_at_once_is_acked_and_reaches_another_client() {
    let server = Server::start().await;
    let (one, two) = (server.client(), server.client());
    let notes = one.space("s").unwrap().collection("notes").unwrap();
    let mut seen = two.space("s").unwrap().collection("notes").unwrap().watch();
    soon(one.space("s").unwrap().current()).await.unwrap();
    let doc = notes.doc("n1").unwrap();
    let saved = doc.set(fields! { "title" => "Hello", "address.city" => "Oslo", "stars" => 5 });
    let view = doc.view();
    assert!(view.pending() && view.exists());
    assert_eq!(view.str("address.city"), Some("Oslo"));
    let acked = soon(saved).await.unwrap();
    assert_eq!(acked.position.seq.get(), 2);
    assert!(!doc.view().pending());
    loop {
        let update = soon(seen.next()).await.unwrap();
        if let Some(doc) = update.docs.first() {
            assert_eq!((doc.id(), doc.get("stars")), ("n1", Some(&Value::int(5))));
            assert_eq!(doc.value().unwrap().as_map().unwrap().len(), 3);
            break;
        }
    }
    assert_eq!(seen.docs().len(), 1);
    assert_eq!(one.close().await, 0);
    assert!(matches!(*one.state().borrow(), ConnectionState::Closed));
    assert!(
        matches!(doc.set(fields! { "x" => 1 }).await, Err(WriteError::Refused(refusal)) if refusal.code == Code::GoingAway)
    );
}

#[tokio::test]
async fn large_messages_go_and_come_compressed_and_small_ones_as_they_are() {
    let server = Server::start().await;
    let (a, b) = (server.client(), server.client());
    let (there, here) = (a.space("s").unwrap(), b.space("s").unwrap());
    let mut watch = here.doc("notes/large").unwrap().watch();
    let _ = soon(watch.next()).await.unwrap();
    let seen = |wire: &Wire| {
        let (up, down) = &wire.compressed;
        (up.load(Ordering::Relaxed), down.load(Ordering::Relaxed))
    };
    soon(there.doc("notes/small").unwrap().set(fields! { "n" => 1 }))
        .await
        .unwrap();
    assert_eq!(seen(&server.wire), (0, 0));
    let text = "The tide comes in, and goes out again. ".repeat(1_000);
    soon(
        there
            .doc("notes/large")
            .unwrap()
            .set(fields! { "text" => text.as_str() }),
    )
    .await
    .unwrap();
    soon(async {
        while !watch
            .next()
            .await
            .unwrap()
            .docs
            .iter()
            .any(|doc| doc.str("text") == Some(&text))
        {}
    })
    .await;
    let (up, down) = seen(&server.wire);
    assert_eq!(up, 1);
    assert!(down >= 1, "{down}");
    // On the next connection it is agreed on anew.
    server.cut();
    soon(
        there
            .doc("notes/large")
            .unwrap()
            .set(fields! { "text" => text.as_str(), "n" => 2 }),
    )
    .await
    .unwrap();
    assert_eq!(seen(&server.wire).0, 2);
}

#[tokio::test]
async fn a_message_that_would_inflate_to_too_much_costs_the_connection_and_nothing_else() {
    let server = Server::start().await;
    let client = server.client();
    soon(client.connected()).await.unwrap();
    let mut state = client.state();
    let _ = state.borrow_and_update();
    // 2^63 bytes, in none.
    let bomb = b"\x83\xa1t\xa1z\xa4size\xcf\x80\0\0\0\0\0\0\0\xa3raw\xc4\0".to_vec();
    server.wire.raw.lock().push(bomb);
    server.moved.notify_waiters();
    let why = soon(async {
        loop {
            state.changed().await.unwrap();
            if let ConnectionState::Offline { why: Some(why), .. } = &*state.borrow_and_update() {
                return why.clone();
            }
        }
    })
    .await;
    assert!(why.contains("z.size is limited to 16777216 bytes"), "{why}");
    let space = client.space("s").unwrap();
    soon(space.doc("notes/n").unwrap().set(fields! { "n" => 1 }))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_written_offline_arrives_once_when_the_connection_is_back() {
    let server = Server::start().await;
    let client = server.client();
    let space = client.space("s").unwrap();
    soon(space.current()).await.unwrap();
    let doc = space.doc("notes/n1").unwrap();
    soon(doc.set(fields! { "n" => 1 })).await.unwrap();
    server.cut();
    let mut pending = vec![];
    for _ in 0..20 {
        pending.push(doc.inc("n", 1));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for pending in pending {
        soon(pending).await.unwrap();
    }
    assert_eq!(doc.view().get("n"), Some(&Value::int(21)));
    let docs = server.gateway.lock().docs().clone();
    let leaves = docs.values().next().unwrap();
    assert_eq!(leaves.values().next(), Some(&Value::int(21)));
}

#[tokio::test]
async fn changes_come_as_received_and_a_slow_reader_gets_a_reset_and_the_whole() {
    let server = Server::start().await;
    let (writer, reader) = (server.client(), server.client());
    let mut watch = reader.space("s").unwrap().watch();
    assert_eq!(soon(watch.next()).await, Some(WatchItem::Reset));
    assert!(matches!(soon(watch.next()).await, Some(WatchItem::Current { .. })));
    let doc = writer.space("s").unwrap().doc("notes/n1").unwrap();
    soon(doc.set(fields! { "n" => 0 })).await.unwrap();
    let Some(WatchItem::Change { seq, change }) = soon(watch.next()).await else {
        panic!("a change")
    };
    assert_eq!((seq.get(), change.doc.as_str()), (2, "notes/n1"));
    let rounds = WATCH_ITEMS + 200;
    let mut last = None;
    for n in 1..=rounds {
        // Not through the document: what is unsent would be folded into one mutation.
        last = Some(
            writer
                .space("s")
                .unwrap()
                .mutation()
                .set(&doc, fields! { "n" => n })
                .send(),
        );
        if n % 32 == 0 {
            soon(last.take().unwrap()).await.unwrap();
        }
    }
    if let Some(last) = last {
        soon(last).await.unwrap();
    }
    let space = reader.space("s").unwrap();
    let wanted = Value::int(i64::try_from(rounds).unwrap());
    soon(async {
        while space.docs()[0].get("n") != Some(&wanted) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    let mut items = 0;
    let mut whole = false;
    while let Ok(Some(item)) = tokio::time::timeout(Duration::from_millis(200), watch.next()).await {
        items += 1;
        whole |= item == WatchItem::Reset;
    }
    assert!(items <= WATCH_ITEMS, "{items} items were held");
    let commits = server.gateway.lock().head();
    assert!(
        whole || commits < rounds as u64,
        "only {commits} commits were made, and none was dropped"
    );
}

#[tokio::test]
async fn a_slow_reader_of_a_large_space_gets_to_its_end_while_others_write() {
    let server = Server::start().await;
    let (writer, reader) = (server.client(), server.client());
    let space = writer.space("s").unwrap();
    let docs = WATCH_ITEMS + 1_000;
    let names: Vec<_> = (0..docs).map(|n| format!("notes/{n}")).collect();
    for names in names.chunks(500) {
        let all = names.iter().fold(space.mutation(), |mutation, name| {
            mutation.set(name.as_str(), fields! { "n" => 0 })
        });
        soon(all.send()).await.unwrap();
    }
    let held = reader.space("s").unwrap();
    let mut watch = held.watch();
    let (mut items, mut resets) = (0, 0);
    loop {
        match soon(watch.next()).await.unwrap() {
            WatchItem::Reset => {
                resets += 1;
                assert_eq!(resets, 1, "it begins anew with every commit");
            }
            WatchItem::Current { .. } => break,
            _ => items += 1,
        }
        if items % 500 == 100 {
            let acked = soon(space.doc("notes/0").unwrap().set(fields! { "n" => items })).await;
            let acked = acked.unwrap().position;
            soon(async {
                while held.position() != Some(acked) {
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            })
            .await;
        }
    }
    assert_eq!(items, docs);
    assert!(matches!(soon(watch.next()).await, Some(WatchItem::Change { .. })));
}

#[tokio::test]
async fn a_reader_is_not_held_up_by_a_writer_that_is_stuck() {
    /// Hands out one end of a small pipe.
    struct Pipe(Mutex<Option<tokio::io::DuplexStream>>);
    impl Connector for Pipe {
        fn connect<'a>(&'a self, _: &'a GatewayUrl) -> BoxFuture<'a, std::io::Result<Box<dyn Transport>>> {
            let end = self.0.lock().take();
            Box::pin(async move {
                let end = end.ok_or(std::io::ErrorKind::ConnectionRefused)?;
                Ok(Box::new(end) as Box<dyn Transport>)
            })
        }
    }
    let (near, far) = tokio::io::duplex(4096);
    let mut tasks = JoinSet::new();
    let gateway = Arc::new(Mutex::new(Gateway::new(SpaceId::parse("s").unwrap(), 1, vec![])));
    tasks.spawn({
        let gateway = gateway.clone();
        async move {
            let choose = |_: &Request, mut response: Response| {
                let name = SUBPROTOCOL_MSGPACK.parse().unwrap();
                response.headers_mut().insert("sec-websocket-protocol", name);
                Ok(response)
            };
            let socket = tokio_tungstenite::accept_hdr_async(far, choose).await.unwrap();
            let (mut sink, mut stream) = socket.split();
            gateway.lock().connect(0, "ann");
            // `hello` and `sub` are read, and never anything after.
            for _ in 0..2 {
                let Some(Ok(Message::Binary(frame))) = stream.next().await else {
                    panic!()
                };
                gateway
                    .lock()
                    .receive(0, msgpack::decode_client(&frame, &Limits::default()).unwrap(), 0);
                let out: Vec<_> = gateway.lock().sessions[0]
                    .as_mut()
                    .unwrap()
                    .to_client
                    .drain(..)
                    .collect();
                for message in out {
                    sink.send(Message::Binary(msgpack::encode_server(&message).into()))
                        .await
                        .unwrap();
                }
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
            gateway.lock().mint();
            let out: Vec<_> = gateway.lock().sessions[0]
                .as_mut()
                .unwrap()
                .to_client
                .drain(..)
                .collect();
            for message in out {
                sink.send(Message::Binary(msgpack::encode_server(&message).into()))
                    .await
                    .unwrap();
            }
            std::future::pending::<()>().await;
        }
    });
    let url = GatewayUrl::parse("wss://nowhere.example").unwrap();
    let client = Client::connect(Options::with_connector(url, Pipe(Mutex::new(Some(near)))));
    let space = client.space("s").unwrap();
    let before = soon(space.current()).await.unwrap();
    let text = "x".repeat(100_000);
    for n in 0..30 {
        drop(
            space
                .doc(&format!("notes/n{n}"))
                .unwrap()
                .set(fields! { "text" => text.as_str() }),
        );
    }
    soon(async {
        while space.position() == Some(before) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
    assert_eq!(client.queued(), 30, "no answer came, and the stream went on");
}

#[tokio::test]
async fn a_refusal_that_names_itself_stops_the_client_and_a_captive_portal_does_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for header in ["", "Tidegate-Error: unauthenticated\r\n"] {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = [0; 2048];
            let _ = stream.read(&mut head).await;
            let answer = format!("HTTP/1.1 403 Forbidden\r\n{header}Content-Length: 2\r\n\r\nno");
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
        std::future::pending::<()>().await;
    });
    let client = Client::connect(Options::new(&addr.to_string()).unwrap());
    let mut state = client.state();
    let offline = soon(state.wait_for(|state| matches!(state, ConnectionState::Offline { .. })))
        .await
        .unwrap()
        .clone();
    let ConnectionState::Offline { why, .. } = offline else {
        unreachable!()
    };
    assert!(why.unwrap().contains("not a Tidegate gateway"));
    let refusal = soon(client.connected()).await.unwrap_err();
    assert_eq!(refusal.code, Code::Unauthenticated);
    assert_eq!(
        soon(client.space("s").unwrap().current()).await.unwrap_err().code,
        Code::Unauthenticated
    );
}

#[tokio::test]
async fn a_client_whose_task_panics_says_that_it_has_stopped() {
    struct Broken;
    impl Storage for Broken {
        fn load(&mut self) -> Result<Stored, StorageError> {
            Ok(Stored::default())
        }
        fn commit(&mut self, _: Transaction) -> Result<(), StorageError> {
            panic!("a defect of the app's storage");
        }
    }
    let server = Server::start().await;
    let client = Client::connect(server.options().storage(Broken));
    let refusal = soon(client.connected()).await.unwrap_err();
    assert_eq!(refusal.code, Code::Internal);
    assert!(!soon(client.flush()).await || client.queued() == 0);
    soon(client.close()).await;
}

#[tokio::test]
async fn a_client_whose_storage_fails_stops_before_it_sends_what_it_could_not_keep() {
    struct Full(MemoryStorage);
    impl Storage for Full {
        fn load(&mut self) -> Result<Stored, StorageError> {
            self.0.load()
        }
        fn commit(&mut self, transaction: Transaction) -> Result<(), StorageError> {
            let changed = transaction.spaces.iter().flat_map(|(_, changes)| &changes.queue);
            if changed.filter_map(|(_, m)| m.as_ref()).any(|m| m.seal.is_some()) {
                return Err(StorageError("the disk is full".to_owned()));
            }
            self.0.commit(transaction)
        }
    }
    let server = Server::start().await;
    let client = Client::connect(server.options().storage(Full(MemoryStorage::new())));
    soon(client.connected()).await.unwrap();
    let pending = client
        .space("s")
        .unwrap()
        .doc("notes/n1")
        .unwrap()
        .set(fields! { "x" => 1 });
    let mut state = client.state();
    let stopped = soon(state.wait_for(|state| matches!(state, ConnectionState::Stopped { .. })))
        .await
        .unwrap()
        .clone();
    assert!(matches!(stopped, ConnectionState::Stopped { message, .. } if message.contains("disk is full")));
    client.close().await;
    assert_eq!(soon(pending).await, Err(WriteError::Closed));
    assert_eq!(server.gateway.lock().head(), 1, "nothing was sent");
}

#[tokio::test]
async fn failures_are_told_though_nobody_awaits_the_write_and_an_identity_goes_on_in_the_next_process() {
    let server = Server::start().await;
    let client = server.client();
    let space = client.space("s").unwrap();
    let mut failures = client.failures();
    soon(space.doc("notes/n1").unwrap().set(fields! { "x" => 1 }))
        .await
        .unwrap();
    drop(
        space
            .mutation()
            .set("notes/n2", fields! { "x" => 1 })
            .exists(true)
            .send(),
    );
    let Some(Failure::Write { ops, error, .. }) = soon(failures.next()).await else {
        panic!("a failure")
    };
    assert_eq!((ops.len(), error.code()), (1, Some(Code::PreconditionFailed)));
    let identity = space.identity();
    assert_eq!(identity.next_mid.get(), 3);
    client.close().await;
    assert_eq!(soon(failures.next()).await, None);
    let again = Client::connect(server.options().identity(space.name().clone(), identity));
    let acked = soon(
        again
            .space("s")
            .unwrap()
            .doc("notes/n3")
            .unwrap()
            .set(fields! { "x" => 1 }),
    )
    .await
    .unwrap();
    assert_eq!(acked.mid.get(), 3);
    // A name that is none, and a value that is none, are refused before anything is queued.
    let bad = again
        .space("s")
        .unwrap()
        .doc("notes/n3")
        .unwrap()
        .set(fields! { "a..b" => 1 });
    assert_eq!(bad.id(), None);
    assert_eq!(soon(bad).await.unwrap_err().code(), Some(Code::Invalid));
}

#[tokio::test]
async fn the_last_handle_takes_the_connection_with_it() {
    let server = Server::start().await;
    let client = server.client();
    let live = client.space("s").unwrap().live();
    soon(client.connected()).await.unwrap();
    let shared = client.state();
    drop(client);
    assert!(shared.has_changed().is_ok(), "a stream keeps the client");
    drop(live);
    soon(async {
        // The sender goes with the task.
        while shared.has_changed().is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn who_is_refused_comes_back_no_earlier_than_it_was_told_to() {
    // A gateway that is full, a proxy before one, a date, and something that does not say.
    let answers = [
        ("Tidegate-Error: overloaded\r\nRetry-After: 7\r\n", 7_000..=10_500),
        ("Retry-After: 30\r\n", 30_000..=45_000),
        ("Retry-After: Fri, 31 Dec 1999 23:59:59 GMT\r\n", 500..=1_500),
        ("", 500..=1_500),
    ];
    for (headers, wanted) in answers {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let options = Options::new(&format!("ws://{}", listener.local_addr().unwrap())).unwrap();
        let client = Client::connect(options);
        let (mut socket, _) = soon(listener.accept()).await.unwrap();
        assert!(socket.read(&mut [0; 4096]).await.unwrap() > 0);
        let answer = format!("HTTP/1.1 503 Service Unavailable\r\n{headers}Content-Length: 0\r\n\r\n");
        socket.write_all(answer.as_bytes()).await.unwrap();
        let mut state = client.state();
        let refused = |state: &ConnectionState| matches!(state, ConnectionState::Offline { why: Some(_), .. });
        let state = soon(state.wait_for(refused)).await.unwrap().clone();
        let ConnectionState::Offline { retry_ms, .. } = state else {
            panic!("{state:?}")
        };
        assert!(wanted.contains(&retry_ms), "{headers:?}: {retry_ms}");
    }
}

#[test]
fn tls_is_refused_in_words_until_it_comes() {
    let error = Options::new("https://gateway.example").err().unwrap().to_string();
    assert!(error.contains("TLS comes later"), "{error}");
}
