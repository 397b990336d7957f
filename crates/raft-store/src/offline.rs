//! A data directory as it lies on the disk, looked at while nobody runs it: [`Offline::verify`] reads all of it and says
//! what is wrong, the others show what is in it. Nothing here ever writes to the directory.
//!
//! The keyed store is the one part that cannot be opened without being written to: a copy of it is opened, in a place
//! that the caller names.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use env::Env;
use env::disk::{Lock, Open};
use futures::FutureExt;

use crate::codec;
use crate::consume_queue::{Damage, UNIT_BYTES, UNITS_PER_FILE, Unit, noted_rebuild};
use crate::fold::rows::{self, QueueRow};
use crate::identity::{self, IDENTITY, Identity, IdentityError, LOCK};
use crate::image;
use crate::index::{self, IndexRow, KeyRow};
use crate::keyed::{self, Row};
use crate::log::survey::{self, Files, Gap, Step, Survey};
use crate::log::{Boundary, Frame, Kind as FrameKind, OpenError, points, segment};
use crate::materializer::{Floors, INDEX_PARTS, KEY_PARTS};
use crate::position::{LogId, PhysicalOffset, QueueId, QueueOffset, TopicId};
use crate::repair;

/// Read at once from files that are looked at from end to end.
const PIECE_BYTES: usize = 1 << 20;

/// Rows are read from the keyed store in pieces of about this size.
const ROWS_BYTES: usize = 1 << 20;

/// Why a directory is not looked at.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// There is none, or it is none.
    #[error("{dir}: not the data directory of a replica ({reason})")]
    NotOne {
        /// The directory.
        dir: PathBuf,
        /// Why.
        reason: String,
    },
    /// Somebody holds its LOCK.
    #[error("{dir}: its node runs; stop that first, or look at a copy of the directory")]
    Running {
        /// The directory.
        dir: PathBuf,
    },
    /// What was asked for cannot be shown, because what leads there is damaged or gone.
    #[error("{0}")]
    Damaged(String),
    /// The disk failed.
    #[error("{what}: {source}")]
    Io {
        /// Where.
        what: String,
        /// What happened.
        source: io::Error,
    },
}

impl From<io::Error> for OfflineError {
    fn from(source: io::Error) -> OfflineError {
        OfflineError::Io { what: "reading the directory".to_owned(), source }
    }
}

/// What a directory consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// IDENTITY.
    Identity,
    /// `hard-state/`.
    HardState,
    /// The marks in the heads of segments.
    Marks,
    /// The frames of the log.
    Frames,
    /// The side files of full segments.
    SideFiles,
    /// `checkpoint/`.
    Images,
    /// `state/`.
    KeyedRows,
    /// `consumequeue/`.
    Units,
    /// `index/`.
    Index,
    /// What a replica has noted to be done at its next start.
    Notes,
}

impl Kind {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Identity => "identity",
            Kind::HardState => "hard-state",
            Kind::Marks => "marks",
            Kind::Frames => "frames",
            Kind::SideFiles => "side-files",
            Kind::Images => "images",
            Kind::KeyedRows => "keyed-rows",
            Kind::Units => "units",
            Kind::Index => "index",
            Kind::Notes => "notes",
        }
    }
}

/// What happens about damage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// It is written again in the course of things; nothing depends on it.
    Rewritten,
    /// It is derived, and rebuilt from the log.
    Rebuilt,
    /// It is fetched from the peers.
    Peers,
    /// It cannot be mended here: the replica goes, another one comes.
    Replace,
}

