//! The materializer makes applied state durable, in *derived syncs*, and a start finds it again.
//!
//! A derived sync up to entry N: the log is synced to N; then ConsumeQueue units and index rows up to N are written and
//! synced; only then the merged rows go to the keyed store, as one batch with N. So after any crash the keyed store is
//! never ahead of log, ConsumeQueue or index, and replaying the log from N gives the state that was lost.
//!
//! It happens every 10 s, every 256 MiB of log, every 64 MiB of changes, and exactly at each `Checkpoint`, whose image is
//! then the content of the keyed store. One future on a thread of its own; apply waits for it only when the merged set
//! is full.
//!
//! ```text
//! state/          the keyed store: rows, and N
//! checkpoint/     images
//! consumequeue/   units; `floors`: first units that exist here, if an image was ever installed (see `Floors`)
//! index/          by-reference rows, and rows of keys
//! rebuild         there while all of the above, but images, is to be made anew
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use env::Env;
use env::disk::Open;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};

use crate::codec::{self, Decode, Encode};
use crate::consume_queue::{
    Damage, Queue, Rebuild, RebuildFrom, Restored, UNIT_BYTES, UNITS_PER_FILE, UnitFiles, aside, note_rebuild,
    noted_rebuild, read_file, replace_file,
};
use crate::fold::changes::Changes;
use crate::fold::core::{Core, CoreRows};
use crate::fold::rows::{self, MembershipRow};
use crate::fold::shared::{Shared, SharedFiles};
use crate::fold::{CLUSTER_VERSION, CheckpointPoint, FIRST_TABLES_BYTE, RowError, Tables};
use crate::image::{self, Head, Image, Reading};
use crate::index::{self, Index, IndexRow, KeyRow};
use crate::keyed::{self, KeyedStore, LOCAL, Row};
use crate::log::{Boundary, Log};
use crate::planted::{self, Bug};
use crate::position::{LogId, QueueId, QueueOffset};
use crate::raft::types::{Membership, decode_membership};

/// Queues whose units are written before they are synced, together.
const QUEUES_AT_ONCE: usize = 128;

/// Every queue with units in memory may keep this many, whatever the bound of all together.
const RECENT_UNITS_LEAST: usize = 16;

/// Rows are read from the keyed store in pieces of about this size.
const PIECE_BYTES: usize = 1 << 20;

/// Row of the keyed store: the sequence numbers of the index's parts. Local: every replica merges at its own time.
pub(crate) const INDEX_PARTS: [u8; 2] = [LOCAL, 0];

/// Row of the keyed store: the same for the rows of keys.
pub(crate) const KEY_PARTS: [u8; 2] = [LOCAL, 2];

/// Row of the keyed store: the newest checkpoint whose rows are in. Local: a crash between them and its image leaves the
/// image owed, which the next start pays.
const CHECKPOINT: [u8; 2] = [LOCAL, 1];

/// How derived state is laid out and bounded.
#[derive(Clone, Debug)]
pub struct DerivedOptions {
    /// The log's segment size; written in images, refused if it differs.
    pub segment_bytes: u64,
    /// A derived sync starts after this long,
    pub sync_interval_ms: u64,
    /// or after this much log,
    pub sync_log_bytes: u64,
    /// or when this much has changed. Apply waits once as much again has changed during a derived sync.
    pub sync_changed_bytes: usize,
    /// ConsumeQueue units kept in memory after they are durable, all queues together.
    pub recent_units_bytes: usize,
    /// Which keys the messages of the last so many milliseconds have is known without a look at the disk.
    pub recent_keys_ms: i64,
}

impl Default for DerivedOptions {
    fn default() -> DerivedOptions {
        DerivedOptions {
            segment_bytes: 1 << 30,
            sync_interval_ms: 10_000,
            sync_log_bytes: 256 << 20,
            sync_changed_bytes: 64 << 20,
            recent_units_bytes: 4 << 20,
            recent_keys_ms: 120_000,
        }
    }
}

/// What derived syncs did since the start, for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub struct DerivedStats {
    /// Derived syncs.
    pub syncs: u64,
    /// How long the last one took, with waiting for the log.
    pub last_sync_ms: u64,
    /// Changes that wait for the next one.
    pub waiting_bytes: u64,
    /// Images written.
    pub images_written: u64,
    /// Keyed stores that could not be used at the start and were moved aside.
    pub keyed_moved_aside: u64,
    /// Rebuilds, at the start, because a derived file was damaged or gone.
    pub rebuilds: u64,
}

/// Why the derived state did not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log was purged beyond what is left here, or does not reach it. Fetch an image, or repair the log.
    #[error("derived state at {derived:?} does not fit the log: {reason}")]
    DoesNotFit {
        /// N.
        derived: Option<Boundary>,
        /// Why.
        reason: String,
    },
    /// A row of a newer version, or options of another cluster.
    #[error("derived state: {0}")]
    Incompatible(String),
    /// The disk failed; trying again is allowed.
    #[error("derived state: {0}")]
    Io(#[from] io::Error),
}

impl OpenError {
    pub(crate) fn interrupted() -> OpenError {
        OpenError::Io(io::Error::other("the start was interrupted"))
    }
}

impl From<RowError> for OpenError {
    fn from(error: RowError) -> OpenError {
        OpenError::Incompatible(error.to_string())
    }
}

