//! One parser of gateway URLs, for the client, the command line and the tests.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

/// The path of the gateway's WebSocket.
const PATH: &str = "/v1/ws";

/// Where a gateway is: `ws://127.0.0.1:8080`, `http://[::1]:8080/v1/ws`, `gateway.example`.
///
/// `ws` and `http` mean the same, as do `wss` and `https`; without a scheme it is `ws`. The path may be
/// absent, `/` or `/v1/ws`. Shown, it is the WebSocket's own URL in one canonical form.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct GatewayUrl {
    secure: bool,
    host: Host,
    port: u16,
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
enum Host {
    Name(String),
    V6(Ipv6Addr),
}

/// A text that is not the URL of a gateway, and why.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{text:?} is not a gateway URL: {why}; one looks like ws://127.0.0.1:8080")]
pub struct UrlError {
    text: String,
    why: &'static str,
}

impl GatewayUrl {
    /// Parses a URL.
    pub fn parse(text: &str) -> Result<Self, UrlError> {
        Self::parts(text.trim()).map_err(|why| UrlError {
            text: text.to_owned(),
            why,
        })
    }

    fn parts(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() {
            return Err("it is empty");
        }
        let (secure, rest) = match text.split_once("://") {
            None => (false, text),
            Some((scheme, rest)) => match scheme.to_ascii_lowercase().as_str() {
                "ws" | "http" => (false, rest),
                "wss" | "https" => (true, rest),
                _ => return Err("its scheme is none of ws, wss, http and https"),
            },
        };
        if rest.contains(['?', '#']) {
            return Err("it has a query or a fragment");
        }
        let (authority, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        if !matches!(path.trim_end_matches('/'), "" | PATH) {
            return Err("its path is neither / nor /v1/ws");
        }
        if authority.contains('@') {
            return Err("it holds a user or password; a token is given apart from the URL");
        }
        let (host, port) = if let Some(rest) = authority.strip_prefix('[') {
            let (address, port) = rest.split_once(']').ok_or("its [ has no ]")?;
            let address = address.parse().map_err(|_| "what stands in [ ] is no IPv6 address")?;
            let port = match port {
                "" => None,
                port => Some(
                    port.strip_prefix(':')
                        .ok_or("something other than a port follows its ]")?,
                ),
            };
            (Host::V6(address), port)
        } else {
            let (name, port) = authority
                .split_once(':')
                .map_or((authority, None), |(name, port)| (name, Some(port)));
            if port.is_some_and(|port| port.contains(':')) {
                return Err("an IPv6 address stands in [ ]");
            }
            if name.is_empty() {
                return Err("it has no host");
            }
            if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b)) {
                return Err("its host holds a character that host names do not have");
            }
            (Host::Name(name.to_ascii_lowercase()), port)
        };
        let port = match port {
            None => {
                if secure {
                    443
                } else {
                    80
                }
            }
            Some(port) => match port.parse() {
                Ok(port) if port != 0 && !port_has_sign(authority) => port,
                _ => return Err("its port is not a number from 1 to 65535"),
            },
        };
        Ok(Self { secure, host, port })
    }

    /// Whether it asks for TLS.
    pub fn is_secure(&self) -> bool {
        self.secure
    }

    /// The host: a name, or an address without brackets.
    pub fn host(&self) -> String {
        match &self.host {
            Host::Name(name) => name.clone(),
            Host::V6(address) => address.to_string(),
        }
    }

    /// The port, the scheme's own if the URL names none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The URL of another path of the same gateway over plain HTTP or HTTPS: `http://127.0.0.1:8080/healthz`.
    pub fn http(&self, path: &str) -> String {
        format!(
            "{}://{}{path}",
            if self.secure { "https" } else { "http" },
            self.authority()
        )
    }

    /// Host and port as they stand in a URL and in the `Host` header; the scheme's own port is left out.
    pub fn authority(&self) -> String {
        let host = match &self.host {
            Host::Name(name) => name.clone(),
            Host::V6(address) => format!("[{address}]"),
        };
        match (self.secure, self.port) {
            (true, 443) | (false, 80) => host,
            (_, port) => format!("{host}:{port}"),
        }
    }
}

/// `u16::from_str` takes `+80`.
fn port_has_sign(authority: &str) -> bool {
    authority.contains(":+")
}

impl fmt::Display for GatewayUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}://{}{PATH}",
            if self.secure { "wss" } else { "ws" },
            self.authority()
        )
    }
}

impl FromStr for GatewayUrl {
    type Err = UrlError;
    fn from_str(text: &str) -> Result<Self, UrlError> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_write_a_gateway_leads_to_one_form() {
        for (text, canonical) in [
            ("ws://127.0.0.1:8080", "ws://127.0.0.1:8080/v1/ws"),
            ("http://127.0.0.1:8080/", "ws://127.0.0.1:8080/v1/ws"),
            ("127.0.0.1:8080/v1/ws", "ws://127.0.0.1:8080/v1/ws"),
            ("HTTP://Gateway.Example:80/v1/ws/", "ws://gateway.example/v1/ws"),
            ("localhost", "ws://localhost/v1/ws"),
            ("https://gateway.example", "wss://gateway.example/v1/ws"),
            ("wss://gateway.example:8443", "wss://gateway.example:8443/v1/ws"),
            ("ws://[::1]:8080", "ws://[::1]:8080/v1/ws"),
            ("https://[2001:DB8::1]/v1/ws", "wss://[2001:db8::1]/v1/ws"),
        ] {
            let url = GatewayUrl::parse(text).expect(text);
            assert_eq!(url.to_string(), canonical, "{text}");
            assert_eq!(GatewayUrl::parse(canonical), Ok(url));
        }
        assert_eq!(
            GatewayUrl::parse("wss://g.example").expect("valid").http("/healthz"),
            "https://g.example/healthz"
        );
    }

    #[test]
    fn what_is_no_gateway_url_is_refused_with_its_reason() {
        for (text, why) in [
            ("", "empty"),
            ("ftp://x", "scheme"),
            ("ws://", "no host"),
            ("ws://:8080", "no host"),
            ("ws://h:0", "port"),
            ("ws://h:+80", "port"),
            ("ws://h:65536", "port"),
            ("ws://h:", "port"),
            ("ws://h/v2", "path"),
            ("ws://h/?x=1", "query"),
            ("ws://u:p@h", "password"),
            ("ws://::1:8080", "[ ]"),
            ("ws://[::1", "no ]"),
            ("ws://[zz]", "IPv6"),
            ("ws://[::1]8080", "follows its ]"),
            ("ws://ex ample", "character"),
        ] {
            let error = GatewayUrl::parse(text).expect_err(text).to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