impl Remedy {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Remedy::Rewritten => "rewritten",
            Remedy::Rebuilt => "rebuilt",
            Remedy::Peers => "peers",
            Remedy::Replace => "replace",
        }
    }

    /// In a sentence.
    pub fn explain(self) -> &'static str {
        match self {
            Remedy::Rewritten => {
                "Nothing depends on it; it is written again from what is whole at the next start or soon after."
            }
            Remedy::Rebuilt => {
                "It is derived. The replica rebuilds it from the log at the start after it has noticed; to have that \
                 done at the next start, create an empty file `rebuild` in the directory."
            }
            Remedy::Peers => {
                "It is fetched from the peers at the start after the replica has noticed; to have that done at the \
                 next start, create an empty file `repair` in the directory. A group of one has no peers: restore the \
                 directory from a backup."
            }
            Remedy::Replace => {
                "It cannot be mended: this replica must not start again. Replace it (replaceNode): a new replica on an \
                 empty directory joins, this one is removed from the group."
            }
        }
    }
}

/// Something that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// With what.
    pub kind: Kind,
    /// The file, from the directory on.
    pub file: String,
    /// Where in the file.
    pub offset: Option<u64>,
    /// Where in the log.
    pub physical_offset: Option<PhysicalOffset>,
    /// What it is.
    pub what: String,
    /// What happens about it.
    pub remedy: Remedy,
}

/// What was read of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Files.
    pub files: u64,
    /// Copies, slots, frames, images, rows, units or parts.
    pub items: u64,
    /// Bytes of them.
    pub bytes: u64,
}

/// All that was read, and all that is wrong.
#[derive(Debug, Default)]
pub struct Verification {
    /// Whose directory it is, if that can be read.
    pub identity: Option<Identity>,
    /// Of each kind.
    pub read: BTreeMap<Kind, Count>,
    /// In the order of the kinds.
    pub findings: Vec<Finding>,
    /// The last entry of the log.
    pub last: Option<LogId>,
    /// The entry up to which derived files are durable.
    pub applied: Option<LogId>,
}

impl Verification {
    fn count(&mut self, kind: Kind, files: u64, items: u64, bytes: u64) {
        let count = self.read.entry(kind).or_default();
        count.files += files;
        count.items += items;
        count.bytes += bytes;
    }

    fn find(&mut self, kind: Kind, file: impl Into<String>, offset: Option<u64>, what: impl ToString, remedy: Remedy) {
        let (file, what) = (file.into(), what.to_string());
        self.findings.push(Finding { kind, file, offset, physical_offset: None, what, remedy });
    }
}

/// Hears how far a look has come: what is read, and how much of how much of it.
pub type Progress<'a> = &'a (dyn Fn(Kind, u64, u64) + Sync);

/// A directory that nobody runs, for as long as this lives.
#[derive(Debug)]
pub struct Offline {
    pub(crate) env: Env,
    pub(crate) dir: PathBuf,
    /// `None` where there is no LOCK, so that nobody runs.
    pub(crate) lock: Option<Lock>,
}

