//! A command's connection to its gateway: made at once or not at all, and given up when it is lost for long.

use super::args::GatewayArgs;
use super::state::{self, StateFile};
use super::{Failure, variable};
use futures_util::FutureExt as _;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io::{self, Write as _};
use std::time::Duration;
use tidegate_client::{
    Acked, Client, ConnectionState, Failures, GatewayUrl, MutationBuilder, MutationId, Options, Pending, Space,
    WriteError,
};
use tidegate_protocol::tree::Leaves;
use tidegate_protocol::{Collection, DocPath, Limits, SpaceId};
use tokio::sync::watch;

/// How long a connection may be lost before a command gives up.
const LOST: Duration = Duration::from_secs(30);

/// A connection, with what the gateway said of it.
pub(crate) struct Connection {
    client: Client,
    url: GatewayUrl,
    user: String,
    /// The gateway's limits.
    pub(crate) limits: Limits,
    writes: bool,
    /// What an earlier command sent and had no answer to.
    earlier: BTreeSet<MutationId>,
    failures: Failures,
}

/// A mutation on its way.
pub(crate) struct Sent {
    pending: Pending,
    /// Unchanged for as long as the connection that it was sent on lasts.
    connection: watch::Receiver<ConnectionState>,
}

impl Connection {
    /// Connects to read.
    pub(crate) async fn open(args: &GatewayArgs) -> Result<Self, Failure> {
        Self::with(args, None).await
    }

    /// Connects anew, to write to `space` under the client id kept for it; a write is known by user, and only
    /// the gateway says who that is.
    pub(crate) async fn into_writer(self, args: &GatewayArgs, space: &SpaceId) -> Result<Self, Failure> {
        let (url, user) = (self.url.clone(), self.user.clone());
        self.close().await;
        let waiting = || tell(&format!("waiting for another tidegate that writes to {space}"));
        let kept = StateFile::open(&state::folder(variable)?, &url, &user, space, waiting)?;
        if !kept.unanswered().is_empty() {
            tell("sending again what an earlier command had no answer to");
        }
        Self::with(args, Some(kept)).await
    }

