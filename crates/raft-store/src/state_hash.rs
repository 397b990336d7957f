//! State hashes: whether all replicas make the same of the same log. Pure, but for the two tasks at the end.
//!
//! The image of a `Checkpoint` is byte-identical on every replica, so its hash is too. Members tell theirs to the leader,
//! which proposes all of them as one `StateHash`. Apply finds what a majority of all voters has, the same everywhere, and
//! keeps it with the checkpoint. What a replica concludes about itself is its own: one that has something else than the
//! majority has gone wrong somewhere between the last agreed checkpoint and this one. It stops, and its next start makes
//! the derived state anew from where the log begins, if that was agreed on. One that goes wrong again at the same place
//! is to be replaced. Where no hash has a majority nobody knows who is right: that is an alarm, and nothing more.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use env::Env;
use openraft::Raft;
use openraft::async_runtime::WatchReceiver;
use tokio::sync::{mpsc, oneshot, watch};

use crate::codec::{self, Decode, Encode};
use crate::consume_queue::{Rebuild, RebuildFrom, aside, note_rebuild, read_file, replace_file};
use crate::entry::{CoreCommand, Operation};
use crate::fold::{Reader, Tables};
use crate::log::Log;
use crate::position::{LogId, NodeId};
use crate::proposer::{Admitted, Serving, Submission, Wish, submission_bytes};
use crate::raft::machine::Machine;
use crate::raft::peer::client::Links;
use crate::raft::types::Types;

/// Hashes that a member tells the leader, of its newest images.
pub const TOLD_MAX: usize = 4;

/// Where images were cut, and their hashes.
pub type ImageHashes = Vec<(LogId, u64)>;

/// What a `StateHash` found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Verdict {
    /// A majority of all voters has this hash.
    Agreed(u64),
    /// No hash can have a majority.
    Split,
}

/// What hashes of a part of the `voters` say; `None` while those that are missing may decide it.
pub fn verdict(hashes: &[(NodeId, u64)], voters: usize) -> Option<Verdict> {
    let mut counts: BTreeMap<u64, usize> = BTreeMap::new();
    for (_, hash) in hashes {
        *counts.entry(*hash).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(_, count)| *count);
    let (hash, count) = most.unwrap_or_default();
    let missing = voters.saturating_sub(hashes.len());
    if count > voters / 2 {
        Some(Verdict::Agreed(hash))
    } else if count + missing <= voters / 2 {
        Some(Verdict::Split)
    } else {
        None
    }
}

/// What this replica has, and what the group has found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateHashes {
    /// Of the images that are here.
    pub images: BTreeMap<LogId, u64>,
    /// Of the checkpoints there are.
    pub verdicts: BTreeMap<LogId, Option<Verdict>>,
}

impl StateHashes {
    /// The newest checkpoint that a majority agreed on.
    pub fn agreed(&self) -> Option<LogId> {
        self.verdicts.iter().rev().find(|(_, verdict)| matches!(verdict, Some(Verdict::Agreed(_)))).map(|(id, _)| *id)
    }

    /// The newest checkpoint with a verdict, if that is that there is no majority.
    pub fn split(&self) -> Option<LogId> {
        let (id, verdict) = self.verdicts.iter().rev().find(|(_, verdict)| verdict.is_some())?;
        (*verdict == Some(Verdict::Split)).then_some(*id)
    }

    /// What is told to the leader.
    pub fn told(&self) -> ImageHashes {
        let skipped = self.images.len().saturating_sub(TOLD_MAX);
        self.images.iter().skip(skipped).map(|(id, hash)| (*id, *hash)).collect()
    }

    /// Whether this replica's image at `id` is what the group agreed on; `None` if there is nothing to compare.
    fn is_agreed(&self, id: LogId) -> Option<bool> {
        match (self.images.get(&id)?, self.verdicts.get(&id)?.as_ref()?) {
            (own, Verdict::Agreed(hash)) => Some(own == hash),
            (_, Verdict::Split) => None,
        }
    }

    /// The first checkpoint at which this replica has something else than the majority, and what that has.
    fn diverged(&self) -> Option<(LogId, u64)> {
        self.verdicts.iter().find_map(|(id, verdict)| match verdict {
            Some(Verdict::Agreed(hash)) if self.is_agreed(*id) == Some(false) => Some((*id, *hash)),
            _ => None,
        })
    }

