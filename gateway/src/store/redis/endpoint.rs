//! Where Redis is, and by which certificates the two know one another.

use redis::io::tcp::TcpSettings;
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, ProtocolVersion, TlsCertificates,
};
use std::path::{Path, PathBuf};

/// Files for TLS (`rediss://`), in PEM.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct RedisTls {
    /// The authorities that may have signed the server's certificate, in place of the system's.
    pub ca: Option<PathBuf>,
    /// The certificate by which the server knows this node, and those that lead from it to an authority's.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
}

/// A server's address, and how to connect to it.
pub(crate) struct Endpoint {
    info: ConnectionInfo,
    tls: RedisTls,
}

impl Endpoint {
    /// The server at `redis://[user:password@]host[:port][/db]`, or at `rediss://…` over TLS.
    ///
    /// # Errors
    /// Where the address, or a file, cannot be read, or the two do not go together.
    pub(crate) fn new(url: &str, tls: &RedisTls) -> Result<Self, String> {
        let info = url.into_connection_info().map_err(|error| error.to_string())?;
        // Small requests must not wait for the acknowledgement of the ones before.
        let info = info.set_tcp_settings(TcpSettings::default().set_nodelay(true));
        // Answers are read in the form of RESP2, whatever the address asks for.
        let settings = info.redis_settings().clone().set_protocol(ProtocolVersion::RESP2);
        let info = info.set_redis_settings(settings);
        let endpoint = Self { info, tls: tls.clone() };
        match endpoint.is_secure() {
            // What is wrong with them is said at the start.
            true => drop(endpoint.open()?),
            false if *tls != RedisTls::default() => {
                return Err(
                    "certificates are for TLS, and the address begins with redis://; write rediss://".to_owned(),
                );
            }
            false => {}
        }
        Ok(endpoint)
    }

    /// The database's number.
    pub(crate) fn db(&self) -> i64 {
        self.info.redis_settings().db()
    }

    fn is_secure(&self) -> bool {
        matches!(self.info.addr(), ConnectionAddr::TcpTls { .. })
    }

    /// What connects. Certificates are read anew each time, so that those that are renewed are used.
    pub(crate) async fn client(&self) -> Result<Client, String> {
        if !self.is_secure() {
            return self.open();
        }
        let endpoint = Self {
            info: self.info.clone(),
            tls: self.tls.clone(),
        };
        let opening = tokio::task::spawn_blocking(move || endpoint.open());
        opening.await.map_err(|error| error.to_string())?
    }

    fn open(&self) -> Result<Client, String> {
        let client = if self.is_secure() {
            // For the whole process; where there is one already, it is the same.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
            let client_tls = match (&self.tls.cert, &self.tls.key) {
                (Some(cert), Some(key)) => Some(ClientTlsConfig {
                    client_cert: read(cert)?,
                    client_key: read(key)?,
                }),
                (None, None) => None,
                _ => return Err("a certificate and its key go together; name both, or none".to_owned()),
            };
            let root_cert = self.tls.ca.as_deref().map(read).transpose()?;
            Client::build_with_tls(self.info.clone(), TlsCertificates { client_tls, root_cert })
        } else {
            Client::open(self.info.clone())
        };
        client.map_err(|error| error.to_string())
    }
}

fn read(path: &Path) -> Result<Vec<u8>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
    match pem.starts_with(b"-----BEGIN ") || pem.windows(12).any(|part| part == b"\n-----BEGIN ") {
        true => Ok(pem),
        false => Err(format!(
            "{}: it holds nothing in PEM, which begins with -----BEGIN",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_go_together_is_said_at_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| Some(dir.path().join(name));
        std::fs::write(dir.path().join("text"), "hello").unwrap();
        let told = |url: &str, tls: RedisTls| Endpoint::new(url, &tls).err().unwrap_or_default();
        let (ca, cert) = (path("text"), path("none"));
        let none = RedisTls::default();
        assert_eq!(told("redis://localhost", none.clone()), "");
        assert_eq!(told("rediss://localhost", none.clone()), "");
        for (url, tls, wants) in [
            (
                "redis://localhost",
                RedisTls {
                    ca: ca.clone(),
                    ..none.clone()
                },
                "write rediss://",
            ),
            (
                "rediss://localhost",
                RedisTls { ca, ..none.clone() },
                "text: it holds nothing in PEM",
            ),
            (
                "rediss://localhost",
                RedisTls {
                    ca: cert.clone(),
                    ..none.clone()
                },
                "none: No such file",
            ),
            ("rediss://localhost", RedisTls { cert, ..none }, "go together"),
        ] {
            let told = told(url, tls);
            assert!(told.contains(wants), "{told}");
        }
    }
}