/// First units that exist here: an installed image has the bounds of queues, but not their units, and not the log either.
///
/// `consumequeue/floors`: CRC32C u32 of the rest, little-endian; the rest is `codec`'s.
#[derive(Clone, Debug, Default, Encode, Decode)]
pub(crate) struct Floors {
    /// The installed image.
    base: Option<LogId>,
    pub queues: BTreeMap<QueueId, QueueOffset>,
}

impl Floors {
    pub const NAME: &'static str = "floors";

    /// What the file says; nothing if there is none, `None` if it is damaged.
    pub async fn read(env: &Env, consume_queue: &Path) -> io::Result<Option<Floors>> {
        let Some(bytes) = read_file(env, &consume_queue.join(Floors::NAME)).await? else {
            return Ok(Some(Floors::default()));
        };
        let checked = bytes.split_first_chunk().filter(|(crc, rest)| u32::from_le_bytes(**crc) == crc32c::crc32c(rest));
        Ok(checked.and_then(|(_, rest)| codec::from_bytes(rest).ok()))
    }

    /// Whether `id` is the installed image: the log may not have been restarted behind it yet.
    pub fn is_installed_at(&self, id: LogId) -> bool {
        self.base == Some(id)
    }

    async fn write(&self, env: &Env, consume_queue: &Path) -> io::Result<()> {
        let value = codec::to_bytes(self);
        let mut bytes = crc32c::crc32c(&value).to_le_bytes().to_vec();
        bytes.extend(value);
        replace_file(env, &consume_queue.join(Floors::NAME), Bytes::from(bytes)).await
    }
}

/// Where things lie.
#[derive(Clone, Debug)]
struct Places {
    dir: PathBuf,
    checkpoint: PathBuf,
    consume_queue: PathBuf,
    index: PathBuf,
}

impl Places {
    fn new(dir: PathBuf) -> Places {
        Places {
            checkpoint: dir.join("checkpoint"),
            consume_queue: dir.join("consumequeue"),
            index: dir.join("index"),
            dir,
        }
    }
}

/// What is on disk beside the log, found before the log is opened.
pub struct Derived {
    env: Env,
    places: Places,
    options: DerivedOptions,
    /// Always there, but while a bad one is being replaced.
    keyed: Option<Box<dyn KeyedStore>>,
    floors: Floors,
    rebuild: Option<Rebuild>,
    newest: Option<Boundary>,
    stats: DerivedStats,
}

impl Derived {
    /// Finds the newest valid state under `dir` (`state/`, `checkpoint/`, `consumequeue/`, `index/`).
    pub async fn probe(env: &Env, dir: PathBuf, options: DerivedOptions) -> Result<Derived, OpenError> {
        let probed = env.executor.run("derived-probe", Derived::probe_here(env.clone(), Places::new(dir), options));
        probed.ended().await.ok_or_else(OpenError::interrupted)?
    }