    /// Where a rebuild begins: with all of the log, or at the checkpoint that the log is trimmed to, if that was agreed on. A
    /// later one will not do: units would be missing.
    fn rebuild_from(&self, purged: Option<LogId>) -> RebuildFrom {
        let Some(purged) = purged else { return RebuildFrom::Log };
        // It may be trimmed further than it is purged yet; right after an install it is purged further.
        let base = self.verdicts.keys().find(|id| id.index >= purged.index);
        match base.filter(|base| self.is_agreed(**base) == Some(true)) {
            Some(base) => RebuildFrom::Image(*base),
            None => RebuildFrom::Nothing,
        }
    }

    /// What the leader proposes: the first checkpoint without a verdict of which every voter that is `there` has told its
    /// hash, if that gives one.
    fn due(&self, voters: &[NodeId], own: NodeId, there: &BTreeMap<NodeId, ImageHashes>) -> Option<CoreCommand> {
        let open = self.verdicts.iter().filter(|(_, verdict)| verdict.is_none()).map(|(id, _)| *id);
        open.filter_map(|position| {
            let own_hash = *self.images.get(&position)?;
            let told =
                voters.iter().filter(|voter| **voter != own).filter_map(|voter| Some((*voter, there.get(voter)?)));
            let told = told.map(|(voter, images)| {
                let at = images.iter().find(|(id, _)| *id == position)?;
                Some((voter, at.1))
            });
            let mut hashes: Vec<(NodeId, u64)> = told.collect::<Option<_>>()?;
            if voters.contains(&own) {
                hashes.push((own, own_hash));
            }
            hashes.sort_unstable();
            verdict(&hashes, voters.len())?;
            Some(CoreCommand::StateHash { position, voters: voters.len() as u32, hashes })
        })
        .next()
    }
}

/// That the state was made anew because of what was found at a checkpoint, until that is seen to be right.
///
/// `rebuilt`: CRC32C u32 of the rest, little-endian; the rest is `codec`'s: term u64, index u64.
struct RebuiltNote<'e> {
    env: &'e Env,
    path: PathBuf,
}

