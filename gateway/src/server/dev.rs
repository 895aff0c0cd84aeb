//! The guard of dev mode. It admits anyone, so it must be out of reach for everything but programs on
//! this machine: above all for a website in the user's browser, which can open a WebSocket to
//! 127.0.0.1, or have its own name resolve to it (DNS rebinding).

use super::http::refusal;
use crate::session::Node;
use axum::extract::{Request, State};
use axum::http::header::{HOST, HeaderName, ORIGIN};
use axum::http::{StatusCode, Uri};
use axum::middleware::Next;
use axum::response::Response;
use std::net::IpAddr;
use std::sync::Arc;
use tidegate_protocol::Code;

/// Refuses a request whose `Host` is not this machine, or whose `Origin` is a page from elsewhere.
pub(super) async fn guard(State(node): State<Arc<Node>>, request: Request, next: Next) -> Response {
    match check(&request) {
        Ok(()) => next.run(request).await,
        Err((reason, message)) => {
            node.metrics.refused.with_label_values(&[reason]).inc();
            refusal(StatusCode::FORBIDDEN, Code::Forbidden, message)
        }
    }
}

/// `Err`: the metric's label, and what to say.
fn check(request: &Request) -> Result<(), (&'static str, &'static str)> {
    // Exactly one of each is looked at: with two, a proxy and this could choose differently.
    let only = |name: HeaderName| {
        let mut values = request.headers().get_all(name).iter();
        match (values.next(), values.next()) {
            (None, _) => Ok(None),
            (Some(value), None) => value.to_str().map(Some).map_err(|_| ()),
            _ => Err(()),
        }
    };
    let host_ok = matches!(only(HOST), Ok(Some(host)) if is_local_authority(host))
        && request
            .uri()
            .authority()
            .is_none_or(|authority| is_local_authority(authority.as_str()));
    if !host_ok {
        return Err((
            "host",
            "dev mode answers only to localhost, 127.0.0.0/8 and [::1]; check the Host header",
        ));
    }
    match only(ORIGIN) {
        Ok(None) => Ok(()),
        Ok(Some(origin)) if is_local_origin(origin) => Ok(()),
        _ => Err((
            "origin",
            "dev mode admits no page from another origin; serve it from localhost",
        )),
    }
}

fn is_local_origin(origin: &str) -> bool {
    // `null` (a sandboxed frame, a file) has no host and is anybody's.
    origin.parse::<Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri
                .authority()
                .is_some_and(|authority| is_local_authority(authority.as_str()))
    })
}

fn is_local_authority(authority: &str) -> bool {
    let Ok(uri) = authority.parse::<axum::http::uri::Authority>() else {
        return false;
    };
    if authority.contains('@') {
        return false;
    }
    let host = uri.host();
    let bare = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host);
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machines_names_are_local() {
        for local in [
            "localhost",
            "LocalHost:8080",
            "127.0.0.1",
            "127.8.8.8:1",
            "[::1]",
            "[::1]:8080",
        ] {
            assert!(is_local_authority(local), "{local}");
        }
        for foreign in [
            "evil.com",
            "localhost.evil.com",
            "127.0.0.1.evil.com",
            "10.0.0.1",
            "x@localhost",
            "",
            "0.0.0.0",
            "[::]",
        ] {
            assert!(!is_local_authority(foreign), "{foreign}");
        }
        for (origin, local) in [
            ("http://localhost:3000", true),
            ("https://127.0.0.1", true),
            ("null", false),
            ("http://evil.com", false),
            ("file://", false),
            ("http://localhost@evil.com", false),
        ] {
            assert_eq!(is_local_origin(origin), local, "{origin}");
        }
    }
}