impl Offline {
    /// Takes the directory, if it is one and its node does not run.
    pub async fn open(env: &Env, dir: &Path) -> Result<Offline, OfflineError> {
        let not_one = |reason: String| OfflineError::NotOne { dir: dir.to_owned(), reason };
        let names = env.disk.list(dir).await.map_err(|error| not_one(error.to_string()))?;
        let has = |wanted: &str| names.iter().any(|name| name.name == wanted);
        if !has(IDENTITY) && !has("commitlog") {
            return Err(not_one(format!("it has neither {IDENTITY} nor commitlog/")));
        }
        // Never made here: without one nobody runs.
        let lock = match has(LOCK) {
            false => None,
            true => match env.disk.lock(&dir.join(LOCK)).await {
                Ok(lock) => Some(lock),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return Err(OfflineError::Running { dir: dir.to_owned() });
                }
                // Where nothing can be written nobody runs either.
                Err(error) if error.kind() == io::ErrorKind::ReadOnlyFilesystem => None,
                Err(source) => return Err(OfflineError::Io { what: dir.join(LOCK).display().to_string(), source }),
            },
        };
        Ok(Offline { env: env.clone(), dir: dir.to_owned(), lock })
    }

    /// Reads everything. The keyed store is copied to `scratch`, an empty directory of the caller's; `None` if it is known
    /// to kill whoever opens it.
    pub async fn verify(&self, scratch: Option<&Path>, progress: Progress<'_>) -> Result<Verification, OfflineError> {
        let mut found = Verification::default();
        self.verify_identity(&mut found).await?;
        progress(Kind::KeyedRows, 0, 0);
        let keyed = self.verify_keyed(scratch, &mut found).await?;
        let boundary = keyed.as_ref().and_then(|keyed| keyed.boundary);
        found.applied = boundary.map(|boundary| boundary.id);
        self.verify_log(boundary, &mut found, progress).await?;
        self.verify_side_files(&mut found).await?;
        self.verify_images(&mut found, progress).await?;
        self.verify_units(keyed.as_ref(), &mut found, progress).await?;
        self.verify_index(keyed.as_ref(), &mut found, progress).await?;
        self.verify_notes(&mut found).await?;
        found.findings.sort_by(|a, b| (a.kind, &a.file, a.offset).cmp(&(b.kind, &b.file, b.offset)));
        Ok(found)
    }

    async fn verify_identity(&self, found: &mut Verification) -> Result<(), OfflineError> {
        match identity::read(&self.env, &self.dir).await {
            Ok(Some(identity)) => {
                found.count(Kind::Identity, 1, 1, 0);
                found.identity = Some(identity);
            }
            Ok(None) => found.find(Kind::Identity, IDENTITY, None, "there is no such file", Remedy::Replace),
            Err(IdentityError::Damaged { reason, .. }) => {
                found.find(Kind::Identity, IDENTITY, None, format!("damaged: {reason}"), Remedy::Replace);
            }
            Err(IdentityError::Io { source, .. }) => {
                found.find(Kind::Identity, IDENTITY, None, format!("cannot be read: {source}"), Remedy::Replace);
            }
            Err(other) => return Err(OfflineError::Damaged(other.to_string())),
        }
        Ok(())
    }

    async fn verify_log(
        &self,
        floor: Option<Boundary>,
        found: &mut Verification,
        progress: Progress<'_>,
    ) -> Result<(), OfflineError> {
        let is_made = found.identity.as_ref().is_none_or(|identity| identity.log_made);
        match survey::hard_state_of(&self.env, &self.dir).await {
            Ok((_, copies)) => {
                for (copy, name) in copies.into_iter().zip(["hard-state/a", "hard-state/b"]) {
                    found.count(Kind::HardState, 1, 1, 0);
                    if let Err(what) = copy {
                        found.find(Kind::HardState, name, Some(0), what, Remedy::Rewritten);
                    }
                }
            }
            // Not founded yet: there is nothing to lose.
            Err(OpenError::HardStateLost { .. }) if !is_made => return Ok(()),
            Err(OpenError::HardStateLost { reason }) => {
                found.find(Kind::HardState, "hard-state", None, reason, Remedy::Replace);
                return Ok(());
            }
            Err(other) => return Err(OfflineError::Damaged(other.to_string())),
        }
        let hear = |done, all| progress(Kind::Frames, done, all);
        let survey = match survey::survey(&self.env, &self.dir, floor, &hear).await {
            Ok(survey) => survey,
            Err(OpenError::HardStateLost { reason }) => {
                found.find(Kind::HardState, "hard-state", None, reason, Remedy::Replace);
                return Ok(());
            }
            Err(other) => return Err(OfflineError::Damaged(other.to_string())),
        };
        for slot in survey.files.slots().await {
            let file = format!("commitlog/{}", segment::file_name(slot.segment));
            match slot.mark {
                None => {}
                Some(Ok(_)) => found.count(Kind::Marks, 0, 1, segment::MARK_BYTES as u64),
                Some(Err(what)) => found.find(Kind::Marks, file, Some(slot.offset), what, Remedy::Rewritten),
            }
        }
        found.count(Kind::Frames, survey.files.segments.len() as u64, survey.frames, survey.bytes);
        found.last = survey.end.last;
        for gap in &survey.gaps {
            self.find_gap(&survey, gap, found);
        }
        if let Some(what) = &survey.contradiction {
            found.find(Kind::Frames, "commitlog", None, what, Remedy::Replace);
        }
        Ok(())
    }

    fn find_gap(&self, survey: &Survey, gap: &Gap, found: &mut Verification) {
        let at = gap.from.physical_offset;
        let layout = survey.files.layout;
        let is_tail = survey.is_known_by_floor && gap.to == survey.known.end.physical_offset;
        let tail_is_lost = is_tail && survey.end == survey.known;
        let what = match tail_is_lost {
            true => format!("{}; the end of the log is lost, and how much there was is unknown", gap.reason),
            false => format!("{}; {} bytes up to {} are not what was written", gap.reason, gap.to.0 - at.0, gap.to),
        };
        found.findings.push(Finding {
            kind: Kind::Frames,
            file: format!("commitlog/{}", segment::file_name(layout.segment_of(at))),
            offset: Some(layout.file_offset(at)),
            physical_offset: Some(at),
            what,
            remedy: if tail_is_lost { Remedy::Replace } else { Remedy::Peers },
        });
    }

    async fn verify_side_files(&self, found: &mut Verification) -> Result<(), OfflineError> {
        for name in self.names("commitlog").await? {
            if points::parse_side_file_name(&name).is_none() {
                continue;
            }
            let file = format!("commitlog/{name}");
            match self.read_whole(&file).await {
                Ok(bytes) if points::SideFile::decode(&bytes).is_some() => {
                    found.count(Kind::SideFiles, 1, 1, bytes.len() as u64);
                }
                Ok(_) => found.find(Kind::SideFiles, file, None, "the checksum does not hold", Remedy::Rewritten),
                Err(error) => found.find(Kind::SideFiles, file, None, error, Remedy::Rewritten),
            }
        }
        Ok(())
    }

    async fn verify_images(&self, found: &mut Verification, progress: Progress<'_>) -> Result<(), OfflineError> {
        let names = self.names("checkpoint").await?;
        let ids: Vec<(LogId, String)> =
            names.into_iter().filter_map(|name| Some((image::id_of_name(&name)?, name))).collect();
        for (done, (id, name)) in ids.iter().enumerate() {
            progress(Kind::Images, done as u64, ids.len() as u64);
            let file = format!("checkpoint/{name}");
            match image::verify(&self.env, &self.dir.join(&file)).await {
                Ok((image, _)) if image.boundary.id == *id => found.count(Kind::Images, 1, 1, image.len),
                Ok((image, _)) => {
                    let what = format!("it is the image of {}", image.boundary.id);
                    found.find(Kind::Images, file, None, what, Remedy::Rewritten);
                }
                Err(error) => found.find(Kind::Images, file, None, error, Remedy::Rewritten),
            }
        }
        Ok(())
    }

    async fn verify_keyed(
        &self,
        scratch: Option<&Path>,
        found: &mut Verification,
    ) -> Result<Option<Keyed>, OfflineError> {
        if !self.has("state").await? {
            return Ok(None);
        }
        let Some(scratch) = scratch else {
            found.find(Kind::KeyedRows, "state", None, "a program that opens it is killed by that", Remedy::Rebuilt);
            return Ok(None);
        };
        match self.read_keyed(scratch).await {
            // An image is written of rows: where there is one, there are rows.
            Ok(keyed) if keyed.rows.is_empty() && self.has_images().await? => {
                found.find(Kind::KeyedRows, "state", None, "it holds nothing, but an image is there", Remedy::Rebuilt);
                Ok(None)
            }
            Ok(keyed) => {
                let bytes = keyed.rows.iter().map(|(key, value)| (key.len() + value.len()) as u64).sum();
                found.count(Kind::KeyedRows, self.names("state").await?.len() as u64, keyed.rows.len() as u64, bytes);
                Ok(Some(keyed))
            }
            Err(error) => {
                found.find(Kind::KeyedRows, "state", None, error, Remedy::Rebuilt);
                Ok(None)
            }
        }
    }

    async fn has_images(&self) -> io::Result<bool> {
        Ok(self.names("checkpoint").await?.iter().any(|name| image::id_of_name(name).is_some()))
    }

    pub(crate) async fn read_keyed(&self, scratch: &Path) -> io::Result<Keyed> {
        self.copy(&self.dir.join("state"), &scratch.join("state")).await?;
        let mut store = keyed::open_in_place(&self.env, scratch).await?;
        let mut rows: Vec<Row> = Vec::new();
        loop {
            let after = rows.last().map(|(key, _)| key.clone());
            let read = store.rows(after.as_deref(), ROWS_BYTES).await?;
            if read.is_empty() {
                break;
            }
            rows.extend(read);
        }
        store.check().await?;
        let boundary = store.boundary();
        if boundary.is_none() && !rows.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "rows without a position"));
        }
        Ok(Keyed { boundary, rows })
    }

    async fn verify_units(
        &self,
        keyed: Option<&Keyed>,
        found: &mut Verification,
        progress: Progress<'_>,
    ) -> Result<(), OfflineError> {
        let floors = match Floors::read(&self.env, &self.dir.join("consumequeue")).await {
            Ok(Some(floors)) => floors,
            Ok(None) => {
                let file = format!("consumequeue/{}", Floors::NAME);
                found.find(Kind::Units, file, None, "the checksum does not hold", Remedy::Rebuilt);
                return Ok(());
            }
            Err(error) => {
                found.find(Kind::Units, format!("consumequeue/{}", Floors::NAME), None, error, Remedy::Rebuilt);
                return Ok(());
            }
        };
        // Without the bounds of queues nothing says which units there should be.
        let Some(keyed) = keyed else { return Ok(()) };
        let queues: Vec<(QueueId, QueueRow)> = keyed.queues().collect();
        for (done, (queue, row)) in queues.iter().enumerate() {
            progress(Kind::Units, done as u64, queues.len() as u64);
            let floor = floors.queues.get(queue).copied().unwrap_or_default();
            self.verify_queue(*queue, row.min.max(floor), row.next, found).await;
        }
        Ok(())
    }

    async fn verify_queue(&self, queue: QueueId, from: QueueOffset, end: QueueOffset, found: &mut Verification) {
        let mut first = from.0 / UNITS_PER_FILE * UNITS_PER_FILE;
        while first < end.0 {
            let file = format!("consumequeue/{queue}/{first:020}");
            let begin = from.0.max(first);
            let stop = end.0.min(first + UNITS_PER_FILE);
            match self
                .read_range(&file, (begin - first) * UNIT_BYTES as u64, (stop - begin) as usize * UNIT_BYTES)
                .await
            {
                Ok(bytes) => {
                    found.count(Kind::Units, 1, 0, 0);
                    for (number, offset) in (begin..stop).enumerate() {
                        let unit = bytes.get(number * UNIT_BYTES..(number + 1) * UNIT_BYTES);
                        let unit = unit.and_then(|unit| unit.try_into().ok());
                        match unit.and_then(|unit| Unit::decode(unit, queue, QueueOffset(offset))) {
                            Some(_) => found.count(Kind::Units, 0, 1, UNIT_BYTES as u64),
                            None => {
                                let at = Some((offset - first) * UNIT_BYTES as u64);
                                let what = format!("unit {offset} is not what was written");
                                found.find(Kind::Units, file.clone(), at, what, Remedy::Rebuilt);
                            }
                        }
                    }
                }
                Err(error) => found.find(Kind::Units, file, None, error, Remedy::Rebuilt),
            }
            first += UNITS_PER_FILE;
        }
    }

    async fn verify_index(
        &self,
        keyed: Option<&Keyed>,
        found: &mut Verification,
        progress: Progress<'_>,
    ) -> Result<(), OfflineError> {
        self.verify_parts::<IndexRow>(keyed.and_then(|keyed| keyed.parts(&INDEX_PARTS)), found, progress).await?;
        self.verify_parts::<KeyRow>(keyed.and_then(|keyed| keyed.parts(&KEY_PARTS)), found, progress).await
    }

    async fn verify_parts<R: index::Row>(
        &self,
        expected: Option<Vec<u64>>,
        found: &mut Verification,
        progress: Progress<'_>,
    ) -> Result<(), OfflineError> {
        let names = self.names("index").await?;
        let there = index::parts_among::<R>(names.iter().map(String::as_str));
        for missing in expected.iter().flatten().filter(|sequence| !there.contains(sequence)) {
            let file = format!("index/{}", index::part_name::<R>(*missing));
            found.find(Kind::Index, file, None, "there is no such file", Remedy::Rebuilt);
        }
        // Others are leftovers of a merge that was under way.
        let parts: Vec<u64> = there
            .into_iter()
            .filter(|sequence| expected.as_ref().is_none_or(|expected| expected.contains(sequence)))
            .collect();
        for (done, sequence) in parts.iter().enumerate() {
            progress(Kind::Index, done as u64, parts.len() as u64);
            match index::read_part::<R>(&self.env, &self.dir.join("index"), *sequence).await {
                Ok(rows) => {
                    let pages = 1 + rows.len().div_ceil(R::PER_PAGE);
                    found.count(Kind::Index, 1, rows.len() as u64, (pages * index::PAGE_BYTES) as u64);
                }
                Err((page, error)) => {
                    let at = page.map(|page| page * index::PAGE_BYTES as u64);
                    let file = format!("index/{}", index::part_name::<R>(*sequence));
                    found.find(Kind::Index, file, at, error, Remedy::Rebuilt);
                }
            }
        }
        Ok(())
    }

    async fn verify_notes(&self, found: &mut Verification) -> Result<(), OfflineError> {
        if noted_rebuild(&self.env, &self.dir).await?.is_some() {
            found.count(Kind::Notes, 1, 1, 0);
            let what = "the replica has noted that derived files are to be made anew";
            found.find(Kind::Notes, Damage::NAME, None, what, Remedy::Rebuilt);
        }
        if repair::is_noted(&self.env, &self.dir).await? {
            found.count(Kind::Notes, 1, 1, 0);
            let what = "the replica has noted that the log is to be repaired";
            found.find(Kind::Notes, repair::NOTE, None, what, Remedy::Peers);
        }
        Ok(())
    }

    async fn has(&self, name: &str) -> io::Result<bool> {
        Ok(self.env.disk.list(&self.dir).await?.iter().any(|found| found.name == name))
    }

    /// Names in a directory below this one; none if it is not there.
    async fn names(&self, below: &str) -> io::Result<Vec<String>> {
        match self.env.disk.list(&self.dir.join(below)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            names => Ok(names?.into_iter().map(|name| name.name).collect()),
        }
    }

    async fn read_whole(&self, file: &str) -> io::Result<Bytes> {
        let file = self.env.disk.open(&self.dir.join(file), Open::ToRead).await?;
        let len = usize::try_from(file.len()?).map_err(io::Error::other)?;
        file.read_at(0, len).await
    }

    async fn read_range(&self, file: &str, offset: u64, len: usize) -> io::Result<Bytes> {
        self.env.disk.open(&self.dir.join(file), Open::ToRead).await?.read_at(offset, len).await
    }

    /// Copies a directory and all below it.
    fn copy<'a>(&'a self, from: &'a Path, to: &'a Path) -> futures::future::BoxFuture<'a, io::Result<()>> {
        async move {
            self.env.disk.create_dir_all(to).await?;
            for name in self.env.disk.list(from).await? {
                let (from, to) = (from.join(&name.name), to.join(&name.name));
                if name.is_directory {
                    self.copy(&from, &to).await?;
                    continue;
                }
                let source = self.env.disk.open(&from, Open::ToRead).await?;
                let target = self.env.disk.open(&to, Open::OrCreate).await?;
                let mut at = 0;
                while at < name.len {
                    let bytes = source.read_at(at, PIECE_BYTES).await?;
                    if bytes.is_empty() {
                        break;
                    }
                    let len = bytes.len() as u64;
                    target.write_at(at, &[bytes]).await?;
                    at += len;
                }
            }
            Ok(())
        }
        .boxed()
    }
}

