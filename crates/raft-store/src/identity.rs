//! Whose directory this is: the LOCK, and the IDENTITY file.
//!
//! ```text
//! IDENTITY, little-endian, strings behind a u16 length
//!  0 magic u32 "RMQI" | 4 format version u32 = 1 | 8 length u32 of what follows the head | 12 CRC32C u32 of the same
//! 16 cluster string | group string | node id u64 | flush mode u8 (0 SYNC_FLUSH, 1 ASYNC_FLUSH)
//!    | segment bytes u64 | boot id string | clean stop u8 | log made u8 | on probation u8
//!    | peer address string | client address string
//!    | founding set: u8 0, or 1 and a count u32 of {id u64, peer address string, client address string}
//!    | belongs u8 (0 not yet, 1 member, 2 left) | since u64, of a member; not yet if the file ends before
//! ```
//!
//! Every change is written beside, synced, renamed, and the directory synced: after a crash there is the old file or
//! the new one. A node id is a random number minted when the directory is formatted, and never used again: a wiped
//! node is a new node.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fmt, io};

use bytes::{BufMut, Bytes};
use env::disk::{Lock, Open};
use env::{Env, fault};
use parking_lot::Mutex;

use crate::fields::{Fields, Malformed, put_string};
use crate::position::NodeId;
use crate::raft::peer::wire::{Founder, put_founders, take_founders};
use crate::raft::types::Node;

const MAGIC: u32 = u32::from_le_bytes(*b"RMQI");
/// Version of this file and of the layout of the directory.
pub const FORMAT_VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
pub(crate) const LOCK: &str = "LOCK";
pub(crate) const IDENTITY: &str = "IDENTITY";
const IDENTITY_NEW: &str = "IDENTITY.new";

/// When a replica acknowledges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FlushMode {
    /// After `fdatasync`.
    #[default]
    SyncFlush,
    /// After `write`; a timer syncs. A machine that goes down takes with it what was acknowledged since.
    AsyncFlush,
}

/// Whether this node belongs to the group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Belongs {
    /// It has not applied a membership with itself in it.
    #[default]
    NotYet,
    /// It has.
    Member {
        /// The entry with the first such membership. What is applied again after a crash may be older.
        since: u64,
    },
    /// It was removed. Its id is never used again.
    Left,
}

/// What the configuration says this directory must be.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Cluster name.
    pub cluster: String,
    /// Broker group name.
    pub group: String,
    /// Segment size, fixed for the cluster.
    pub segment_bytes: u64,
    /// When to acknowledge.
    pub flush_mode: FlushMode,
    /// Where this member is reached; may change from start to start.
    pub node: Node,
}

/// Contents of the IDENTITY file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Cluster name.
    pub cluster: String,
    /// Broker group name.
    pub group: String,
    /// Minted at format.
    pub node_id: NodeId,
    /// Bytes per segment.
    pub segment_bytes: u64,
    /// The machine's boot in which the directory was last opened.
    pub boot_id: String,
    /// The last stop was graceful. Cleared before anything else is written.
    pub clean_stop: bool,
    /// Log and hard state have been here: if they are not any more, they are lost.
    pub log_made: bool,
    /// When the replica has acknowledged since that start.
    pub flush_mode: FlushMode,
    /// It may have lost what it acknowledged, and has not caught up since.
    pub on_probation: bool,
    /// Where this member was last reached.
    pub node: Node,
    /// The founders, once all have said hello.
    pub founding_set: Option<Vec<Founder>>,
    /// Whether it belongs to the group.
    pub belongs: Belongs,
}

