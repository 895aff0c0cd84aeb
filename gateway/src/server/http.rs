//! HTTP on the gateway's one port: health, metrics, and the way to a WebSocket.
//!
//! Every refusal carries `Tidegate-Error`, so that a client can tell it from a captive portal's answer.

use super::{Peer, dev};
use crate::session::{self, Accepted, Node};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONNECTION, HeaderMap, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY};
use axum::http::header::{SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use hyper_util::rt::TokioIo;
use std::sync::Arc;
use std::time::Duration;
use tidegate_protocol::form::Form;
use tidegate_protocol::{Code, SpaceId};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::task::TaskTracker;

/// The header that marks an answer as the gateway's own.
pub(super) const ERROR_HEADER: &str = "tidegate-error";

#[derive(Clone)]
struct App {
    node: Arc<Node>,
    connections: TaskTracker,
}

pub(super) fn router(node: Arc<Node>, loopback_only: bool, connections: TaskTracker) -> Router {
    let app = App {
        node: node.clone(),
        connections,
    };
    let router = Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/", get(websocket))
        .route("/v1/ws", get(websocket))
        .fallback(not_found)
        .with_state(app);
    if loopback_only {
        router.layer(axum::middleware::from_fn_with_state(node, dev::guard))
    } else {
        router
    }
}

pub(super) fn refusal(status: StatusCode, code: Code, message: &str) -> Response {
    (status, [(ERROR_HEADER, code.name())], format!("{message}\n")).into_response()
}

async fn not_found(State(App { node, .. }): State<App>) -> Response {
    node.metrics.refused.with_label_values(&["not_found"]).inc();
    refusal(StatusCode::NOT_FOUND, Code::Unsupported, "the WebSocket is at /v1/ws")
}

async fn ready(State(App { node, .. }): State<App>) -> Response {
    let refused = &node.metrics.refused;
    if node.stopping.is_cancelled() {
        refused.with_label_values(&["stopping"]).inc();
        return refusal(StatusCode::SERVICE_UNAVAILABLE, Code::GoingAway, "the node is stopping");
    }
    if !node.hub.is_ready() {
        refused.with_label_values(&["bus"]).inc();
        let why = "the bus is not connected, or spaces could not be compared with the store";
        return refusal(StatusCode::SERVICE_UNAVAILABLE, Code::Unavailable, why);
    }
    let any = SpaceId::parse("readyz").expect("a constant name");
    match tokio::time::timeout(Duration::from_secs(1), node.store.positions(&[any])).await {
        Ok(Ok(_)) => "ready\n".into_response(),
        Ok(Err(_)) | Err(_) => {
            refused.with_label_values(&["store"]).inc();
            refusal(
                StatusCode::SERVICE_UNAVAILABLE,
                Code::Unavailable,
                "the store does not answer",
            )
        }
    }
}

async fn metrics(State(App { node, .. }): State<App>) -> Response {
    ([("content-type", "text/plain; version=0.0.4")], node.metrics.render()).into_response()
}

/// Whether a comma-separated header has a token, in any case.
fn has_token(headers: &HeaderMap, name: axum::http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|part| part.trim().eq_ignore_ascii_case(token))
}

/// The upgrade of RFC 6455 §4.2.2, by hand: axum's own is tied to another tungstenite.
async fn websocket(State(App { node, connections }): State<App>, mut request: Request) -> Response {
    let refuse = |status, message: &str| {
        node.metrics.refused.with_label_values(&["upgrade"]).inc();
        refusal(status, Code::Unsupported, message)
    };
    let headers = request.headers();
    if request.method() != Method::GET
        || !has_token(headers, CONNECTION, "upgrade")
        || !has_token(headers, UPGRADE, "websocket")
    {
        return refuse(
            StatusCode::UPGRADE_REQUIRED,
            "this is a WebSocket endpoint; connect with ws://",
        );
    }
    if !has_token(headers, SEC_WEBSOCKET_VERSION, "13") {
        let mut answer = refuse(
            StatusCode::UPGRADE_REQUIRED,
            "only version 13 of the WebSocket protocol is spoken",
        );
        answer
            .headers_mut()
            .insert(SEC_WEBSOCKET_VERSION, "13".parse().expect("a constant"));
        return answer;
    }
    let Some(key) = headers
        .get(SEC_WEBSOCKET_KEY)
        .map(|key| derive_accept_key(key.as_bytes()))
    else {
        return refuse(StatusCode::BAD_REQUEST, "Sec-WebSocket-Key is missing");
    };
    let offered = headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let Some(form) = offered
        .flat_map(|value| value.split(','))
        .find_map(|name| Form::from_subprotocol(name.trim()))
    else {
        let known = format!(
            "Sec-WebSocket-Protocol must offer {} or {}",
            Form::Msgpack.subprotocol(),
            Form::Json.subprotocol()
        );
        return refuse(StatusCode::BAD_REQUEST, &known);
    };
    if node.draining.is_cancelled() {
        node.metrics.refused.with_label_values(&["draining"]).inc();
        return refusal(
            StatusCode::SERVICE_UNAVAILABLE,
            Code::GoingAway,
            "the node is stopping; connect to another",
        );
    }
    let token = headers
        .get(AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, token)| token.trim().to_owned());
    let Some(peer) = request.extensions().get::<Peer>().cloned() else {
        return refusal(StatusCode::INTERNAL_SERVER_ERROR, Code::Internal, "no peer");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    // What the request held is gone before the connection begins its long life.
    drop(request);
    let served = connections.clone();
    connections.spawn(async move {
        let upgraded = match upgrade.await {
            Ok(upgraded) => upgraded,
            Err(error) => {
                tracing::debug!(peer = %peer.addr, %error, "the upgrade was not completed");
                return;
            }
        };
        match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => {
                let accepted = Accepted {
                    socket: parts.io.into_inner(),
                    leftover: parts.read_buf,
                    form,
                    token,
                    since: peer.since,
                    peer: peer.addr.to_string(),
                    admitted: peer.admitted,
                };
                // A task of its own, which does not hold what upgrading took.
                served.spawn(session::serve(node, accepted));
            }
            Err(_) => tracing::error!(peer = %peer.addr, "an upgraded connection is not a TCP stream"),
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, "websocket")
        .header(SEC_WEBSOCKET_ACCEPT, key)
        .header(SEC_WEBSOCKET_PROTOCOL, form.subprotocol())
        .body(Body::empty())
        .expect("constant headers and a base64 key")
}