/// The rows of the keyed store.
#[derive(Debug)]
pub(crate) struct Keyed {
    pub(crate) boundary: Option<Boundary>,
    pub(crate) rows: Vec<Row>,
}

impl Keyed {
    fn queues(&self) -> impl Iterator<Item = (QueueId, QueueRow)> {
        self.rows.iter().filter_map(|(key, value)| Some((rows::queue_of_key(key)?, codec::from_bytes(value).ok()?)))
    }

    /// The parts that the row `of` says there are.
    fn parts(&self, of: &[u8]) -> Option<Vec<u64>> {
        let (_, value) = self.rows.iter().find(|(key, _)| key == of)?;
        codec::from_bytes(value).ok()
    }
}

/// One line of the log.
#[derive(Clone, Debug)]
pub enum Line {
    /// A whole frame.
    Frame {
        /// The frame.
        frame: Frame,
        /// What it occupies, header and fill too.
        bytes: u64,
    },
    /// What lies here is not what was written.
    Gap {
        /// From here
        from: PhysicalOffset,
        /// to here.
        to: PhysicalOffset,
        /// What is wrong.
        what: String,
    },
}

impl Offline {
    /// Up to `limit` frames from entry `from` on, and gaps among them.
    pub async fn frames(&self, from: u64, limit: usize) -> Result<Vec<Line>, OfflineError> {
        let (hard, _) = survey::hard_state_of(&self.env, &self.dir)
            .await
            .map_err(|error| OfflineError::Damaged(format!("where the log begins is unknown: {error}")))?;
        let (begin_id, begin) = hard.begin();
        let layout = segment::Layout { segment_bytes: hard.segment_bytes };
        let files = Files::open(&self.env, &self.dir, layout, begin.physical_offset).await?;
        let end = files.segments.keys().next_back().map_or(begin.physical_offset, |last| layout.segment_end(*last));
        let mut walk = files.walk(begin, begin_id, end);
        // A segment begins with a frame: the last one that does not begin behind what is asked for is the nearest.
        for first in files.segments.keys().rev().filter(|first| **first > begin.physical_offset) {
            let mut from_there = files.walk_segment(*first, end);
            if let Some(Step::Frame(header, _)) = from_there.step().await
                && header.id.index <= from
            {
                walk = files.walk_segment(*first, end);
                break;
            }
        }
        let mut lines = Vec::new();
        while lines.len() < limit {
            match walk.step().await {
                Some(Step::Frame(header, _)) if header.kind == FrameKind::Padding || header.id.index < from => {}
                Some(Step::Frame(header, body)) => {
                    let bytes = header.end().0 - header.physical_offset.0;
                    let frame = Frame {
                        id: header.id,
                        kind: header.kind,
                        physical_offset: header.physical_offset,
                        body,
                        body_crc: header.body_crc,
                        chain: header.chain,
                    };
                    lines.push(Line::Frame { frame, bytes });
                }
                // Nothing follows: what is not whole here is what was never written.
                Some(Step::Gap(gap)) if gap.to == end => break,
                Some(Step::Gap(gap)) => {
                    lines.push(Line::Gap { from: gap.from.physical_offset, to: gap.to, what: gap.reason });
                }
                None => break,
            }
        }
        Ok(lines)
    }

