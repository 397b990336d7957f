//! The state machine as openraft asks for it, over [`Fold`]: applies, answers the proposer's waiters, and shows the
//! image at the retention boundary as *the* snapshot.
//!
//! The snapshot is never newer than what retention has cut: a follower that needs one gets every retained message
//! behind it by ordinary replication.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use bytes::Bytes;
use env::Env;
use env::disk::Open;
use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine, SnapshotMeta};
use tokio::sync::{Mutex, watch};

use crate::consume_queue::aside;
use crate::fold::{Fold, Tables};
use crate::image::{self, Image};
use crate::log::{Frame, Kind, Log};
use crate::planted::{self, Bug};
use crate::position::{LogId, NodeId, PhysicalOffset};
use crate::proposer::Waiters;
use crate::raft::storage::{NextBeginning, entry_of};
use crate::raft::tickets::Tickets;
use crate::raft::types::{
    CommittedLeaderId, Entry, Node, RaftLogId, StoredMembership, Types, decode_membership, to_raft,
};
use crate::repair::REPLACE;

/// What openraft says of a snapshot.
pub type Meta = SnapshotMeta<CommittedLeaderId, NodeId, Node>;

/// openraft's snapshot with our content.
pub type Snapshot = openraft::storage::Snapshot<CommittedLeaderId, NodeId, Node, SnapshotImage>;

/// The content of a snapshot.
#[derive(Clone, Debug)]
pub enum SnapshotImage {
    /// One of this replica's images.
    Stored(Image),
    /// Received from the leader, not yet verified.
    Received(Bytes),
}

impl SnapshotImage {
    /// All of it, read beside this runtime.
    pub async fn read(self, env: &Env) -> io::Result<Bytes> {
        match self {
            SnapshotImage::Received(bytes) => Ok(bytes),
            SnapshotImage::Stored(image) => {
                let disk = env.disk.clone();
                let read =
                    async move { disk.open(&image.path, Open::Existing).await?.read_at(0, image.len as usize).await };
                aside(env, read).await
            }
        }
    }
}

/// The members as this replica has applied them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Roster {
    /// The entry that says so; `None` before the first.
    pub at: Option<u64>,
    /// Voters and learners.
    pub members: BTreeMap<NodeId, Node>,
}

impl Roster {
    /// As `fold` holds it.
    pub fn of<T: Tables>(fold: &Fold<T>) -> Roster {
        let (at, bytes) = fold.membership();
        let membership = decode_membership(bytes).unwrap_or_default();
        let members = membership.nodes().map(|(id, node)| (*id, node.clone())).collect();
        Roster { at: at.map(|at| at.index), members }
    }

    /// Whether `node` is a member.
    pub fn contains(&self, node: NodeId) -> bool {
        self.members.contains_key(&node)
    }
}

/// The fold, shared between openraft's apply task, which owns it while the group runs, and the group, which closes it.
pub type SharedFold<T> = Arc<Mutex<Option<Fold<T>>>>;

/// Why a replica whose images are all damaged does not start: openraft asks for one where the log is purged.
fn no_image() -> String {
    format!("the log is purged, and no image that goes with its beginning is whole. {REPLACE}")
}

/// The state machine.
pub struct Machine<T: Tables> {
    /// Everything shared.
    pub env: Env,
    /// The log applied from.
    pub log: Log,
    /// Gone once the group has closed it.
    pub fold: SharedFold<T>,
    /// Which proposal stands where.
    pub tickets: Arc<Tickets>,
    /// Who waits for it.
    pub waiters: Arc<Waiters<T::Reply>>,
    /// Told when an image was installed.
    pub beginning: NextBeginning,
    /// Told who the members are.
    pub roster: watch::Sender<Roster>,
}

fn closed() -> io::Error {
    io::Error::other("the state is closed: the group is stopping")
}

impl<T: Tables> Machine<T> {
    async fn apply_one(&mut self, fold: &mut Fold<T>, entry: Entry) -> io::Result<()> {
        let id = entry.id();
        let mut outcomes = Vec::new();
        let frame = frame_of(entry);
        let is_membership = frame.kind == Kind::Membership;
        fold.apply(&frame, &mut outcomes).await?;
        if is_membership {
            self.roster.send_replace(Roster::of(fold));
        }
        self.log.set_applied(id.index);
        let mut outcomes = Some(outcomes);
        for (ticket, ended) in self.tickets.applied(id) {
            // At most one proposal has this very id, so its outcomes are taken once.
            self.waiters.ended(ticket, ended, || outcomes.take().unwrap_or_default());
        }
        Ok(())
    }

