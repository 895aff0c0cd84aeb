//! Servers with whose settings a gateway would lose what it acknowledges.

use crate::cli::{said, tidegate};
use crate::clients::{Pen, Reader};
use crate::fleet::{Node, until};
use crate::proxy::{Fault, Proxy};
use crate::redis_server::Server;
use crate::support::Judge;

const EVICTS: [&str; 2] = ["--maxmemory-policy", "allkeys-lru"];

fn start(redis: &Proxy) -> Node {
    Node::start(&redis.url(), &["redis.patience=4s"])
}

/// It is not ready, writes nothing, and says why.
async fn refuses(node: &Node, redis: &Server) {
    let series = "tidegate_redis_errors_total{kind=\"settings\"}";
    until("it is not ready, and that is counted", async || {
        !node.is_ready().await && node.metric(series).await > Some(0)
    })
    .await;
    let said = "Redis is not used. When its memory is full";
    assert!(node.log().contains(said), "{}", node.log());
    assert_eq!(redis.command(&["DBSIZE"]), redis::Value::Int(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_may_evict_keys_is_not_used_whenever_it_comes() {
    let redis = Server::start(&EVICTS);
    let proxy = Proxy::before(redis.addr()).await;
    // It is not there yet when the gateway starts.
    proxy.set(Fault::Cut);
    let node = start(&proxy);
    proxy.set(Fault::None);
    refuses(&node, &redis).await;
    // Once it is as it should be, it is used without a restart.
    redis.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    node.ready().await;
    Pen::new(&Judge::new(), 2_000, 0).write(node.addr, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_takes_over_and_may_evict_keys_is_not_used() {
    let (mut one, two) = (Server::start(&[]), Server::start(&EVICTS));
    let proxy = Proxy::before(one.addr()).await;
    let node = start(&proxy);
    node.ready().await;
    one.kill();
    proxy.switch(two.addr());
    refuses(&node, &two).await;
    two.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction"]);
    node.ready().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_that_keys_may_be_evicted_serves_and_still_not_on_a_replica() {
    let (primary, replica) = (Server::start(&EVICTS), Server::start(&EVICTS));
    let node = Node::start(&primary.url(), &["redis.any_policy=true"]);
    node.ready().await;
    replica.replicate(&primary);
    let url = replica.url();
    let args = ["serve", "--dev", "--listen", "127.0.0.1:0", "--redis", &url];
    let output = tidegate(&[&args[..], &["--set", "redis.any_policy=true"]].concat()).output();
    let output = output.unwrap();
    assert!(
        !output.status.success() && said(&output).contains("role slave"),
        "{}",
        said(&output)
    );
}

/// Data of another day that is put in place of the present one is another history, which a server that goes on does not say.
/// What docs/CLI.md says to do then is done here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_put_in_place_without_a_restart_is_another_history_once_that_is_said() {
    let redis = Server::start(&["--appendonly", "yes"]);
    let node = Node::start(&redis.url(), &[]);
    node.ready().await;
    let judge = Judge::new();
    let mut pen = Pen::new(&judge, 2_000, 0);
    pen.write(node.addr, 3).await;
    redis.copy_to(1);
    pen.write(node.addr, 2).await;
    let mut reader = Reader::new(&judge, 1, 0);
    reader.visit(node.addr).await;
    redis.command(&["SWAPDB", "0", "1"]);
    redis.command(&["REPLICAOF", "127.0.0.1", "1"]);
    redis.command(&["REPLICAOF", "NO", "ONE"]);
    // The numbers of what is gone are given out again, and more.
    let mut other = Pen::new(&judge, 3_000, 0);
    other.write(node.addr, 3).await;
    reader.visit(node.addr).await;
    assert_eq!(reader.resets, 1, "it holds what is gone");
    pen.write(node.addr, 1).await;
    assert_eq!(pen.lost, 2);
    let truth = crate::clients::truth(node.addr, 0).await;
    reader.visit(node.addr).await;
    reader.assert_is(&truth);
    judge.verdict();
}