    async fn probe_here(env: Env, places: Places, options: DerivedOptions) -> Result<Derived, OpenError> {
        for dir in [&places.checkpoint, &places.consume_queue, &places.index] {
            env.disk.create_dir_all(dir).await?;
            // A process that was killed may have left names that are not durable yet.
            env.disk.sync_dir(dir).await?;
        }
        env.disk.sync_dir(&places.dir).await?;
        if let Some(parent) = places.dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            env.disk.sync_dir(parent).await?;
        }
        let mut rebuild = noted_rebuild(&env, &places.dir).await?;
        let opened = keyed::open(&env, &places.dir).await?;
        let floors = Floors::read(&env, &places.consume_queue).await?;
        if floors.is_none() && rebuild.is_none() {
            note_rebuild(&env, &places.dir, Rebuild::Damaged).await?;
            rebuild = Some(Rebuild::Damaged);
        }
        let mut derived = Derived {
            newest: opened.store.boundary(),
            keyed: Some(opened.store),
            floors: floors.unwrap_or_default(),
            rebuild,
            stats: DerivedStats { keyed_moved_aside: u64::from(opened.moved_aside), ..DerivedStats::default() },
            env,
            places,
            options,
        };
        if let Some(Rebuild::Install(id)) = derived.rebuild {
            derived.resume_install(id).await?;
        }
        if !matches!(derived.rebuild, Some(Rebuild::Install(_)))
            && let Some(image) = derived.newest_image(derived.newest.map(|newest| newest.id.index)).await?
        {
            derived.newest = Some(image.boundary);
        }
        Ok(derived)
    }

    /// An install was begun. If its image has its name, it is finished later; else nothing has happened.
    async fn resume_install(&mut self, id: LogId) -> Result<(), OpenError> {
        match image::verify(&self.env, &self.image_path(id)).await {
            Ok((image, _)) => {
                self.newest = Some(image.boundary);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.rebuild = None;
                Ok(remove_rebuild_note(&self.env, &self.places).await?)
            }
            Err(error) => {
                tracing::error!("the image {id} that was being installed is damaged: {error}");
                note_rebuild(&self.env, &self.places.dir, Rebuild::Damaged).await?;
                self.rebuild = Some(Rebuild::Damaged);
                Ok(())
            }
        }
    }

    /// The newest image that is whole, if it lies behind `behind`. Damaged ones are removed: a peer has them too.
    async fn newest_image(&self, behind: Option<u64>) -> Result<Option<Image>, OpenError> {
        for id in image::list(&self.env, &self.places.checkpoint).await?.into_iter().rev() {
            if behind.is_some_and(|behind| id.index <= behind) {
                break;
            }
            if let Some(image) = self.whole_image(id).await? {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    async fn whole_image(&self, id: LogId) -> Result<Option<Image>, OpenError> {
        match image::verify(&self.env, &self.image_path(id)).await {
            Ok((image, head)) if image.boundary.id == id => check_head(&head, &self.options).map(|()| Some(image)),
            Err(error) if error.kind() == io::ErrorKind::Unsupported => Err(OpenError::Incompatible(error.to_string())),
            Err(error) if error.kind() != io::ErrorKind::InvalidData => Err(error.into()),
            damaged => {
                tracing::error!("image {id} is damaged and removed: {:?}", damaged.err());
                self.env.disk.remove_file(&self.image_path(id)).await?;
                Ok(None)
            }
        }
    }

    fn image_path(&self, id: LogId) -> PathBuf {
        self.places.checkpoint.join(image::name(id))
    }

    /// N: replay begins behind it, unless files turn out to be damaged.
    pub fn newest(&self) -> Option<Boundary> {
        self.newest
    }

    /// The floor for `Log::open`: the log was durable up to here, so a tail that ends before is corruption.
    ///
    /// None right after an image was installed, for the log may not have been restarted behind it yet.
    pub fn log_floor(&self) -> Option<LogId> {
        self.log_floor_boundary().map(|floor| floor.id)
    }

    /// The same with the place behind it.
    pub(crate) fn log_floor_boundary(&self) -> Option<Boundary> {
        let installing = matches!(self.rebuild, Some(Rebuild::Install(_)));
        let newest = self.newest?;
        (!installing && !self.floors.is_installed_at(newest.id)).then_some(newest)
    }

    /// Members as of N, if there are any: for who must ask them before the log is open.
    pub(crate) async fn members(&mut self) -> io::Result<Option<Membership>> {
        let row = self.keyed().rows(Some(&[rows::MEMBERSHIP - 1, 0xFF]), 1).await?.into_iter().next();
        let Some((_, value)) = row.filter(|(key, _)| *key == [rows::MEMBERSHIP]) else { return Ok(None) };
        let row: MembershipRow = codec::from_bytes(&value).map_err(io::Error::other)?;
        decode_membership(Bytes::from(row.bytes)).map(Some).map_err(io::Error::other)
    }

    pub(crate) fn env(&self) -> &Env {
        &self.env
    }

    /// Decides where replay begins, makes the files agree with that, and loads the rows.
    pub(crate) async fn settle<T: Tables>(mut self, log: &Log, tables: &mut T) -> Result<Settled, OpenError> {
        match self.rebuild {
            Some(Rebuild::Install(id)) => {
                let path = self.image_path(id);
                self.reset(Some(&path)).await?;
            }
            Some(Rebuild::Damaged) => self.rebuild_from_log(log).await?,
            Some(Rebuild::Diverged(from)) => self.rebuild_from_agreed(from, log).await?,
            None => self.take_newer_image().await?,
        }
        // The second round follows a rebuild, after which there is nothing left to be wrong.
        let mut error = None;
        for _ in 0..3 {
            match self.load(tables).await {
                Ok(loaded) => {
                    self.check_fits(log).await?;
                    let dir = self.places.checkpoint.clone();
                    let images = Arc::new(Images { env: self.env.clone(), dir, known: Mutex::default() });
                    images.list().await?;
                    return Ok(Settled { derived: self, loaded, images });
                }
                Err(LoadError::Open(error)) => return Err(error),
                Err(LoadError::Keyed(bad)) => {
                    // Closed before its directory is moved, lest it writes to the next one.
                    self.keyed = None;
                    self.keyed = Some(keyed::open_afresh(&self.env, &self.places.dir, &bad).await?);
                    self.stats.keyed_moved_aside += 1;
                    self.take_newer_image().await?;
                    error = Some(bad);
                }
                Err(LoadError::Files(what)) => {
                    tracing::error!("derived state is damaged and rebuilt: {what}");
                    note_rebuild(&self.env, &self.places.dir, Rebuild::Damaged).await?;
                    self.rebuild_from_log(log).await?;
                    error = Some(io::Error::new(io::ErrorKind::InvalidData, what));
                }
            }
            tables.clear();
        }
        Err(OpenError::Io(error.expect("three rounds failed")))
    }

    /// If an image is newer than the keyed store, which was lost then, its rows are the store's. Units and index rows up
    /// to it are there: they were durable before the image was.
    async fn take_newer_image(&mut self) -> Result<(), OpenError> {
        let keyed = self.keyed().boundary().map(|boundary| boundary.id.index);
        if let Some(image) = self.newest_image(keyed).await? {
            let env = self.env.clone();
            let keyed = self.keyed();
            keyed.clear().await?;
            fill(&env, keyed, &image.path, |_, _| Ok(())).await?;
            keyed.write(Vec::new(), image.boundary).await?;
        }
        Ok(())
    }

    fn keyed(&mut self) -> &mut dyn KeyedStore {
        &mut **self.keyed.as_mut().expect("no store is being replaced")
    }

    /// Everything anew from the oldest entry that the log still has, or from the image that the log was purged to.
    async fn rebuild_from_log(&mut self, log: &Log) -> Result<(), OpenError> {
        self.stats.rebuilds += 1;
        let mut base = None;
        if let Some(purged) = log.last_purged() {
            for id in image::list(&self.env, &self.places.checkpoint).await? {
                if id.index >= purged.index && base.is_none() {
                    base = self.whole_image(id).await?;
                }
            }
            if base.is_none() {
                let reason = format!("the log begins behind {purged} and there is no image to go with it");
                return Err(OpenError::DoesNotFit { derived: None, reason });
            }
        }
        let path = base.as_ref().map(|base| base.path.as_path());
        self.reset(path).await
    }

    /// The same, from what a majority agreed on. The images made since are as wrong as the state: they are made anew on the
    /// way.
    async fn rebuild_from_agreed(&mut self, from: RebuildFrom, log: &Log) -> Result<(), OpenError> {
        self.stats.rebuilds += 1;
        let purged = log.last_purged();
        let base = match from {
            RebuildFrom::Log if purged.is_none() => Ok(None),
            RebuildFrom::Image(id) if purged.is_none_or(|purged| purged.index <= id.index) => {
                self.whole_image(id).await?.map(Some).ok_or(())
            }
            _ => Err(()),
        };
        let Ok(base) = base else {
            let reason = "a majority has another state, and nothing agreed is left here to begin with: replaceNode";
            return Err(OpenError::DoesNotFit { derived: self.newest, reason: reason.to_owned() });
        };
        let behind = base.as_ref().map(|base| base.boundary.id.index);
        for id in image::list(&self.env, &self.places.checkpoint).await? {
            if behind.is_none_or(|behind| id.index > behind) {
                self.env.disk.remove_file(&self.image_path(id)).await?;
            }
        }
        self.env.disk.sync_dir(&self.places.checkpoint).await?;
        self.reset(base.as_ref().map(|base| base.path.as_path())).await
    }

    async fn reset(&mut self, image: Option<&Path>) -> Result<(), OpenError> {
        let (env, places) = (self.env.clone(), self.places.clone());
        reset(&env, &places, self.keyed(), image).await?;
        self.rebuild = None;
        let floors = Floors::read(&self.env, &self.places.consume_queue).await?;
        self.floors = floors.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "floors, just written"))?;
        Ok(())
    }

    /// Reads all rows, and looks whether the files that should be there are.
    async fn load<T: Tables>(&mut self, tables: &mut T) -> Result<Loaded, LoadError> {
        let (mut core, mut checkpoint) = (CoreRows::default(), None);
        let (mut parts, mut key_parts) = (None, None);
        let mut after: Option<Vec<u8>> = None;
        loop {
            let rows = self.keyed().rows(after.as_deref(), PIECE_BYTES).await.map_err(LoadError::Keyed)?;
            let Some((last, _)) = rows.last() else { break };
            after = Some(last.clone());
            // A store with rows but without N was being filled.
            if self.keyed().boundary().is_none() {
                return Err(LoadError::Keyed(io::Error::new(io::ErrorKind::InvalidData, "rows without a position")));
            }
            for (key, value) in &rows {
                let bad = |error| LoadError::Keyed(io::Error::other(error));
                match key.as_slice() {
                    key if key == INDEX_PARTS => parts = Some(codec::from_bytes::<Vec<u64>>(value).map_err(bad)?),
                    key if key == KEY_PARTS => key_parts = Some(codec::from_bytes::<Vec<u64>>(value).map_err(bad)?),
                    key if key == CHECKPOINT => checkpoint = Some(codec::from_bytes::<LogId>(value).map_err(bad)?),
                    key => restore(&mut core, tables, key, value)?,
                }
            }
        }
        self.keyed().check().await.map_err(LoadError::Keyed)?;
        if core.cluster_version() > CLUSTER_VERSION {
            let what = format!("cluster version {} is unknown to this program", core.cluster_version());
            return Err(LoadError::Open(OpenError::Incompatible(what)));
        }
        let damage = Arc::new(Damage::new(self.env.clone(), self.places.dir.clone()));
        let files = UnitFiles::new(self.env.clone(), self.places.consume_queue.clone(), UNITS_PER_FILE, damage.clone());
        let present: BTreeSet<String> =
            files.queues_with_files().await.map_err(|error| LoadError::Open(error.into()))?.into_iter().collect();
        for (id, row) in &core.queues {
            if row.next > self.floor(*id).max(row.min) && !present.contains(&id.to_string()) {
                return Err(LoadError::Files(format!("queue {id} has no files")));
            }
        }
        if parts.is_some() && key_parts.is_none() {
            return Err(LoadError::Files("the index is from a release that put no keys into it".to_owned()));
        }
        let unopened = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData | io::ErrorKind::NotFound => LoadError::Files(error.to_string()),
            _ => LoadError::Open(error.into()),
        };
        let (env, dir) = (&self.env, &self.places.index);
        let index = Index::open(env.clone(), dir.clone(), damage.clone(), parts.as_deref()).await.map_err(unopened)?;
        let keys = Index::open(env.clone(), dir.clone(), damage, key_parts.as_deref()).await.map_err(unopened)?;
        keys.remember(self.options.recent_keys_ms).await.map_err(unopened)?;
        let owed_image = match (checkpoint, self.keyed().boundary()) {
            (Some(checkpoint), Some(boundary)) if checkpoint == boundary.id => {
                let images = image::list(&self.env, &self.places.checkpoint).await;
                !images.map_err(|error| LoadError::Open(error.into()))?.contains(&checkpoint)
            }
            _ => false,
        };
        Ok(Loaded { rows: core, index, keys, owed_image })
    }

    fn floor(&self, queue: QueueId) -> QueueOffset {
        self.floors.queues.get(&queue).copied().unwrap_or_default()
    }

    /// The log must hold what follows N, and N itself must be an entry of it.
    async fn check_fits(&mut self, log: &Log) -> Result<(), OpenError> {
        let derived = self.keyed().boundary();
        let purged = log.last_purged();
        let refused = |reason: String| Err(OpenError::DoesNotFit { derived, reason });
        let Some(boundary) = derived else {
            return match purged {
                None => Ok(()),
                Some(purged) => refused(format!("the log begins behind {purged}")),
            };
        };
        let behind = |at: Option<LogId>| at.is_none_or(|at| at.index < boundary.id.index);
        if self.floors.base == Some(boundary.id) && behind(purged) {
            // The process ended between the installation and this.
            log.restart_at(boundary).await?;
        }
        match log.last_purged() {
            Some(purged) if purged.index > boundary.id.index => refused(format!("the log begins behind {purged}")),
            _ if behind(log.last()) => refused(format!("the log ends at {:?}", log.last())),
            _ => match log.id_at(boundary.id.index) {
                Some(id) if id != boundary.id => refused(format!("the log has {id} in that place")),
                _ => Ok(()),
            },
        }
    }
}