    async fn with(args: &GatewayArgs, kept: Option<StateFile>) -> Result<Self, Failure> {
        let url = GatewayUrl::parse(&args.url).map_err(|e| e.to_string())?;
        let mut options = Options::new(&args.url).map_err(|e| e.to_string())?;
        options = options.sdk(concat!("tidegate-cli/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &args.token {
            options = options.token(token);
        }
        let writes = kept.is_some();
        let mut earlier = BTreeSet::new();
        if let Some(kept) = kept {
            earlier = kept.unanswered();
            options = options.storage(kept);
        }
        let client = Client::connect(options);
        let failures = client.failures();
        let mut state = client.state();
        let welcome = loop {
            match &*state.borrow_and_update() {
                ConnectionState::Online(welcome) => break welcome.clone(),
                ConnectionState::Offline { why: Some(why), .. } => return Err(unreachable(&url, why)),
                ConnectionState::Stopped { code, message } => return Err(format!("{url}: {code}: {message}").into()),
                ConnectionState::Offline { why: None, .. } | ConnectionState::Connecting | ConnectionState::Closed => {}
            }
            if state.changed().await.is_err() {
                return Err(unreachable(&url, "the client ended"));
            }
        };
        Ok(Self {
            client,
            url,
            user: welcome.user,
            limits: welcome.limits,
            writes,
            earlier,
            failures,
        })
    }

    /// The space, narrowed to collections unless there are none.
    pub(crate) fn space(&self, name: &SpaceId, collections: &[Collection]) -> Result<Space, Failure> {
        let space = self.client.space(name.as_str()).map_err(|e| e.to_string())?;
        if !collections.is_empty() {
            space
                .only(collections.iter().map(Collection::as_str))
                .map_err(|e| e.to_string())?;
        }
        Ok(space)
    }

    /// A document as it is now; `None` if there is none.
    pub(crate) async fn get(&self, space: &SpaceId, doc: &DocPath) -> Result<Option<Leaves>, Failure> {
        let space = self.space(space, &[])?;
        let cut = self
            .unless_lost(space.get(std::slice::from_ref(doc)))
            .await?
            .map_err(|e| e.to_string())?;
        Ok(cut.docs.first().and_then(|doc| doc.leaves().cloned()))
    }

    /// The documents of a space, or of some of its collections, as of one commit.
    pub(crate) async fn state(
        &self,
        space: &SpaceId,
        collections: &[Collection],
    ) -> Result<BTreeMap<DocPath, Leaves>, Failure> {
        let space = self.space(space, collections)?;
        self.unless_lost(space.current()).await?.map_err(|e| e.to_string())?;
        let docs = space.docs().into_iter();
        Ok(docs
            .filter_map(|doc| Some((doc.path().clone(), doc.leaves()?.clone())))
            .collect())
    }

    /// Sends a mutation.
    pub(crate) fn send(
        &self,
        space: &SpaceId,
        make: impl FnOnce(MutationBuilder) -> MutationBuilder,
    ) -> Result<Sent, Failure> {
        let mutation = self.space(space, &[])?.mutation();
        let mut connection = self.client.state();
        connection.mark_unchanged();
        // What an earlier command had no answer to is in the local view: not a reason to ask for more.
        let pending = make(mutation).upsert().send();
        Ok(Sent { pending, connection })
    }

    /// What became of a mutation. `None`: it was not applied, and can be sent again as a new one: the gateway
    /// did not know the client id, and the client has another one now.
    pub(crate) async fn answer(&self, sent: Sent) -> Result<Option<Result<Acked, WriteError>>, Failure> {
        let answer = self.unless_lost(sent.pending).await?;
        let sent_once = matches!(sent.connection.has_changed(), Ok(false));
        Ok(Some(answer).filter(|answer| !(sent_once && matches!(answer, Err(WriteError::Uncertain)))))
    }

    /// Waits for `work` for as long as the connection is there or comes back soon.
    async fn unless_lost<T>(&self, work: impl Future<Output = T>) -> Result<T, Failure> {
        tokio::select! {
            done = work => Ok(done),
            why = self.lost() => {
                let mut text = format!("lost the connection to {}: {why}", self.url);
                if self.writes {
                    text.push_str("\nWhat was sent and not answered, the next command that writes to the space sends again.");
                }
                Err(text.into())
            }
        }
    }

    /// Comes back when the connection is lost for good, or has been for long.
    async fn lost(&self) -> String {
        let mut state = self.client.state();
        let mut since = None;
        let mut reason = "no answer".to_owned();
        loop {
            match &*state.borrow_and_update() {
                ConnectionState::Online(_) => since = None,
                ConnectionState::Stopped { code, message } => return format!("{code}: {message}"),
                ConnectionState::Closed => return "the client was closed".into(),
                ConnectionState::Connecting | ConnectionState::Offline { .. } => {
                    since.get_or_insert_with(tokio::time::Instant::now);
                }
            }
            if let ConnectionState::Offline { why: Some(why), .. } = &*state.borrow() {
                reason.clone_from(why);
            }
            let given_up = async {
                match since {
                    Some(since) => tokio::time::sleep_until(since + LOST).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = given_up => return reason,
                changed = state.changed() => if changed.is_err() { return reason },
            }
        }
    }

    /// Every change of the connection's state.
    pub(crate) fn changes(&self) -> watch::Receiver<ConnectionState> {
        self.client.state()
    }

    /// Closes it in good order, and says what became of earlier commands' writes, if not what they wanted.
    pub(crate) async fn close(mut self) {
        self.client.close().await;
        while let Some(failure) = self.failures.next().now_or_never().flatten() {
            match failure {
                tidegate_client::Failure::Write { id, ops, error, .. } if self.earlier.contains(&id) => {
                    let docs = ops
                        .iter()
                        .map(|op| op.doc.as_str())
                        .take(3)
                        .collect::<Vec<_>>()
                        .join(", ");
                    tell(&format!("an earlier command's write to {docs}: {error}"));
                }
                tidegate_client::Failure::Write { .. } => {}
                tidegate_client::Failure::Lost { space, loss } => {
                    let count = loss.through.get() - loss.from.get() + 1;
                    tell(&format!(
                        "the gateway has lost the last {count} writes of this client to {space}"
                    ));
                }
            }
        }
    }
}

fn unreachable(url: &GatewayUrl, why: &str) -> Failure {
    let why = why.strip_prefix(&format!("{url}: ")).unwrap_or(why);
    Failure::Said(format!(
        "cannot reach {url}: {why}\n\
         Is the gateway running? `tidegate serve --dev` starts one; --url or TIDEGATE_URL says where it is."
    ))
}

/// Says something beside the output.
pub(crate) fn tell(text: &str) {
    let _ = writeln!(io::stderr(), "tidegate: {text}");
}