/// Why a directory is not opened. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process, or another group of this one, has it open.
    #[error("{dir}: in use by another process; stop that one first, or give this one its own directory")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// There are files, but no IDENTITY.
    #[error(
        "{dir}: holds {found:?} but no IDENTITY, so it is not a data directory, or was damaged by hand; \
         choose an empty directory, or restore the IDENTITY file"
    )]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One of the names in it.
        found: String,
    },
    /// It belongs to somebody else.
    #[error("{dir}: has {what} {found}, the configuration says {expected}; correct the configuration or the directory")]
    Mismatch {
        /// The directory.
        dir: PathBuf,
        /// Which property.
        what: &'static str,
        /// In the directory.
        found: String,
        /// In the configuration.
        expected: String,
    },
    /// The file's checksum or content is wrong.
    #[error(
        "{dir}: IDENTITY is damaged ({reason}); restore it from a backup, or wipe the directory and add a new node"
    )]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// It was removed from its group.
    #[error(
        "{dir}: node {id:016x} was removed from its group and cannot come back; to let this machine serve again, delete the \
         directory, start with `join = true`, and add it as a new node: `raftmq admin addNode`"
    )]
    Left {
        /// The directory.
        dir: PathBuf,
        /// The node that it was.
        id: NodeId,
    },
    /// Written by a newer program.
    #[error("{dir}: format version {found}, this program reads {FORMAT_VERSION}; run the newer program")]
    TooNew {
        /// The directory.
        dir: PathBuf,
        /// Its version.
        found: u32,
    },
    /// The disk failed; trying again is allowed.
    #[error("{dir}: {source}")]
    Io {
        /// The directory.
        dir: PathBuf,
        /// What happened.
        source: io::Error,
    },
}

/// An opened directory: locked, identified, and marked as not cleanly stopped. Cheap to clone; the lock is released
/// with the last clone.
#[derive(Clone)]
pub struct Directory {
    env: Env,
    dir: PathBuf,
    identity: Arc<Mutex<Identity>>,
    /// Whether the last stop was graceful.
    pub was_clean: bool,
    _lock: Arc<Lock>,
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("dir", &self.dir).field("identity", &*self.identity.lock()).finish()
    }
}

impl Directory {
    /// Opens `dir`, formatting it if it is empty or absent.
    pub async fn open(env: &Env, dir: &Path, expected: &Expected) -> Result<Directory, IdentityError> {
        let io = |source| IdentityError::Io { dir: dir.to_owned(), source };
        env.disk.create_dir_all(dir).await.map_err(io)?;
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            env.disk.sync_dir(parent).await.map_err(io)?;
        }
        let lock = env.disk.lock(&dir.join(LOCK)).await.map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => IdentityError::Locked { dir: dir.to_owned() },
            _ => io(source),
        })?;
        let (mut identity, formatted) = match read(env, dir).await? {
            Some(identity) => (identity, false),
            None => (format(env, dir, expected).await?, true),
        };
        matches(dir, &identity, expected)?;
        if identity.belongs == Belongs::Left {
            return Err(IdentityError::Left { dir: dir.to_owned(), id: identity.node_id });
        }
        let was_clean = identity.clean_stop;
        let boot_id = env.disk.boot_id().map_err(io)?;
        let went_down = !was_clean && identity.boot_id != boot_id;
        identity.on_probation |= went_down && identity.flush_mode == FlushMode::AsyncFlush;
        identity.clean_stop = false;
        identity.boot_id = boot_id;
        identity.flush_mode = expected.flush_mode;
        identity.node = expected.node.clone();
        write(env, dir, &identity).await.map_err(io)?;
        if formatted {
            fault!("founding.formatted");
        }
        let identity = Arc::new(Mutex::new(identity));
        Ok(Directory { env: env.clone(), dir: dir.to_owned(), identity, was_clean, _lock: Arc::new(lock) })
    }

    /// What IDENTITY says.
    pub fn identity(&self) -> Identity {
        self.identity.lock().clone()
    }

    /// This node, as a founder.
    pub fn founder(&self) -> Founder {
        let identity = self.identity.lock();
        Founder { id: identity.node_id, node: identity.node.clone() }
    }

    /// Makes the founding set durable.
    pub async fn found(&self, set: Vec<Founder>) -> io::Result<()> {
        self.change(|identity| identity.founding_set = Some(set)).await
    }

    /// Log and hard state are durably here, empty or not. Before that this node says nothing to anybody.
    pub async fn log_is_made(&self) -> io::Result<()> {
        match self.identity().log_made {
            true => Ok(()),
            false => self.change(|identity| identity.log_made = true).await,
        }
    }

    /// Whether it belongs to the group, as it turns out.
    pub async fn belongs(&self, belongs: Belongs) -> io::Result<()> {
        match self.identity().belongs == belongs {
            true => Ok(()),
            false => self.change(|identity| identity.belongs = belongs).await,
        }
    }

    /// The probation is over.
    pub async fn has_caught_up(&self) -> io::Result<()> {
        self.change(|identity| identity.on_probation = false).await
    }

    /// The last thing written in a graceful stop.
    pub async fn stopped_cleanly(&self) -> io::Result<()> {
        self.change(|identity| identity.clean_stop = true).await
    }

    async fn change(&self, change: impl FnOnce(&mut Identity)) -> io::Result<()> {
        let mut changed = self.identity();
        change(&mut changed);
        write(&self.env, &self.dir, &changed).await?;
        *self.identity.lock() = changed;
        Ok(())
    }
}

