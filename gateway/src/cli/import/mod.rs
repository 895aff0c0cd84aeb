//! `import`: reads and checks the whole file, looks at what the gateway has, writes what differs.

mod batch;
mod ids;
mod read;

use super::Failure;
use super::args::{GatewayArgs, ImportArgs};
use super::connection::Connection;
use batch::{Batch, Wanted};
use ids::{Counts, Ids};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use read::Records;
use std::collections::VecDeque;
use std::fs;
use std::io::{self, Read as _, Write};
use std::path::Path;
use tidegate_client::WriteError;
use tidegate_protocol::Limits;

/// Mutations on their way at a time: the next is prepared and sent while the gateway works on one. Each is
/// kept on disk until it is answered, so that more would cost more than they gain.
const UNDER_WAY: usize = 4;

/// What an import came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Summary {
    records: usize,
    written: usize,
    unchanged: usize,
}

/// Loads a file of records into a collection.
pub(crate) async fn run(gateway: &GatewayArgs, args: &ImportArgs, out: &mut impl Write) -> Result<(), Failure> {
    let file = args.file.display();
    let bytes = contents(&args.file).map_err(|e| format!("{file}: {e}"))?;
    let in_file = |e: String| format!("{file}: {e}\nNothing was written.");
    let connection = Connection::open(gateway).await?;
    let limits = connection.limits.clone();
    // Nothing is written unless all of it can be.
    let count = documents(&bytes, args, &limits, |_, _| Ok(()))
        .map_err(in_file)?
        .0
        .records;
    let present = connection
        .state(&args.space, std::slice::from_ref(&args.collection))
        .await?;

    let bar = progress(count);
    let mut batches = VecDeque::new();
    let mut batch = Batch::default();
    let (mut summary, counts) = documents(&bytes, args, &limits, |wanted, summary| {
        if wanted.is(present.get(&wanted.doc)) {
            summary.unchanged += 1;
        } else {
            batches.extend(batch.push(wanted));
        }
        Ok(())
    })
    .map_err(in_file)?;
    batches.extend((!batch.docs.is_empty()).then_some(batch));
    drop(present);
    bar.inc(as_u64(summary.unchanged));
    if batches.is_empty() {
        connection.close().await;
    } else {
        let connection = connection.into_writer(gateway, &args.space).await?;
        summary.written = write(&connection, args, batches, &bar).await?;
        connection.close().await;
    }
    bar.finish_and_clear();
    tell(args, summary, counts, out)?;
    Ok(())
}

fn contents(file: &Path) -> io::Result<Vec<u8>> {
    if file.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().lock().read_to_end(&mut bytes)?;
        return Ok(bytes);
    }
    fs::read(file)
}

/// Hands each record's document to `each`.
fn documents(
    bytes: &[u8],
    args: &ImportArgs,
    limits: &Limits,
    mut each: impl FnMut(Wanted, &mut Summary) -> Result<(), String>,
) -> Result<(Summary, Counts), String> {
    let mut ids = Ids::new(args.collection.clone(), args.id_from.clone());
    let mut summary = Summary::default();
    for record in Records::open(bytes)? {
        let wanted = Wanted::new(&record?, &mut ids, limits)?;
        summary.records += 1;
        each(wanted, &mut summary)?;
    }
    Ok((summary, ids.counts()))
}

/// Sends the mutations, a few at a time. Returns how many documents were written.
async fn write(
    connection: &Connection,
    args: &ImportArgs,
    batches: VecDeque<Batch>,
    bar: &ProgressBar,
) -> Result<usize, Failure> {
    let start = |batch: &Batch| {
        let docs = batch.docs.iter().cloned();
        connection.send(&args.space, |mutation| {
            docs.fold(mutation, |m, (doc, leaves)| m.replace(doc, leaves))
        })
    };
    let mut under_way = VecDeque::new();
    let mut written = 0;
    let mut batches = batches.into_iter();
    loop {
        while under_way.len() < UNDER_WAY
            && let Some(batch) = batches.next()
        {
            under_way.push_back((start(&batch)?, batch, true));
        }
        let Some((sent, batch, may_try_again)) = under_way.pop_front() else {
            return Ok(written);
        };
        let error = match connection.answer(sent).await? {
            Some(Ok(_)) => {
                written += batch.places.len();
                bar.inc(as_u64(batch.places.len()));
                continue;
            }
            // No two batches hold the same document, so that their order does not matter.
            None if may_try_again => {
                under_way.push_back((start(&batch)?, batch, false));
                continue;
            }
            None => WriteError::Uncertain,
            Some(Err(error)) => error,
        };
        return Err(format!(
            "{}: {}: {error}\n{written} documents were written before it; run the import again to write the rest.",
            args.file.display(),
            place(&batch, &error),
        )
        .into());
    }
}

/// The record that an error is about, as far as the gateway says.
fn place(batch: &Batch, error: &WriteError) -> String {
    let op = error
        .refusal()
        .and_then(|refusal| refusal.at.as_ref())
        .and_then(|at| usize::try_from(at.op).ok());
    match (op.and_then(|op| batch.places.get(op)), batch.places.as_slice()) {
        (Some(place), _) | (None, [place]) => place.to_string(),
        (None, [first, .., last]) => format!("{first} to {last}"),
        (None, []) => String::new(),
    }
}

/// A bar on standard error, if that is a terminal.
fn progress(records: usize) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(as_u64(records)), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} records, {eta} left");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

fn as_u64(n: usize) -> u64 {
    u64::try_from(n).unwrap_or(u64::MAX)
}

fn tell(args: &ImportArgs, summary: Summary, counts: Counts, out: &mut impl Write) -> io::Result<()> {
    let Summary {
        records,
        written,
        unchanged,
    } = summary;
    let Counts {
        numbers,
        encoded,
        repeated,
        missing,
    } = counts;
    writeln!(
        out,
        "{}: {records} records, {written} written, {unchanged} unchanged",
        args.collection
    )?;
    writeln!(
        out,
        "ids: {numbers} from numbers, {encoded} percent-encoded, {repeated} repeats (~2, ~3 …), \
         {missing} null or missing (row-N)"
    )
}