impl<'e> RebuiltNote<'e> {
    fn new(env: &'e Env, dir: &Path) -> RebuiltNote<'e> {
        RebuiltNote { env, path: dir.join("rebuilt") }
    }

    /// What cannot be read is none: the worst is one rebuild more.
    async fn read(&self) -> io::Result<Option<LogId>> {
        let bytes = read_file(self.env, &self.path).await?;
        let checked = bytes.as_ref().and_then(|bytes| bytes.split_first_chunk());
        let checked = checked.filter(|(crc, rest)| u32::from_le_bytes(**crc) == crc32c::crc32c(rest));
        Ok(checked.and_then(|(_, rest)| codec::from_bytes(rest).ok()))
    }

    async fn write(&self, at: LogId) -> io::Result<()> {
        let value = codec::to_bytes(&at);
        let mut bytes = crc32c::crc32c(&value).to_le_bytes().to_vec();
        bytes.extend(value);
        replace_file(self.env, &self.path, Bytes::from(bytes)).await
    }

    async fn remove(&self) -> io::Result<()> {
        self.env.disk.remove_file(&self.path).await?;
        self.env.disk.sync_dir(self.path.parent().expect("it lies in a directory")).await
    }
}

/// What this replica needs to know of itself.
pub(crate) struct Own<T: Tables> {
    pub env: Env,
    pub dir: PathBuf,
    pub raft: Raft<Types, Machine<T>>,
    pub log: Log,
    pub reader: Reader<T>,
    pub links: Arc<Links>,
    pub wishes: mpsc::UnboundedSender<Wish>,
}

/// Compares, for as long as the fold lives. Resolves with the reason to stop, if this replica has gone wrong: its next
/// start will find noted what to do.
pub(crate) async fn has_gone_wrong<T: Tables>(own: Own<T>) -> String {
    let mut changes = own.reader.watch_state_hashes();
    let mut alarmed = None;
    loop {
        let hashes = changes.borrow_and_update().clone();
        if let Some(split) = hashes.split().filter(|split| alarmed != Some(*split)) {
            tracing::error!(%split, "no majority of replicas has the same state: all of them go on, find out who is right");
            alarmed = Some(split);
        }
        match hashes.diverged() {
            Some((position, agreed)) => {
                tracing::error!(%position, "this replica's state is not what a majority has");
                own.hand_over(position, agreed).await;
                return own.note(&hashes, position).await;
            }
            None => {
                if let Err(error) = own.forget_rebuilt(&hashes).await {
                    tracing::warn!(%error, "a note of an earlier rebuild stays");
                }
            }
        }
        if changes.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

impl<T: Tables> Own<T> {
    /// If this node leads, somebody should whose state is right.
    async fn hand_over(&self, position: LogId, agreed: u64) {
        let there = self.links.heard().images(self.env.clock.monotonic());
        let is_right = |images: &[(LogId, u64)]| images.contains(&(position, agreed));
        let successors = there.into_iter().filter(|(_, images)| is_right(images)).map(|(node, _)| node).collect();
        let (done, granted) = oneshot::channel();
        if self.wishes.send(Wish::State(successors, done)).is_ok() {
            // Dropped unanswered when the member ends.
            let _ = granted.await;
        }
    }

    /// Notes what the next start has to do, and says it.
    async fn note(&self, hashes: &StateHashes, position: LogId) -> String {
        let (env, dir) = (self.env.clone(), self.dir.clone());
        let from = hashes.rebuild_from(self.log.last_purged());
        let noted: io::Result<RebuildFrom> = aside(&self.env, async move {
            let rebuilt = RebuiltNote::new(&env, &dir);
            let again = rebuilt.read().await?.is_some_and(|before| position.index <= before.index);
            let from = if again { RebuildFrom::Nothing } else { from };
            note_rebuild(&env, &dir, Rebuild::Diverged(from)).await?;
            rebuilt.write(position).await?;
            Ok(from)
        })
        .await;
        let what = match noted {
            Ok(RebuildFrom::Log) => "the next start rebuilds it from the log's beginning".to_owned(),
            Ok(RebuildFrom::Image(id)) => format!("the next start rebuilds it from the agreed image {id}"),
            Ok(RebuildFrom::Nothing) => "nothing agreed is left here to rebuild it from: replaceNode".to_owned(),
            Err(error) => format!("which could not be noted: {error}; replaceNode"),
        };
        format!("the state at checkpoint {position} is not what a majority has; {what}")
    }

    /// An earlier rebuild has helped if the place that it was for is agreed on.
    async fn forget_rebuilt(&self, hashes: &StateHashes) -> io::Result<()> {
        let good: Vec<u64> =
            hashes.images.keys().filter(|id| hashes.is_agreed(**id) == Some(true)).map(|id| id.index).collect();
        let Some(newest) = good.last().copied() else { return Ok(()) };
        let (env, dir) = (self.env.clone(), self.dir.clone());
        aside(&self.env, async move {
            let rebuilt = RebuiltNote::new(&env, &dir);
            match rebuilt.read().await? {
                Some(at) if at.index <= newest => rebuilt.remove().await,
                _ => Ok(()),
            }
        })
        .await
    }
}

/// What the leader's task stands on.
pub(crate) struct Leader<T: Tables> {
    pub env: Env,
    pub raft: Raft<Types, Machine<T>>,
    pub reader: Reader<T>,
    pub links: Arc<Links>,
    pub serving: watch::Receiver<Serving>,
    /// Weak: the member ends when nobody else can propose.
    pub queue: mpsc::WeakUnboundedSender<Submission<T::Reply>>,
}

/// Proposes a `StateHash` for each checkpoint that all voters have told of, whenever this node leads. Ends with the member.
pub(crate) async fn propose_due<T: Tables>(mut leader: Leader<T>) {
    let (mut hashes, mut heard) = (leader.reader.watch_state_hashes(), leader.links.heard().watch());
    loop {
        let due = leader.due(&hashes.borrow_and_update());
        if let Some(command) = due
            && leader.propose(command).await.is_none()
        {
            return;
        }
        let ended = tokio::select! { biased;
            changed = hashes.changed() => changed.is_err(),
            changed = heard.changed() => changed.is_err(),
            changed = leader.serving.changed() => changed.is_err(),
        };
        if ended {
            return;
        }
    }
}

impl<T: Tables> Leader<T> {
    fn due(&self, hashes: &StateHashes) -> Option<CoreCommand> {
        if !matches!(*self.serving.borrow(), Serving::Yes { .. }) {
            return None;
        }
        let voters: Vec<NodeId> =
            self.raft.server_metrics().borrow_watched().membership_config.membership().voter_ids().collect();
        let there = self.links.heard().images(self.env.clock.monotonic());
        hashes.due(&voters, *self.raft.node_id(), &there)
    }

    /// Waits until it is applied, or certainly or perhaps is not: then it is proposed again if it is still due. `None` at
    /// the end.
    async fn propose(&self, command: CoreCommand) -> Option<()> {
        let operations = vec![Operation::Core(command)];
        let bytes = submission_bytes(&operations);
        let admitted = Admitted::admit(&Arc::default(), bytes, bytes)?;
        let (answer, answered) = oneshot::channel();
        let submission =
            Submission { operations, bytes, admitted, held: None, claim: Arc::default(), answer, arrival: 0 };
        self.queue.upgrade()?.send(submission).ok()?;
        let _ = answered.await;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(index: u64) -> LogId {
        LogId { term: 1, index }
    }

    #[test]
    fn a_majority_of_all_voters_decides_and_missing_ones_may() {
        let of = |hashes: &[u64], voters| {
            let hashes: Vec<(NodeId, u64)> =
                hashes.iter().enumerate().map(|(node, hash)| (node as u64, *hash)).collect();
            verdict(&hashes, voters)
        };
        assert_eq!(of(&[7], 1), Some(Verdict::Agreed(7)));
        assert_eq!(of(&[7, 7, 7], 3), Some(Verdict::Agreed(7)));
        assert_eq!(of(&[8, 7, 8], 3), Some(Verdict::Agreed(8)));
        assert_eq!(of(&[7, 7], 3), Some(Verdict::Agreed(7)), "whatever the third has");
        assert_eq!(of(&[7, 8], 3), None, "the third decides");
        assert_eq!(of(&[7, 8, 9], 3), Some(Verdict::Split));
        assert_eq!(of(&[7, 8], 2), Some(Verdict::Split));
        assert_eq!(of(&[7, 7, 8, 8], 4), Some(Verdict::Split));
        assert_eq!(of(&[7, 7, 8, 8], 5), None);
        assert_eq!(of(&[], 3), None);
    }

    #[test]
    fn the_leader_proposes_what_all_that_are_there_have_told() {
        let hashes = StateHashes {
            images: [(at(1), 10), (at(5), 50), (at(9), 90)].into(),
            verdicts: [(at(1), Some(Verdict::Agreed(10))), (at(5), None), (at(9), None)].into(),
        };
        let due = |there: &[(NodeId, &[(LogId, u64)])]| {
            let there = there.iter().map(|(node, images)| (*node, images.to_vec())).collect();
            hashes.due(&[1, 2, 3], 1, &there)
        };
        let proposed = |position, hashes: &[(NodeId, u64)]| {
            Some(CoreCommand::StateHash { position, voters: 3, hashes: hashes.to_vec() })
        };
        assert_eq!(due(&[]), None, "one of three is no majority");
        assert_eq!(due(&[(2, &[(at(1), 10)])]), None, "it is still writing");
        assert_eq!(due(&[(2, &[(at(5), 50)])]), proposed(at(5), &[(1, 50), (2, 50)]), "the third is not there");
        assert_eq!(due(&[(2, &[(at(5), 50)]), (3, &[])]), None, "the third is");
        assert_eq!(due(&[(2, &[(at(5), 51)])]), None, "one against one: the third decides");
        let both: [(NodeId, &[(LogId, u64)]); 2] = [(2, &[(at(5), 51), (at(9), 90)]), (3, &[(at(9), 91)])];
        assert_eq!(due(&both), proposed(at(9), &[(1, 90), (2, 90), (3, 91)]), "the third has no image of the fifth");
        assert_eq!(due(&[(2, &[(at(5), 51)]), (3, &[(at(5), 52)])]), proposed(at(5), &[(1, 50), (2, 51), (3, 52)]));
        let learner: [(NodeId, &[(LogId, u64)]); 2] = [(2, &[(at(5), 50)]), (4, &[])];
        assert_eq!(due(&learner), proposed(at(5), &[(1, 50), (2, 50)]), "a learner is not asked");
    }

    #[test]
    fn a_replica_finds_where_it_went_wrong_and_where_it_was_right() {
        let agreed = |hash| Some(Verdict::Agreed(hash));
        let hashes = StateHashes {
            images: [(at(1), 10), (at(5), 50), (at(9), 90), (at(12), 120)].into(),
            verdicts: [(at(1), agreed(10)), (at(5), None), (at(9), agreed(91)), (at(12), agreed(121))].into(),
        };
        assert_eq!(hashes.diverged(), Some((at(9), 91)));
        assert_eq!(hashes.rebuild_from(None), RebuildFrom::Log);
        assert_eq!(hashes.rebuild_from(Some(at(1))), RebuildFrom::Image(at(1)));
        assert_eq!(hashes.rebuild_from(Some(at(2))), RebuildFrom::Nothing, "nobody has looked at the fifth");
        assert_eq!(hashes.rebuild_from(Some(at(9))), RebuildFrom::Nothing, "it is wrong there");
        assert_eq!(hashes.rebuild_from(Some(at(13))), RebuildFrom::Nothing);
        assert_eq!((hashes.agreed(), hashes.split()), (Some(at(12)), None));
        let split = StateHashes { verdicts: [(at(1), agreed(10)), (at(9), Some(Verdict::Split))].into(), ..hashes };
        assert_eq!((split.diverged(), split.agreed(), split.split()), (None, Some(at(1)), Some(at(9))));
    }
}