    /// The newest image at or below the retention boundary: what `Trim` has cut, or where the log already begins. (An
    /// image that was installed is older than the `Trim` that made it the boundary, which is still to be replayed.)
    async fn boundary_image(&self) -> io::Result<Option<Image>> {
        let fold = self.fold.lock().await;
        let fold = fold.as_ref().ok_or_else(closed)?;
        let begins = [*self.beginning.lock(), self.log.purged_boundary()];
        let begins = begins.into_iter().flatten().map(|begin| begin.end.physical_offset).max();
        let least = fold.reader().min_physical().max(begins.unwrap_or_default());
        let images = fold.images().await?;
        Ok(images.into_iter().rfind(|image| at_or_below(image, least)))
    }

    async fn boundary_snapshot(&self) -> io::Result<Option<Snapshot>> {
        self.boundary_image().await?.map(snapshot_of).transpose()
    }
}

fn at_or_below(image: &Image, least: PhysicalOffset) -> bool {
    image.boundary.end.physical_offset <= least
}

fn snapshot_of(image: Image) -> io::Result<Snapshot> {
    let last_membership = stored_membership(image.membership.clone())?;
    let meta = SnapshotMeta { last_log_id: Some(to_raft(image.boundary.id)), last_membership };
    Ok(Snapshot { meta, snapshot: SnapshotImage::Stored(image) })
}

fn stored_membership(encoded: Option<(LogId, Bytes)>) -> io::Result<StoredMembership> {
    let Some((at, bytes)) = encoded else { return Ok(StoredMembership::default()) };
    let membership =
        decode_membership(bytes).map_err(|bad| io::Error::new(io::ErrorKind::InvalidData, format!("{at}: {bad}")))?;
    Ok(StoredMembership::new(Some(to_raft(at)), membership))
}

/// An entry as the log holds it.
///
/// Panics if it was not read from the log: apply gets its entries from there.
fn frame_of(entry: Entry) -> Frame {
    let placed = entry.placed.expect("entries are applied as they were read from the log");
    let id = entry.id();
    let (kind, body, body_crc, _) = entry.into_frame_parts();
    Frame { id, kind, physical_offset: placed.physical_offset, body, body_crc, chain: placed.chain }
}

impl<T: Tables> RaftStateMachine<Types> for Machine<T> {
    type SnapshotData = SnapshotImage;
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        let fold = self.fold.lock().await;
        let fold = fold.as_ref().ok_or_else(closed)?;
        let (at, bytes) = fold.membership();
        let membership = stored_membership(at.map(|at| (at, bytes)))?;
        Ok((fold.applied().map(to_raft), membership))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let shared = self.fold.clone();
        let mut fold = shared.lock().await;
        let fold = fold.as_mut().ok_or_else(closed)?;
        while let Some(next) = entries.next().await {
            let (entry, responder) = next?;
            let is_early = planted::is(Bug::CommitOffByOne) && fold.applied() >= Some(entry.id());
            if !is_early {
                self.apply_one(fold, entry).await?;
            }
            if let Some(responder) = responder {
                responder.send(());
            }
        }
        if planted::is(Bug::CommitOffByOne) {
            let next = fold.applied().map_or(0, |applied| applied.index + 1);
            for frame in self.log.read(next..next + 1, usize::MAX).await? {
                self.apply_one(fold, entry_of(frame)?).await?;
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, force: bool) -> Option<Builder> {
        match self.boundary_snapshot().await {
            Ok(Some(snapshot)) => Some(Builder(Ok(snapshot))),
            // Only a start asks like this.
            Ok(None) if force && self.log.last_purged().is_some() => Some(Builder(Err(no_image()))),
            // Nothing was purged either, so nobody needs one.
            Ok(None) => None,
            Err(error) => Some(Builder(Err(error.to_string()))),
        }
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        let none = || Builder(Err("there is no image at the retention boundary yet".to_owned()));
        self.try_create_snapshot_builder(true).await.unwrap_or_else(none)
    }

    async fn install_snapshot(&mut self, meta: &Meta, snapshot: SnapshotImage) -> io::Result<()> {
        let bytes = snapshot.read(&self.env).await?;
        // Before anything is renamed: what openraft believes to be installed must be what is.
        let ends = Some(to_raft(image::boundary_of(&bytes)?.id));
        if ends != meta.last_log_id {
            let reason = format!("the image ends at {ends:?}, the leader said {:?}", meta.last_log_id);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        let mut fold = self.fold.lock().await;
        let fold = fold.as_mut().ok_or_else(closed)?;
        let image = fold.install_image(bytes).await?;
        for (ticket, ended) in self.tickets.covered(image.boundary.id) {
            self.waiters.ended(ticket, ended, Vec::new);
        }
        *self.beginning.lock() = Some(image.boundary);
        self.roster.send_replace(Roster::of(fold));
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.boundary_snapshot().await
    }
}

/// Gives the snapshot that is there: images are cut by apply, at replicated positions.
pub struct Builder(Result<Snapshot, String>);

impl RaftSnapshotBuilder<Types> for Builder {
    type SnapshotData = SnapshotImage;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        self.0.clone().map_err(io::Error::other)
    }
}
