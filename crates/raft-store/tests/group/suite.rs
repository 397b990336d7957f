//! openraft's own suite for log stores, on the real log over both disks.
//!
//! The suite starts logs at index 1 or 2 and purges beyond their end, which a CommitLog does not allow: missing entries
//! are filled in before, and a purge beyond the end begins anew at the tip. It also applies entries that are in no log,
//! which [`raft_store::fold::Fold`] refuses by assertion: the state machine here only remembers.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::Arc;

use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use futures::{Stream, StreamExt};
use openraft::storage::{
    EntryResponder, IOFlushed, LogState, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine, Snapshot, SnapshotMeta,
};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, RaftLogReader, StorageError};
use raft_store::log::{AppendEntry, Boundary, Kind, Log, LogOptions};
use raft_store::position::LogId;
use raft_store::raft::storage::{NextBeginning, Reader, Storage};
use raft_store::raft::tickets::Tickets;
use raft_store::raft::types::{
    CommittedLeaderId, Entry, Node, Payload, RaftLogId, StoredMembership, Types, Vote, from_raft, to_raft,
};

type Meta = SnapshotMeta<CommittedLeaderId, u64, Node>;

struct Store {
    storage: Storage,
    log: Log,
    beginning: NextBeginning,
}

impl Store {
    async fn open(env: Env, dir: PathBuf) -> Store {
        let options = LogOptions {
            segment_bytes: 1 << 20,
            prepare_piece_bytes: 64 << 10,
            max_entry_bytes: 1 << 16,
            ..LogOptions::default()
        };
        let log = Log::open(env, dir, options, None).await.unwrap();
        let beginning = NextBeginning::default();
        let storage = Storage::new(log.clone(), Arc::new(Tickets::default()), beginning.clone(), Arc::default());
        Store { storage, log, beginning }
    }
}

impl RaftLogStorage<Types> for Store {
    type LogReader = Reader;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        self.storage.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> Reader {
        self.storage.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        self.storage.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<RaftLogId>) -> io::Result<()> {
        self.storage.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<RaftLogId>> {
        self.storage.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        let next = self.log.last().map_or(0, |last| last.index + 1);
        let term = entries[0].id().term;
        let missing = (next..entries[0].index).map(|index| AppendEntry {
            id: LogId { term, index },
            kind: Kind::Blank,
            body: bytes::Bytes::new(),
            body_crc: 0,
            carried_chain: None,
        });
        self.log.append(missing.collect(), Box::new(|_| {}))?;
        self.storage.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last_kept: Option<RaftLogId>) -> io::Result<()> {
        self.storage.truncate_after(last_kept).await
    }

    async fn purge(&mut self, upto: RaftLogId) -> io::Result<()> {
        let id = from_raft(&upto);
        if self.log.last() < Some(id) {
            *self.beginning.lock() = Some(Boundary { id, end: self.log.tip().end });
        }
        self.storage.purge(upto).await
    }
}

#[derive(Default)]
struct Remembers {
    applied: Option<RaftLogId>,
    membership: StoredMembership,
    snapshot: Option<Meta>,
}

impl RaftStateMachine<Types> for Remembers {
    type SnapshotData = ();
    type SnapshotBuilder = Built;

    async fn applied_state(&mut self) -> io::Result<(Option<RaftLogId>, StoredMembership)> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        while let Some(entry) = entries.next().await {
            let (entry, _) = entry?;
            self.applied = Some(to_raft(entry.id()));
            if let Payload::Membership(membership) = entry.payload {
                self.membership = StoredMembership::new(self.applied, membership);
            }
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<Built> {
        let meta = SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() };
        self.snapshot = Some(meta.clone());
        Some(Built(meta))
    }

    async fn get_snapshot_builder(&mut self) -> Built {
        self.try_create_snapshot_builder(true).await.unwrap()
    }

    async fn install_snapshot(&mut self, meta: &Meta, (): ()) -> io::Result<()> {
        (self.applied, self.membership) = (meta.last_log_id, meta.last_membership.clone());
        self.snapshot = Some(meta.clone());
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot<CommittedLeaderId, u64, Node, ()>>> {
        Ok(self.snapshot.clone().map(|meta| Snapshot { meta, snapshot: () }))
    }
}

struct Built(Meta);

impl RaftSnapshotBuilder<Types> for Built {
    type SnapshotData = ();

    async fn build_snapshot(&mut self) -> io::Result<Snapshot<CommittedLeaderId, u64, Node, ()>> {
        Ok(Snapshot { meta: self.0.clone(), snapshot: () })
    }
}

struct OnRealDisk;

impl StoreBuilder<Types, Store, Remembers, tempfile::TempDir> for OnRealDisk {
    async fn build(&self) -> Result<(tempfile::TempDir, Store, Remembers), StorageError<Types>> {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(Env::real(), dir.path().to_owned()).await;
        Ok((dir, store, Remembers::default()))
    }
}

struct OnSimulatedDisk;

impl StoreBuilder<Types, Store, Remembers, ()> for OnSimulatedDisk {
    async fn build(&self) -> Result<((), Store, Remembers), StorageError<Types>> {
        let env = Env::simulated(1, SimDisk::new(Rng::seeded(1)));
        Ok(((), Store::open(env, "/data".into()).await, Remembers::default()))
    }
}

#[tokio::test]
async fn openrafts_suite_holds_on_the_real_disk() {
    raft_store::raft::types::Runtime::scope(1, Suite::test_all(OnRealDisk)).await.unwrap();
}

#[tokio::test]
async fn openrafts_suite_holds_on_the_simulated_disk() {
    raft_store::raft::types::Runtime::scope(1, Suite::test_all(OnSimulatedDisk)).await.unwrap();
}

/// openraft reads the *last* log id of each leader; its own default implementation is the measure.
#[tokio::test]
async fn key_log_ids_are_those_of_openrafts_own_search() {
    struct Searched(Reader);

    impl RaftLogReader<Types> for Searched {
        async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
        where
            R: std::ops::RangeBounds<u64> + Clone + std::fmt::Debug + OptionalSend,
        {
            self.0.try_get_log_entries(range).await
        }

        async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
            self.0.read_vote().await
        }
    }

    let env = Env::simulated(1, SimDisk::new(Rng::seeded(1)));
    let mut store = Store::open(env, "/data".into()).await;
    let terms = [0, 1, 1, 1, 2, 4, 4, 5, 9, 9, 9, 9];
    let ids: Vec<LogId> = terms.iter().zip(0..).map(|(term, index)| LogId { term: *term, index }).collect();
    let entries = ids.iter().map(|id| AppendEntry {
        id: *id,
        kind: Kind::Blank,
        body: bytes::Bytes::new(),
        body_crc: 0,
        carried_chain: None,
    });
    store.log.append(entries.collect(), Box::new(|_| {})).unwrap();
    let mut reader = store.get_log_reader().await;
    let mut searched = Searched(reader.clone());
    for from in 0..ids.len() {
        for to in from..ids.len() {
            let range: RangeInclusive<RaftLogId> = to_raft(ids[from])..=to_raft(ids[to]);
            let ours = reader.get_key_log_ids(range.clone()).await.unwrap();
            assert_eq!(ours, searched.get_key_log_ids(range).await.unwrap(), "{from}..={to}");
        }
    }
}