/// Why rows could not be loaded.
enum LoadError {
    /// The keyed store is not what was written.
    Keyed(io::Error),
    /// Units or index parts are not there.
    Files(String),
    /// Neither can be mended here.
    Open(OpenError),
}

impl From<RowError> for LoadError {
    fn from(error: RowError) -> LoadError {
        LoadError::Open(error.into())
    }
}

fn restore<T: Tables>(core: &mut CoreRows, tables: &mut T, key: &[u8], value: &[u8]) -> Result<(), RowError> {
    match key.first() {
        Some(table) if *table >= FIRST_TABLES_BYTE => tables.restore(key, value),
        _ => core.restore(key, value),
    }
}

/// Adds the rows of an image to a cleared store.
async fn fill(
    env: &Env,
    keyed: &mut dyn KeyedStore,
    image: &Path,
    mut each: impl FnMut(&[u8], &[u8]) -> Result<(), RowError>,
) -> Result<(), OpenError> {
    let mut reading = Reading::open(env, image).await?;
    while let Some(rows) = reading.rows().await? {
        for (key, value) in &rows {
            each(key, value)?;
        }
        keyed.fill(rows).await?;
    }
    Ok(())
}

/// Makes all derived files anew: empty, or from an image, whose queues then begin at their bounds. The note that this is
/// to be done is there, durably, and goes last: a crash at any moment has the next start do it again.
async fn reset(env: &Env, places: &Places, keyed: &mut dyn KeyedStore, image: Option<&Path>) -> Result<(), OpenError> {
    keyed.clear().await?;
    let damage = Arc::new(Damage::new(env.clone(), places.dir.clone()));
    UnitFiles::new(env.clone(), places.consume_queue.clone(), UNITS_PER_FILE, damage).remove_all().await?;
    index::remove_all(env, &places.index).await?;
    env::fault!("derived.reset_half_way");
    if let Some(path) = image {
        let boundary = Reading::open(env, path).await?.head.boundary;
        let mut core = CoreRows::default();
        fill(env, keyed, path, |key, value| match key.first() {
            Some(table) if *table < FIRST_TABLES_BYTE => core.restore(key, value),
            _ => Ok(()),
        })
        .await?;
        let queues = core.queues.into_iter().map(|(id, row)| (id, row.next)).collect();
        Floors { base: Some(boundary.id), queues }.write(env, &places.consume_queue).await?;
        keyed.write(Vec::new(), boundary).await?;
    }
    Ok(remove_rebuild_note(env, places).await?)
}