    /// Up to `limit` units of a queue, from the file's bytes alone: what is not a unit is `None`.
    pub async fn units(
        &self,
        queue: QueueId,
        from: QueueOffset,
        limit: usize,
    ) -> Result<Vec<(QueueOffset, Option<Unit>)>, OfflineError> {
        let mut units = Vec::new();
        let mut at = from.0;
        while units.len() < limit {
            let first = at / UNITS_PER_FILE * UNITS_PER_FILE;
            let count = (limit - units.len()).min((first + UNITS_PER_FILE - at) as usize);
            let file = format!("consumequeue/{queue}/{first:020}");
            let bytes = match self.read_range(&file, (at - first) * UNIT_BYTES as u64, count * UNIT_BYTES).await {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                bytes => bytes?,
            };
            for (bytes, offset) in bytes.chunks_exact(UNIT_BYTES).zip(at..) {
                let bytes = bytes.try_into().expect("chunks of a unit");
                units.push((QueueOffset(offset), Unit::decode(bytes, queue, QueueOffset(offset))));
            }
            if bytes.len() < count * UNIT_BYTES {
                break;
            }
            at += count as u64;
        }
        // Behind the last unit a file may go on with zeros.
        while units.last().is_some_and(|(_, unit)| unit.is_none()) {
            units.pop();
        }
        Ok(units)
    }