fn matches(dir: &Path, identity: &Identity, expected: &Expected) -> Result<(), IdentityError> {
    let mismatch = |what, found: &dyn fmt::Display, expected: &dyn fmt::Display| IdentityError::Mismatch {
        dir: dir.to_owned(),
        what,
        found: found.to_string(),
        expected: expected.to_string(),
    };
    if identity.cluster != expected.cluster {
        return Err(mismatch("cluster", &identity.cluster, &expected.cluster));
    }
    if identity.group != expected.group {
        return Err(mismatch("group", &identity.group, &expected.group));
    }
    if identity.segment_bytes != expected.segment_bytes {
        return Err(mismatch("segment_bytes", &identity.segment_bytes, &expected.segment_bytes));
    }
    Ok(())
}

/// A new identity in an empty directory. Not durable yet: the first write is.
async fn format(env: &Env, dir: &Path, expected: &Expected) -> Result<Identity, IdentityError> {
    let names = env.disk.list(dir).await.map_err(|source| IdentityError::Io { dir: dir.to_owned(), source })?;
    if let Some(found) = names.into_iter().find(|name| name.name != LOCK && name.name != IDENTITY_NEW) {
        return Err(IdentityError::Foreign { dir: dir.to_owned(), found: found.name });
    }
    // 0 means "nobody" on the wire.
    let node_id = env.rng.u64().max(1);
    Ok(Identity {
        cluster: expected.cluster.clone(),
        group: expected.group.clone(),
        node_id,
        segment_bytes: expected.segment_bytes,
        boot_id: String::new(),
        clean_stop: true,
        log_made: false,
        flush_mode: expected.flush_mode,
        on_probation: false,
        node: expected.node.clone(),
        founding_set: None,
        belongs: Belongs::NotYet,
    })
}