async fn remove_rebuild_note(env: &Env, places: &Places) -> io::Result<()> {
    env.disk.remove_file(&places.dir.join(Damage::NAME)).await?;
    env.disk.sync_dir(&places.dir).await
}

fn check_head(head: &Head, options: &DerivedOptions) -> Result<(), OpenError> {
    if head.segment_bytes != options.segment_bytes {
        let what = format!("image of a cluster with {}-byte segments", head.segment_bytes);
        return Err(OpenError::Incompatible(what));
    }
    if head.group.cluster_version > CLUSTER_VERSION {
        let what = format!("image of cluster version {}", head.group.cluster_version);
        return Err(OpenError::Incompatible(what));
    }
    Ok(())
}

/// What a start reads from the keyed store.
struct Loaded {
    rows: CoreRows,
    index: Index<IndexRow>,
    keys: Index<KeyRow>,
    /// N is a checkpoint without its image.
    owed_image: bool,
}

/// Files and rows that agree.
pub(crate) struct Settled {
    derived: Derived,
    loaded: Loaded,
    images: Arc<Images>,
}

impl Settled {
    /// Makes the working state, and starts the materializer.
    pub fn start(self, log: Log) -> (Arc<Shared>, Core, Materializer) {
        let Settled { derived, loaded: Loaded { rows, index, keys, owed_image }, images } = self;
        let Derived { env, places, options, keyed, floors, stats, .. } = derived;
        let damage = index.damage();
        let files = UnitFiles::new(env.clone(), places.consume_queue.clone(), UNITS_PER_FILE, damage);
        let keyed = keyed.expect("no store is being replaced");
        let applied = keyed.boundary();
        let durable = applied.map(|applied| applied.id);
        let files = SharedFiles { units: Arc::new(files), index: Arc::new(index), keys: Arc::new(keys) };
        let shared = Arc::new(Shared::new(env.clone(), log, options, files, durable, stats));
        let floor = |id| floors.queues.get(&id).copied().unwrap_or_default();
        let core = Core::restored(shared.clone(), rows, applied, floor);
        images.publish(&shared);
        let (commands, received) = mpsc::unbounded_channel();
        let worker = Worker {
            shared: shared.clone(),
            places: places.clone(),
            images: images.clone(),
            keyed,
            recent: BTreeSet::new(),
            owed_image,
        };
        if owed_image {
            shared.wake.notify_one();
        }
        let running = env.executor.run("materializer", worker.run(received));
        (shared.clone(), core, Materializer { shared, places, images, commands, running })
    }
}

