//! Redis over TLS.

use crate::cli::{said, tidegate};
use crate::clients::{Pen, Reader};
use crate::fleet::Node;
use crate::redis_server::Server;
use crate::support::Judge;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Authorities and what they have signed.
struct Certificates(tempfile::TempDir);

impl Certificates {
    /// Two authorities; one knows the server as 127.0.0.1, and a node.
    fn make() -> Self {
        let certificates = Self(tempfile::tempdir().unwrap());
        for authority in ["ours", "others"] {
            certificates.openssl(&format!(
                "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {authority}.key -out {authority}.pem \
                 -days 2 -subj /CN={authority}"
            ));
        }
        std::fs::write(certificates.0.path().join("names"), "subjectAltName=IP:127.0.0.1\n").unwrap();
        std::fs::write(certificates.0.path().join("use"), "extendedKeyUsage=clientAuth\n").unwrap();
        for (name, extensions) in [("server", "names"), ("node", "use")] {
            certificates.openssl(&format!(
                "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}"
            ));
            certificates.openssl(&format!(
                "x509 -req -in {name}.csr -CA ours.pem -CAkey ours.key -CAcreateserial -days 2 -out {name}.pem \
                 -extfile {extensions}"
            ));
        }
        certificates
    }

    fn openssl(&self, args: &str) {
        let mut command = Command::new("openssl");
        let output = command
            .args(args.split_whitespace())
            .current_dir(self.0.path())
            .output();
        let output = output.expect("openssl is installed: make needs");
        assert!(output.status.success(), "openssl {args}: {}", said(&output));
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// A server that knows itself by these, and asks for those of others or does not.
    fn server(&self, clients: &str) -> Server {
        let path = |name: &str| self.path(name);
        Server::start_secure(&[
            "--tls-cert-file",
            &path("server.pem"),
            "--tls-key-file",
            &path("server.key"),
            "--tls-ca-cert-file",
            &path("ours.pem"),
            "--tls-auth-clients",
            clients,
        ])
    }

    /// Settings that name them.
    fn settings(&self, ca: &str, node: Option<&str>) -> Vec<String> {
        let mut settings = vec![format!("redis.ca={}", self.path(ca))];
        if let Some(node) = node {
            settings.push(format!("redis.cert={}", self.path(&format!("{node}.pem"))));
            settings.push(format!("redis.key={}", self.path(&format!("{node}.key"))));
        }
        settings
    }
}

fn node(url: &str, settings: &[String]) -> Node {
    let mut settings: Vec<_> = settings.iter().map(String::as_str).collect();
    // Who is refused serves all the same, and says that it is not ready.
    settings.push("redis.patience=4s");
    Node::start(url, &settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tls_only_a_server_that_the_authority_knows_under_that_name_is_used() {
    let certificates = Certificates::make();
    let server = certificates.server("no");
    let ours = certificates.settings("ours.pem", None);
    let (one, two) = (
        node(&server.secure_url("127.0.0.1"), &ours),
        node(&server.secure_url("127.0.0.1"), &ours),
    );
    // Nobody between the two may pass for the server.
    let strangers = [
        (
            server.secure_url("127.0.0.1"),
            certificates.settings("others.pem", None),
            "UnknownIssuer",
        ),
        (server.secure_url("127.0.0.1"), vec![], "is not connected"),
        (server.secure_url("localhost"), ours.clone(), "not valid for name"),
    ];
    let strangers = strangers.map(|(url, settings, why)| (node(&url, &settings), why));
    one.ready().await;
    two.ready().await;
    let judge = Judge::new();
    let (mut pen, mut live) = (Pen::new(&judge, 2_000, 0), Reader::new(&judge, 1, 0));
    live.follow(two.addr).await;
    pen.write(one.addr, 5).await;
    live.reach_seq(5).await;
    judge.verdict();
    // All that the two have to say is said over TLS.
    let plain = server.command(&["CLIENT", "LIST"]);
    assert!(
        format!("{plain:?}").contains("EVALSHA") || format!("{plain:?}").contains("evalsha"),
        "{plain:?}"
    );
    for (stranger, why) in &strangers {
        assert!(!stranger.is_ready().await, "{why}");
        crate::fleet::until("the log says why", async || stranger.log().contains(why)).await;
        assert_eq!(stranger.metric("tidegate_bus_connected").await, Some(0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_asks_for_a_certificate_is_shown_it_by_gateways_and_commands() {
    let certificates = Certificates::make();
    let server = certificates.server("yes");
    let url = server.secure_url("127.0.0.1");
    let known = node(&url, &certificates.settings("ours.pem", Some("node")));
    let unknown = node(&url, &certificates.settings("ours.pem", None));
    let foreign = node(&url, &certificates.settings("ours.pem", Some("others")));
    known.ready().await;
    let judge = Judge::new();
    Pen::new(&judge, 2_000, 0).write(known.addr, 1).await;
    assert!(!unknown.is_ready().await);
    assert!(!foreign.is_ready().await);
    let doctor = |more: &[&str]| {
        let mut args = vec!["doctor", "--redis", &url];
        args.extend(more);
        let mut command = tidegate(&args);
        let output = command.output().unwrap();
        (output.status.success(), said(&output))
    };
    let (ca, cert, key) = (
        certificates.path("ours.pem"),
        certificates.path("node.pem"),
        certificates.path("node.key"),
    );
    let (passes, said) = doctor(&["--redis-ca", &ca, "--redis-cert", &cert, "--redis-key", &key]);
    assert!(passes, "{said}");
    let (passes, said) = doctor(&["--redis-ca", &ca]);
    assert!(!passes, "{said}");
    let (passes, said) = doctor(&["--redis-ca", &ca, "--redis-cert", &cert]);
    assert!(!passes && said.contains("--redis-key"), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_that_are_renewed_are_used_by_the_next_connection() {
    let certificates = Certificates::make();
    let server = certificates.server("no");
    let ca = PathBuf::from(certificates.path("trusted.pem"));
    let copy = |from: &str| std::fs::copy(Path::new(&certificates.path(from)), &ca).unwrap();
    copy("others.pem");
    let setting = format!("redis.ca={}", ca.display());
    let node = node(&server.secure_url("127.0.0.1"), &[setting]);
    crate::fleet::until("it is refused", async || node.log().contains("UnknownIssuer")).await;
    assert!(!node.is_ready().await);
    copy("ours.pem");
    node.ready().await;
}