/// What the file says; `None` if there is none.
pub(crate) async fn read(env: &Env, dir: &Path) -> Result<Option<Identity>, IdentityError> {
    let io = |source| IdentityError::Io { dir: dir.to_owned(), source };
    let file = match env.disk.open(&dir.join(IDENTITY), Open::ToRead).await {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    /// Longer than any founding set that fits the peer protocol.
    const LONGEST: usize = 1 << 20;
    let bytes = file.read_at(0, LONGEST).await.map_err(io)?;
    decode(bytes).map(Some).map_err(|bad| match bad {
        Undecodable::TooNew(found) => IdentityError::TooNew { dir: dir.to_owned(), found },
        Undecodable::Damaged(reason) => IdentityError::Damaged { dir: dir.to_owned(), reason: reason.to_owned() },
    })
}

pub(crate) async fn write(env: &Env, dir: &Path, identity: &Identity) -> io::Result<()> {
    let (new, path) = (dir.join(IDENTITY_NEW), dir.join(IDENTITY));
    let file = env.disk.open(&new, Open::OrCreate).await?;
    file.set_len(0).await?;
    file.write_at(0, &[encode(identity)]).await?;
    file.sync_data().await?;
    env.disk.rename(&new, &path).await?;
    env.disk.sync_dir(dir).await
}

fn encode(identity: &Identity) -> Bytes {
    let mut out = vec![0; HEAD_BYTES];
    put_string(&mut out, &identity.cluster);
    put_string(&mut out, &identity.group);
    out.put_u64_le(identity.node_id);
    out.put_u8(match identity.flush_mode {
        FlushMode::SyncFlush => 0,
        FlushMode::AsyncFlush => 1,
    });
    out.put_u64_le(identity.segment_bytes);
    put_string(&mut out, &identity.boot_id);
    out.put_u8(identity.clean_stop.into());
    out.put_u8(identity.log_made.into());
    out.put_u8(identity.on_probation.into());
    put_string(&mut out, &identity.node.peer_address);
    put_string(&mut out, &identity.node.client_address);
    match &identity.founding_set {
        None => out.put_u8(0),
        Some(set) => {
            out.put_u8(1);
            put_founders(&mut out, set);
        }
    }
    out.put_u8(match identity.belongs {
        Belongs::NotYet => 0,
        Belongs::Member { .. } => 1,
        Belongs::Left => 2,
    });
    out.put_u64_le(match identity.belongs {
        Belongs::Member { since } => since,
        Belongs::NotYet | Belongs::Left => 0,
    });
    let crc = crc32c::crc32c(&out[HEAD_BYTES..]);
    let len = (out.len() - HEAD_BYTES) as u32;
    out[0..4].copy_from_slice(&MAGIC.to_le_bytes());
    out[4..8].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[8..12].copy_from_slice(&len.to_le_bytes());
    out[12..16].copy_from_slice(&crc.to_le_bytes());
    Bytes::from(out)
}

enum Undecodable {
    TooNew(u32),
    Damaged(&'static str),
}

impl From<Malformed> for Undecodable {
    fn from(bad: Malformed) -> Undecodable {
        Undecodable::Damaged(bad.0)
    }
}

fn decode(bytes: Bytes) -> Result<Identity, Undecodable> {
    let mut from = Fields::new(bytes);
    if from.u32("magic")? != MAGIC {
        return Err(Undecodable::Damaged("magic"));
    }
    let version = from.u32("format version")?;
    if version > FORMAT_VERSION {
        return Err(Undecodable::TooNew(version));
    }
    if version == 0 {
        return Err(Undecodable::Damaged("format version"));
    }
    let (len, crc) = (from.u32("length")?, from.u32("checksum")?);
    let content = from.bytes(len as usize, "length")?;
    from.end("length")?;
    if crc32c::crc32c(&content) != crc {
        return Err(Undecodable::Damaged("checksum"));
    }
    let mut from = Fields::new(content);
    let cluster = from.string("cluster")?;
    let group = from.string("group")?;
    let node_id = from.u64("node id")?;
    let flush_mode = match from.u8("flush mode")? {
        0 => FlushMode::SyncFlush,
        1 => FlushMode::AsyncFlush,
        _ => return Err(Undecodable::Damaged("flush mode")),
    };
    let segment_bytes = from.u64("segment bytes")?;
    let boot_id = from.string("boot id")?;
    let clean_stop = from.bool("clean stop")?;
    let log_made = from.bool("log made")?;
    let on_probation = from.bool("on probation")?;
    let node = Node { peer_address: from.string("peer address")?, client_address: from.string("client address")? };
    let founding_set = if from.bool("founding set")? { Some(take_founders(&mut from)?) } else { None };
    // The first files of this version end here.
    let belongs = match from.remaining() {
        0 => Belongs::NotYet,
        _ => match (from.u8("belongs")?, from.u64("member since")?) {
            (0, 0) => Belongs::NotYet,
            (1, since) => Belongs::Member { since },
            (2, 0) => Belongs::Left,
            _ => return Err(Undecodable::Damaged("belongs")),
        },
    };
    from.end("bytes behind the last field")?;
    Ok(Identity {
        cluster,
        group,
        node_id,
        segment_bytes,
        boot_id,
        clean_stop,
        log_made,
        flush_mode,
        on_probation,
        node,
        founding_set,
        belongs,
    })
}

/// For [`crate::fuzzing`]: what can be read can be written, and reads the same again.
pub(crate) fn decode_again(bytes: Bytes) {
    if let Ok(identity) = decode(bytes) {
        assert!(decode(encode(&identity)).is_ok_and(|again| again == identity));
    }
}

#[cfg(test)]
mod tests {
    use env::Rng;
    use env::disk::simulated::SimDisk;
    use proptest::prelude::*;

    use super::*;

    fn node(port: u16) -> Node {
        Node { peer_address: format!("127.0.0.1:{port}"), client_address: format!("127.0.0.1:{}", port + 1) }
    }

    fn expected() -> Expected {
        Expected {
            cluster: "c".into(),
            group: "g".into(),
            segment_bytes: 1 << 20,
            flush_mode: FlushMode::SyncFlush,
            node: node(1000),
        }
    }

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn no_identity_is_taken_with_any_bit_of_it_turned() {
        run(async {
            let disk = SimDisk::new(Rng::seeded(1));
            let (env, dir) = (Env::simulated(1, disk.clone()), Path::new("/data"));
            let directory = Directory::open(&env, dir, &expected()).await.unwrap();
            let founder = directory.founder();
            directory.found(vec![founder]).await.unwrap();
            drop(directory);
            let path = dir.join(IDENTITY);
            let len = env.disk.open(&path, Open::ToRead).await.unwrap().len().unwrap();
            for at in 0..len {
                for bit in 0..8 {
                    disk.flip_bit(&path, at, bit);
                    let refused = Directory::open(&env, dir, &expected()).await;
                    let is_refused =
                        matches!(refused, Err(IdentityError::Damaged { .. } | IdentityError::TooNew { .. }));
                    assert!(is_refused, "bit {bit} at {at}: {refused:?}");
                    disk.flip_bit(&path, at, bit);
                }
            }
            println!("IDENTITY: {} bits: all refused", len * 8);
            Directory::open(&env, dir, &expected()).await.unwrap();
        });
    }

    #[test]
    fn the_id_is_minted_once_and_stays() {
        run(async {
            let env = Env::simulated(1, SimDisk::new(Rng::seeded(1)));
            let dir = Path::new("/data/group");
            let first = Directory::open(&env, dir, &expected()).await.unwrap();
            let id = first.identity().node_id;
            assert!(matches!(Directory::open(&env, dir, &expected()).await, Err(IdentityError::Locked { .. })));
            let set = vec![Founder { id, node: node(1000) }, Founder { id: 7, node: node(2000) }];
            first.found(set.clone()).await.unwrap();
            drop(first);

            let second = Directory::open(&env, dir, &expected()).await.unwrap();
            assert_eq!((second.identity().node_id, second.was_clean), (id, false));
            assert_eq!(second.identity().founding_set, Some(set));
            second.stopped_cleanly().await.unwrap();
            drop(second);
            assert!(Directory::open(&env, dir, &expected()).await.unwrap().was_clean);

            env.disk.remove_dir_all(dir).await.unwrap();
            let wiped = Directory::open(&env, dir, &expected()).await.unwrap();
            assert_ne!(wiped.identity().node_id, id, "a wiped node is a new node");
        });
    }

    #[test]
    fn a_directory_of_somebody_else_is_refused_and_left_alone() {
        run(async {
            let env = Env::simulated(2, SimDisk::new(Rng::seeded(2)));
            let dir = Path::new("/data");
            env.disk.create_dir_all(dir).await.unwrap();
            env.disk.open(&dir.join("holiday.jpg"), Open::New).await.unwrap();
            assert!(matches!(Directory::open(&env, dir, &expected()).await, Err(IdentityError::Foreign { .. })));

            let dir = Path::new("/other");
            drop(Directory::open(&env, dir, &expected()).await.unwrap());
            for wrong in [
                Expected { cluster: "x".into(), ..expected() },
                Expected { group: "x".into(), ..expected() },
                Expected { segment_bytes: 1, ..expected() },
            ] {
                let error = Directory::open(&env, dir, &wrong).await.unwrap_err();
                assert!(matches!(error, IdentityError::Mismatch { .. }), "{error}");
            }
            Directory::open(&env, dir, &expected()).await.unwrap();
        });
    }

    #[test]
    fn only_a_machine_that_went_down_and_flushed_by_a_timer_puts_on_probation() {
        run(async {
            let rng = Rng::seeded(3);
            let disk = SimDisk::new(Rng::seeded(3));
            let dir = Path::new("/data");
            let open = async |flush_mode| {
                let env = Env::simulated(3, disk.clone());
                Directory::open(&env, dir, &Expected { flush_mode, ..expected() }).await.unwrap()
            };
            use FlushMode::{AsyncFlush, SyncFlush};
            assert!(!open(SyncFlush).await.identity().on_probation, "new");
            disk.crash(&rng);
            assert!(!open(AsyncFlush).await.identity().on_probation, "what it had was synced");
            disk.process_kill();
            assert!(!open(AsyncFlush).await.identity().on_probation, "the machine stayed up");
            disk.crash(&rng);
            assert!(open(SyncFlush).await.identity().on_probation, "whatever it is to be from now on");
            disk.process_kill();
            let again = open(AsyncFlush).await;
            assert!(again.identity().on_probation, "it has not caught up");
            again.has_caught_up().await.unwrap();
            again.stopped_cleanly().await.unwrap();
            drop(again);
            disk.crash(&rng);
            assert!(!open(AsyncFlush).await.identity().on_probation, "it had stopped cleanly");
        });
    }

    fn identity() -> impl Strategy<Value = Identity> {
        let founders = proptest::collection::vec((any::<u64>(), 1u16..60000), 0..5)
            .prop_map(|set| set.into_iter().map(|(id, port)| Founder { id, node: node(port) }).collect());
        let belongs = prop_oneof![
            Just(Belongs::NotYet),
            any::<u64>().prop_map(|since| Belongs::Member { since }),
            Just(Belongs::Left),
        ];
        let founders = (proptest::option::of(founders), belongs);
        (".{0,20}", ".{0,20}", any::<u64>(), any::<u64>(), any::<[bool; 4]>(), founders).prop_map(
            |(cluster, group, node_id, segment_bytes, flags, (founding_set, belongs))| {
                let [clean_stop, log_made, on_probation, is_async] = flags;
                Identity {
                    cluster,
                    group,
                    node_id,
                    segment_bytes,
                    boot_id: "b".into(),
                    clean_stop,
                    log_made,
                    flush_mode: if is_async { FlushMode::AsyncFlush } else { FlushMode::SyncFlush },
                    on_probation,
                    node: node(9),
                    founding_set,
                    belongs,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn comes_back_equal_and_no_flipped_bit_is_believed(identity in identity(), at in any::<usize>(), bit in 0..8) {
            let bytes = encode(&identity);
            prop_assert!(decode(bytes.clone()).is_ok_and(|read| read == identity));
            let mut flipped = bytes.to_vec();
            let at = at % flipped.len();
            flipped[at] ^= 1u8 << bit;
            prop_assert!(decode(Bytes::from(flipped)).is_err());
        }
    }
}