/// The images on disk. What was looked at once is remembered: they do not change.
struct Images {
    env: Env,
    dir: PathBuf,
    known: Mutex<BTreeMap<LogId, Image>>,
}

impl Images {
    /// Tells the hashes of all images.
    fn publish(&self, shared: &Shared) {
        let images = self.known.lock().iter().map(|(id, image)| (*id, image.hash)).collect();
        shared.state_hashes.send_modify(|hashes| hashes.images = images);
    }

    /// One more, complete.
    fn add(&self, image: Image, shared: &Shared) {
        self.known.lock().insert(image.boundary.id, image);
        self.publish(shared);
    }

    async fn list(&self) -> io::Result<Vec<Image>> {
        let mut images = Vec::new();
        for id in image::list(&self.env, &self.dir).await? {
            let known = self.known.lock().get(&id).cloned();
            let image = match known {
                Some(image) => image,
                None => match image::glance(&self.env, &self.dir.join(image::name(id))).await {
                    Ok(image) => image,
                    // Removed meanwhile, or damaged: not one to offer.
                    Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => {
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            self.known.lock().insert(id, image.clone());
            images.push(image);
        }
        Ok(images)
    }

    /// Removes the images before `newest` whose checkpoint the log can no longer be trimmed to, but not the one that goes
    /// with the beginning of the log: if derived files are ever damaged, they are rebuilt from there, and from a later one
    /// units would be missing.
    async fn prune(&self, newest: LogId, kept: &[CheckpointPoint], purged: Option<LogId>) -> io::Result<()> {
        let ids = image::list(&self.env, &self.dir).await?;
        let base = purged.and_then(|purged| ids.iter().find(|id| id.index >= purged.index).copied());
        let is_kept = |id: &LogId| kept.iter().any(|point| point.id == *id) || Some(*id) == base;
        for id in ids.iter().filter(|id| id.index < newest.index && !is_kept(id)) {
            self.known.lock().remove(id);
            self.env.disk.remove_file(&self.dir.join(image::name(*id))).await?;
        }
        Ok(())
    }
}

enum Command {
    Sync(oneshot::Sender<io::Result<()>>),
    Install(Image, Vec<(Arc<Queue>, Restored)>, oneshot::Sender<io::Result<()>>),
    Close(oneshot::Sender<io::Result<()>>),
}

/// An image from a peer, verified, durable, not yet under its name.
pub(crate) struct Received {
    pub image: Image,
    pub core: CoreRows,
    pub tables: Vec<Row>,
}

/// The fold's handle. Dropping it stops the materializer where it is, as a crash would.
pub(crate) struct Materializer {
    shared: Arc<Shared>,
    places: Places,
    images: Arc<Images>,
    commands: mpsc::UnboundedSender<Command>,
    running: env::executor::Running<()>,
}

impl Materializer {
    /// Images on disk, oldest first.
    pub async fn images(&self) -> io::Result<Vec<Image>> {
        let images = self.images.clone();
        aside(&self.shared.env, async move { images.list().await }).await
    }

    /// Makes everything applied so far durable.
    pub async fn sync(&self) -> io::Result<()> {
        self.ask(Command::Sync).await
    }

    /// A last sync; then the future has ended and the keyed store is closed.
    pub async fn close(self) -> io::Result<()> {
        let closed = self.ask(Command::Close).await;
        self.running.ended().await;
        closed
    }

    /// Ends as a killed process would, beginning no further sync. Resolves when nothing of it runs.
    pub async fn kill(self) {
        drop(self.commands);
        self.running.ended().await;
    }

    async fn ask(&self, command: impl FnOnce(oneshot::Sender<io::Result<()>>) -> Command) -> io::Result<()> {
        let (reply, answer) = oneshot::channel();
        // If nobody listens any more the answer says why.
        let _ = self.commands.send(command(reply));
        answer.await.unwrap_or_else(|_| {
            let failure = self.shared.failure.borrow().clone();
            Err(io::Error::other(failure.unwrap_or_else(|| "the materializer has ended".to_owned())))
        })
    }

    /// Writes an image from a peer beside, and verifies it.
    pub async fn receive_image(&self, bytes: Bytes, applied: Option<Boundary>) -> io::Result<Received> {
        let (env, places, options) = (self.shared.env.clone(), self.places.clone(), self.shared.options.clone());
        let received = async move {
            let path = places.checkpoint.join("received.new");
            let file = env.disk.open(&path, Open::OrCreate).await?;
            file.set_len(0).await?;
            file.write_at(0, &[bytes]).await?;
            file.sync_data().await?;
            let (image, head) = image::verify(&env, &path).await?;
            check_head(&head, &options).map_err(io::Error::other)?;
            if applied.is_some_and(|applied| image.boundary.id.index <= applied.id.index) {
                let what = format!("image at {} is older than what is applied", image.boundary.id);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
            let (mut core, mut tables) = (CoreRows::default(), Vec::new());
            let mut reading = Reading::open(&env, &path).await?;
            while let Some(rows) = reading.rows().await? {
                for (key, value) in rows {
                    match key[0] < FIRST_TABLES_BYTE {
                        true => core.restore(&key, &value).map_err(io::Error::other)?,
                        false => tables.push((key, value)),
                    }
                }
            }
            Ok(Received { image, core, tables })
        };
        aside(&self.shared.env, received).await
    }

    /// Gives a received image its name and replaces all derived files by it. `replaced`: what readers see of the queues.
    pub async fn install(&self, image: Image, replaced: Vec<(Arc<Queue>, Restored)>) -> io::Result<Image> {
        let named = Image { path: self.places.checkpoint.join(image::name(image.boundary.id)), ..image.clone() };
        let (env, places, to) = (self.shared.env.clone(), self.places.clone(), named.clone());
        aside(&self.shared.env, async move {
            note_rebuild(&env, &places.dir, Rebuild::Install(to.boundary.id)).await?;
            env.disk.rename(&image.path, &to.path).await?;
            env.disk.sync_dir(&places.checkpoint).await
        })
        .await?;
        let installed = named.clone();
        self.ask(|reply| Command::Install(installed, replaced, reply)).await?;
        Ok(named)
    }
}

/// The materializer itself.
struct Worker {
    shared: Arc<Shared>,
    places: Places,
    images: Arc<Images>,
    keyed: Box<dyn KeyedStore>,
    /// Queues with units in memory that are in files too.
    recent: BTreeSet<QueueId>,
    /// The keyed store stands at a checkpoint whose image is not written yet.
    owed_image: bool,
}

impl Worker {
    async fn run(mut self, mut commands: mpsc::UnboundedReceiver<Command>) {
        let clock = self.shared.env.clock.clone();
        let interval = Duration::from_millis(self.shared.options.sync_interval_ms);
        let mut next_sync = clock.monotonic() + interval;
        loop {
            let timer = clock.sleep(next_sync.saturating_sub(clock.monotonic()));
            let result = tokio::select! {
                biased;
                command = commands.recv() => match command {
                    None => return,
                    Some(Command::Sync(reply)) => answer(reply, self.sync_all().await),
                    Some(Command::Install(image, replaced, reply)) => answer(reply, self.install(image, replaced).await),
                    Some(Command::Close(reply)) => {
                        let closed = self.sync_all().await;
                        if let Err(error) = &closed {
                            self.shared.fail(&error.to_string());
                        }
                        // The store is closed before the caller goes on, for it may open it again.
                        drop(self);
                        let _ = reply.send(closed);
                        return;
                    }
                },
                _ = self.shared.wake.notified() => self.sync_if_due().await,
                _ = timer => {
                    let synced = self.sync_all().await;
                    next_sync = clock.monotonic() + interval;
                    synced
                }
            };
            if let Err(error) = result {
                // A failed write or sync is never retried: nothing is known of what it left.
                tracing::error!("the derived state cannot be written, the replica must stop: {error}");
                self.shared.fail(&error.to_string());
                return;
            }
        }
    }

    /// Makes durable what is applied by now. Not what comes meanwhile: under load that would never end, in ever smaller sets.
    async fn sync_all(&mut self) -> io::Result<()> {
        self.pay_image().await?;
        let last = self.shared.handoff.lock().upto();
        while *self.shared.durable.borrow() < last && self.sync_next().await? {}
        Ok(())
    }

    /// Syncs while a checkpoint waits or the accumulated changes are many.
    async fn sync_if_due(&mut self) -> io::Result<()> {
        self.pay_image().await?;
        loop {
            let due = {
                let handoff = self.shared.handoff.lock();
                let options = &self.shared.options;
                !handoff.sealed.is_empty()
                    || handoff.accumulating.log_bytes() >= options.sync_log_bytes
                    || handoff.accumulating.weight_bytes() >= options.sync_changed_bytes
            };
            if !due || !self.sync_next().await? {
                return Ok(());
            }
        }
    }

    /// One derived sync, of the oldest set of changes that waits. False if none does.
    async fn sync_next(&mut self) -> io::Result<bool> {
        let Some(changes) = self.shared.handoff.lock().take() else { return Ok(false) };
        self.shared.taken.notify_waiters();
        let began = self.shared.env.clock.monotonic();
        let (units, keys) = (changes.unit_count, changes.key_rows.len());
        let (rows, log_bytes) = (changes.row_count(), changes.log_bytes());
        self.sync(changes).await?;
        let took = self.shared.env.clock.monotonic() - began;
        tracing::debug!(units, keys, rows, log_bytes, ?took, "derived state synced");
        let mut stats = self.shared.stats.lock();
        stats.syncs += 1;
        stats.last_sync_ms = took.as_millis() as u64;
        Ok(true)
    }

    async fn sync(&mut self, mut changes: Changes) -> io::Result<()> {
        let upto = changes.upto.expect("a set that was taken ends at an entry");
        assert!(!self.owed_image, "rows go on only when the image of their checkpoint is written");
        self.owed_image = changes.checkpoint;
        if !planted::is(Bug::DerivedPastSynced) {
            self.shared.log.wait_synced(upto.id.index).await?;
        }
        env::fault!("derived.log_synced");

        let grown: Vec<(Arc<Queue>, QueueOffset)> = {
            let queues = self.shared.queues.read();
            changes.queues.iter().map(|(id, row)| (queues[id].clone(), row.next)).collect()
        };
        if !planted::is(Bug::KeyedBeforeUnits) {
            self.write_units(&grown).await?;
        }
        let min_physical = changes.min_physical();
        let sealed = self.shared.index.seal(std::mem::take(&mut changes.index_rows), min_physical).await?;
        let keys_sealed = self.shared.keys.seal(std::mem::take(&mut changes.key_rows), min_physical).await?;
        env::fault!("derived.units_synced");
        let begun: Vec<_> = changes.queues.iter().map(|(id, row)| (*id, row.min)).collect();

        let mut rows = changes.into_rows();
        rows.push((INDEX_PARTS.to_vec(), Some(codec::to_bytes(&sealed.parts))));
        rows.push((KEY_PARTS.to_vec(), Some(codec::to_bytes(&keys_sealed.parts))));
        if self.owed_image {
            rows.push((CHECKPOINT.to_vec(), Some(codec::to_bytes(&upto.id))));
        }
        self.keyed.write(rows, upto).await?;
        env::fault!("derived.rows_written");
        if planted::is(Bug::KeyedBeforeUnits) {
            self.write_units(&grown).await?;
        }
        self.shared.index.remove(&sealed.merged_away).await?;
        self.shared.keys.remove(&keys_sealed.merged_away).await?;
        self.units_are_durable(&grown);
        self.became_durable(upto);
        self.shared.files.remove_below(&begun).await?;

        self.pay_image().await
    }

    /// Makes the units durable that these queues have up to these ends.
    async fn write_units(&self, grown: &[(Arc<Queue>, QueueOffset)]) -> io::Result<()> {
        for some in grown.chunks(QUEUES_AT_ONCE) {
            let ranges: Vec<_> = some
                .iter()
                .map(|(queue, end)| {
                    let (from, units) = queue.unwritten(*end);
                    (queue.id(), from, units)
                })
                .filter(|(_, _, units)| !units.is_empty())
                .collect();
            self.shared.files.write(&ranges).await?;
        }
        Ok(())
    }

    /// Writes the image of the checkpoint at which the keyed store stands, if it is owed.
    async fn pay_image(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.owed_image) {
            env::fault!("checkpoint.before_write");
            let options = &self.shared.options;
            let env = &self.shared.env;
            let image = image::write(env, &self.places.checkpoint, options.segment_bytes, &mut *self.keyed).await?;
            let kept = self.shared.checkpoints.lock().clone();
            self.images.prune(image.boundary.id, &kept, self.shared.log.last_purged()).await?;
            self.images.add(image, &self.shared);
            self.shared.stats.lock().images_written += 1;
        }
        Ok(())
    }

    fn units_are_durable(&mut self, grown: &[(Arc<Queue>, QueueOffset)]) {
        for (queue, end) in grown {
            queue.became_durable(*end);
            self.recent.insert(queue.id());
        }
        let units = self.shared.options.recent_units_bytes / UNIT_BYTES;
        let each = (units / self.recent.len().max(1)).max(RECENT_UNITS_LEAST);
        let queues = self.shared.queues.read();
        self.recent.retain(|id| queues[id].trim(each) > 0);
    }

    fn became_durable(&self, upto: Boundary) {
        let synced = self.shared.log.synced().borrow().index;
        assert!(synced >= Some(upto.id.index), "durable {} is beyond the synced log {synced:?}", upto.id);
        let applied = *self.shared.applied.borrow();
        assert!(applied >= Some(upto.id), "durable {} is beyond applied {applied:?}", upto.id);
        let before = self.shared.durable.send_replace(Some(upto.id));
        assert!(before < Some(upto.id), "durable goes back from {before:?} to {}", upto.id);
    }

    async fn install(&mut self, image: Image, replaced: Vec<(Arc<Queue>, Restored)>) -> io::Result<()> {
        self.owed_image = false;
        self.shared.handoff.lock().clear();
        self.shared.taken.notify_waiters();
        // Readers look for no unit any more whose file is about to go.
        for (queue, restored) in replaced {
            queue.replace(restored);
        }
        self.recent.clear();
        self.shared.files.forget();
        self.shared.index.forget();
        self.shared.keys.forget();
        reset(&self.shared.env, &self.places, &mut *self.keyed, Some(&image.path)).await.map_err(io::Error::other)?;
        self.shared.files.forget();
        self.shared.durable.send_replace(Some(image.boundary.id));
        self.images.add(image, &self.shared);
        Ok(())
    }
}

impl Drop for Worker {
    /// Whoever waits for the materializer must not wait for a dead one.
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.shared.fail("the materializer panicked");
        }
    }
}

/// Tells the asker; the worker itself must know of a failure too.
fn answer(reply: oneshot::Sender<io::Result<()>>, result: io::Result<()>) -> io::Result<()> {
    let told = match &result {
        Ok(()) => Ok(()),
        Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
    };
    let _ = reply.send(told);
    result
}
