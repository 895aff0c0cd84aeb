//! The gateway's process is killed while several connections write; afterwards all that was acked is there,
//! once, and what was not answered is answered when it is sent again.

use crate::support::Replica;
use crate::{Served, Writing, serve};
use futures_util::future::join_all;
use std::time::Duration;
use tidegate_protocol::{ClientMessage, ServerMessage};

const CLIENTS: u64 = 4;
const KILLS: u64 = 6;

/// A client that writes without pause, and what it has sent and not seen answered.
struct Client {
    writing: Writing,
    open: Option<ClientMessage>,
}

impl Client {
    /// Writes until the connection ends.
    async fn write(&mut self) {
        loop {
            let (client, mid) = (self.writing.state.client.0, self.writing.state.mid);
            let next = self.open.take();
            let write = next.unwrap_or_else(|| {
                let ops = vec![
                    crate::support::inc(&format!("count/{client}"), "n"),
                    crate::support::set(&format!("last/{client}"), "mid", mid as i64 + 1),
                ];
                ClientMessage::Write(self.writing.state.write(ops))
            });
            self.open = Some(write.clone());
            let frame = self.writing.peer.form.encode_client(&write);
            let frame = tokio_tungstenite::tungstenite::Message::binary(frame);
            if futures_util::SinkExt::send(&mut self.writing.peer.socket, frame)
                .await
                .is_err()
            {
                return;
            }
            match self.writing.peer.maybe_next().await {
                None => return,
                Some(ServerMessage::Ack(_)) => {
                    self.writing.acked += 1;
                    self.open = None;
                }
                Some(other) => panic!("{other:?}"),
            }
        }
    }

    /// Goes on over a new connection, as the same client.
    async fn reconnect(&mut self, served: &Served) {
        self.writing.peer = served.peer().await;
    }
}

#[tokio::test]
async fn a_gateway_that_is_killed_under_load_has_every_acked_mutation_once() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let mut served = serve(&data, "", |_| {});
    let mut clients = Vec::new();
    for id in 1..=CLIENTS {
        let mut writing = Writing::new(&served).await;
        writing.state.client.0 = id;
        clients.push(Client { writing, open: None });
    }
    let mut unanswered = 0;
    for kill in 0..KILLS {
        let writes = join_all(clients.iter_mut().map(Client::write));
        let end = async {
            tokio::time::sleep(Duration::from_millis(150 + 37 * kill)).await;
            served.process.0.kill().unwrap();
            served.process.0.wait().unwrap();
        };
        tokio::join!(writes, end);
        let open = clients.iter().filter(|client| client.open.is_some()).count();
        unanswered += u64::from(open > 0);
        served = serve(&data, "", |_| {});
        let found = served.whole().await;
        for client in &mut clients {
            // What was not answered may have been applied, or not.
            let id = client.writing.state.client.0;
            let count = found.int(&format!("count/{id}"), "n").unwrap_or(0).unsigned_abs();
            let may = client.writing.acked..=client.writing.acked + u64::from(client.open.is_some());
            assert!(may.contains(&count), "client {id}: {count}, not in {may:?}");
            assert_eq!(
                found.int(&format!("last/{id}"), "mid").unwrap_or(0).unsigned_abs(),
                count,
                "half applied"
            );
            client.reconnect(&served).await;
        }
    }
    assert!(
        unanswered * 5 >= KILLS * 4,
        "{unanswered} of {KILLS} kills met a mutation under way"
    );
    // Sent again, each is answered, and was applied once.
    for client in &mut clients {
        let Some(write) = client.open.take() else { continue };
        client.writing.peer.send(&write).await;
        client.writing.peer.answer(&mut Replica::default()).await.unwrap();
        client.writing.acked += 1;
    }
    let found = served.whole().await;
    for client in &clients {
        let id = client.writing.state.client.0;
        assert_eq!(
            found.int(&format!("count/{id}"), "n"),
            Some(client.writing.acked as i64),
            "client {id}"
        );
    }
    let all: u64 = clients.iter().map(|client| client.writing.acked).sum();
    println!("{all} mutations, {KILLS} kills, {unanswered} with one under way");
}
