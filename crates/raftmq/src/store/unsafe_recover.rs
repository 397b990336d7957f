//! `raftmq store unsafe-recover`: what a survivor would go on with, and, told to, that it goes on alone.

use std::path::{Path, PathBuf};

use clap::Args;
use env::Env;
use raft_store::offline::Offline;
use raft_store::position::{LogId, NodeId};
use raft_store::unsafe_recover::{RecoverError, Remaining, Survivor, go_on_alone, look};
use serde_json::json;

use super::{Scratch, follow, progress_bar};
use crate::admin::report::{Column, Output, Report, Table, date};

/// Flags of `raftmq store unsafe-recover`.
#[derive(Args)]
pub struct UnsafeRecover {
    /// The data directory of the survivor: `data_dir` of a [[group]].
    pub dir: PathBuf,
    /// Do it: what the others had acknowledged and this log does not hold is given up for ever.
    #[arg(long)]
    accept_loss: bool,
    /// Where to copy the keyed store to; removed afterwards [default: a directory of its own among the machine's
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    pub scratch: Option<PathBuf>,
    /// How to print.
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Output,
}

/// Looks, and goes on alone if that was asked for. Gives what to print, and whether it was done.
pub async fn run(env: &Env, flags: &UnsafeRecover, opens_keyed: bool) -> Result<(Report, bool), RecoverError> {
    let offline = Offline::open(env, &flags.dir).await?;
    let scratch = Scratch::make(env, flags.scratch.as_deref()).await?;
    let bar = progress_bar(flags.output);
    let looked = look(&offline, opens_keyed.then_some(&*scratch.dir), &follow(&bar)).await;
    bar.finish_and_clear();
    scratch.remove().await;
    let survivor = looked?;
    let done = match flags.accept_loss {
        true => Some(go_on_alone(offline, &survivor).await?),
        false => None,
    };
    Ok((report(&flags.dir, &survivor, done), done.is_some()))
}

/// Whether the directory is damaged; else what was typed cannot be done.
pub fn is_damage(error: &RecoverError) -> bool {
    match error {
        RecoverError::Offline(error) => super::is_damage(error),
        RecoverError::Identity(_) | RecoverError::Log(_) | RecoverError::NeedsPeers(_) => true,
        RecoverError::Io(_)
        | RecoverError::NeverFounded
        | RecoverError::NotAVoter { .. }
        | RecoverError::Alone(_)
        | RecoverError::Installing => false,
    }
}

const DROPPED: &[Column] =
    &[Column("#Node", "node"), Column("#Peer Address", "peerAddress"), Column("#Client Address", "clientAddress")];

/// What cannot be said too loudly.
const LOST: &str = "\
WHATEVER WAS ACKNOWLEDGED AND IS NOT IN THIS LOG IS LOST.
NEVER START ANOTHER MEMBER AGAIN WITH ITS OLD DIRECTORY, or two groups serve under one name.
";

const BEFORE: &str = "\
Nothing was changed. Look at every other survivor first, with this, `raftmq store verify` and `raftmq store inspect`. Go on
with the one whose last entry has the highest term, and of those the highest index: stop the others for good, and run this
there with --accept-loss.
";

const BEHIND: &str = "\
Start this node: it elects itself. Bring each of the others back as a new node: an empty data_dir, `join = true` in its
[[group]], started, then `raftmq admin addNode`.
";

fn name(node: NodeId) -> String {
    format!("{node:016x}")
}