    /// All rows of the keyed store, and N. The store is copied to `scratch`.
    pub async fn rows(&self, scratch: &Path) -> Result<(Option<LogId>, Vec<Row>), OfflineError> {
        let keyed = self.read_keyed(scratch).await.map_err(|error| {
            OfflineError::Damaged(format!("state/ cannot be read, and will be rebuilt from the log: {error}"))
        })?;
        Ok((keyed.boundary.map(|boundary| boundary.id), keyed.rows))
    }
}

/// A queue as its directory is named: `<topic id>.<queue>`.
pub fn parse_queue(text: &str) -> Option<QueueId> {
    let (topic, queue) = text.split_once('.')?;
    Some(QueueId { topic: TopicId(topic.parse().ok()?), queue: queue.parse().ok()? })
}

/// A row of this crate's own tables in words: the table, its key, its value. `None` for those of the broker.
pub fn describe_row(key: &[u8], value: &[u8]) -> Option<(&'static str, String, String)> {
    fn value_of<V: codec::Decode<()> + std::fmt::Debug>(value: &[u8]) -> String {
        codec::from_bytes::<V>(value).map_or_else(|error| format!("unreadable: {error}"), |value| format!("{value:?}"))
    }
    let number = || rows::number_of_key(key).map(|number| number.to_string()).unwrap_or_default();
    Some(match *key.first()? {
        rows::GROUP => ("group", String::new(), value_of::<rows::GroupRow>(value)),
        rows::MEMBERSHIP => ("membership", String::new(), value_of::<rows::MembershipRow>(value)),
        rows::ALLOCATOR => ("allocator", format!("{:02x?}", &key[1..]), value_of::<u64>(value)),
        rows::QUEUE => {
            ("queue", rows::queue_of_key(key).map(|id| id.to_string()).unwrap_or_default(), value_of::<QueueRow>(value))
        }
        rows::PENDING => ("pending", number(), value_of::<rows::PendingRow>(value)),
        rows::SEGMENT_CLOCK => ("segment-clock", number(), value_of::<crate::position::Timestamp>(value)),
        keyed::LOCAL => ("local", format!("{:02x?}", &key[1..]), format!("{} bytes", value.len())),
        _ => return None,
    })
}
