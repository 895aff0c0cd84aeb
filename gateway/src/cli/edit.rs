//! `set`, `unset`, `delete`, `inc`, `create`: each one mutation of one document.

use super::Failure;
use super::args::{Command, DocArgs, GatewayArgs};
use super::assign::Assignment;
use super::connection::Connection;
use std::io::Write;
use tidegate_client::{MutationBuilder, WriteError};
use tidegate_protocol::{Code, FieldPath, Value};

/// How often a write is tried when the gateway does not know the client id: once more, under the new one.
const TRIES: usize = 2;

/// Does one of them.
pub(crate) async fn run(gateway: &GatewayArgs, command: &Command, out: &mut impl Write) -> Result<(), Failure> {
    match command {
        Command::Set(args) => write(gateway, &args.at, out, |m| m.set(&args.at.doc, fields(&args.fields))).await,
        Command::Create(args) => write(gateway, &args.at, out, |m| m.create(&args.at.doc, fields(&args.fields))).await,
        Command::Unset(args) => write(gateway, &args.at, out, |m| m.unset(&args.at.doc, &args.paths)).await,
        Command::Inc(args) => write(gateway, &args.at, out, |m| m.inc(&args.at.doc, &args.path, args.by)).await,
        Command::Delete(at) => write(gateway, at, out, |m| m.delete(&at.doc)).await,
        _ => unreachable!("the other commands have modules of their own"),
    }
}

fn fields(assignments: &[Assignment]) -> Vec<(FieldPath, Value)> {
    assignments.iter().map(|a| (a.path.clone(), a.value.clone())).collect()
}

/// Writes, and prints the number of the commit.
async fn write(
    gateway: &GatewayArgs,
    DocArgs { space, doc }: &DocArgs,
    out: &mut impl Write,
    make: impl Fn(MutationBuilder) -> MutationBuilder,
) -> Result<(), Failure> {
    let connection = Connection::open(gateway).await?.into_writer(gateway, space).await?;
    let mut answer = None;
    for _ in 0..TRIES {
        let sent = connection.send(space, &make)?;
        answer = connection.answer(sent).await?;
        if answer.is_some() {
            break;
        }
    }
    connection.close().await;
    let answer = answer.unwrap_or(Err(WriteError::Uncertain));
    match answer {
        Ok(acked) => Ok(writeln!(out, "#{} {doc}", acked.position.seq)?),
        Err(e) if e.code() == Some(Code::PreconditionFailed) => {
            Err(format!("{doc} exists already; nothing was written").into())
        }
        Err(e) => Err(format!("{doc}: {e}").into()),
    }
}