fn report(dir: &Path, survivor: &Survivor, done: Option<LogId>) -> Report {
    let (identity, last) = (&survivor.identity, survivor.last);
    let uncertain = survivor.uncertain();
    let time = survivor.time.map(|time| date(time.0));
    let vote = survivor.vote.map_or("none".to_owned(), |vote| {
        let whom = vote.node_id.map_or("nobody".to_owned(), name);
        format!("term {} for {whom}", vote.term)
    });
    let applied = survivor.applied.map(|applied| applied.to_string());
    let mut dropped = Table::new(DROPPED);
    for peer in &survivor.dropped {
        dropped.push([name(peer.id).into(), peer.peer_address.clone().into(), peer.client_address.clone().into()]);
    }

    let mut text = format!(
        "node {} of group {} of cluster {}: {}\n\n",
        name(identity.node_id),
        identity.group,
        identity.cluster,
        identity.node
    );
    let time_text = time.as_ref().and_then(|time| time.as_str()).unwrap_or("unknown");
    text += &format!("vote        {vote}\n");
    text += &format!("last entry  term {}, index {}, group time {time_text}\n", last.term, last.index);
    text += &format!("log end     physical offset {}\n", survivor.end);
    text += &format!(
        "applied     {} durably; not known here to be committed, and committed by going on: {uncertain} entries\n",
        applied.as_deref().unwrap_or("nothing")
    );
    match survivor.remaining {
        Remaining::Everything { .. } => text += &format!("\nmembers that are dropped:\n{}\n", dropped.to_text()),
        Remaining::Probation => {
            text += "\nIt is the only voter already; its probation, which goes on, is all that is left.\n\n"
        }
    }
    match done {
        None => text += &format!("{LOST}\n{BEFORE}"),
        Some(alone) => text += &format!("{LOST}\nDone: from entry {alone} on this node alone is the group.\n{BEHIND}"),
    }
    let value = json!({
        "directory": dir.display().to_string(),
        "cluster": identity.cluster,
        "group": identity.group,
        "node": name(identity.node_id),
        "vote": survivor.vote.map(|vote| json!({ "term": vote.term, "node": vote.node_id.map(name) })),
        "lastEntry": { "term": last.term, "index": last.index },
        "groupTime": time,
        "logEnd": survivor.end.0,
        "appliedUpTo": applied,
        "uncertainEntries": uncertain,
        "dropped": dropped.to_json(),
        "done": done.is_some(),
    });
    Report::new(text, value)
}

#[cfg(test)]
mod tests {
    use client::Message;
    use embedded::Cluster;
    use serde_json::Value;

    use super::*;

    /// One of three that were stopped: shown, told to go on alone, and then there is nothing left to do.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_survivor_is_shown_first_and_goes_on_alone_once() {
        let (env, dir) = (Env::real(), tempfile::tempdir().expect("a directory"));
        let cluster = Cluster::builder().nodes(3).data_dir(dir.path()).start().await.expect("starts");
        let client = cluster.client().build().expect("a client");
        let producer = client.producer("producer").start().expect("a producer");
        producer.send(Message::new("kept", "body")).await.expect("sent");
        client.shutdown().await;
        cluster.shutdown().await;

        let flags = |accept_loss: bool, output: Output| UnsafeRecover {
            dir: dir.path().join("broker-a-2"),
            accept_loss,
            scratch: Some(dir.path().to_owned()),
            output,
        };
        let (shown, done) = run(&env, &flags(false, Output::Table), true).await.expect("shown");
        let text = shown.render(Output::Table);
        assert!(!done && text.contains("NEVER START") && text.contains("--accept-loss"), "{text}");
        let value: Value = serde_json::from_str(&shown.render(Output::Json)).expect("JSON");
        assert_eq!((&value["done"], value["dropped"].as_array().map(Vec::len)), (&json!(false), Some(2)), "{value}");
        println!("{text}");

        let (shown, done) = run(&env, &flags(true, Output::Table), true).await.expect("done");
        let text = shown.render(Output::Table);
        assert!(done && text.contains("addNode"), "{text}");
        println!("{text}");
        let again = run(&env, &flags(true, Output::Table), true).await;
        let Err(error @ RecoverError::Alone(_)) = again else { panic!("{again:?}") };
        assert!(!is_damage(&error));
    }
}
