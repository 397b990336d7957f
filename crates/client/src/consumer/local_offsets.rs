//! Offsets of a broadcasting group: every client consumes everything, so each keeps its own progress, in a file.
//!
//! The file is JSON, replaced whole: written beside, synced, renamed. So it is always one state or another, and at worst
//! a few seconds old, after which messages come again. A lock file keeps a second client of the same group away.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use env::disk::{Lock, Open};
use env::{Disk, Env};
use parking_lot::Mutex;
use protocol::body::{MessageQueue, ResetOffsetBody};
use protocol::json;

#[derive(Debug)]
pub(crate) struct LocalOffsets {
    disk: Arc<dyn Disk>,
    directory: PathBuf,
    name: String,
    offsets: Mutex<BTreeMap<MessageQueue, i64>>,
    /// What the file holds; also keeps two flushes apart.
    flushed: tokio::sync::Mutex<BTreeMap<MessageQueue, i64>>,
    _lock: Lock,
}

impl LocalOffsets {
    /// Reads what is there. A file that cannot be read is an error: to ignore it would be to consume everything again.
    pub(crate) async fn open(env: &Env, directory: &Path, group: &str) -> io::Result<LocalOffsets> {
        let disk = env.disk.clone();
        disk.create_dir_all(directory).await?;
        if let Some(parent) = directory.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            disk.sync_dir(parent).await?;
        }
        let lock = disk.lock(&directory.join(format!("{group}.lock"))).await?;
        let name = format!("{group}.offsets.json");
        let offsets = match disk.open(&directory.join(&name), Open::Existing).await {
            Ok(file) => {
                let text = file.read_at(0, file.len()? as usize).await?;
                let table: ResetOffsetBody =
                    json::from_slice(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
                table.offset_table
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => BTreeMap::new(),
            Err(error) => return Err(error),
        };
        Ok(LocalOffsets {
            disk,
            directory: directory.to_owned(),
            name,
            flushed: tokio::sync::Mutex::new(offsets.clone()),
            offsets: Mutex::new(offsets),
            _lock: lock,
        })
    }

    pub(crate) fn get(&self, queue: &MessageQueue) -> Option<i64> {
        self.offsets.lock().get(queue).copied()
    }

    pub(crate) fn set(&self, queue: &MessageQueue, offset: i64) {
        let mut offsets = self.offsets.lock();
        match offsets.get_mut(queue) {
            Some(known) => *known = offset,
            None => drop(offsets.insert(queue.clone(), offset)),
        }
    }

    /// Makes the offsets set before the call durable.
    pub(crate) async fn flush(&self) -> io::Result<()> {
        let mut flushed = self.flushed.lock().await;
        let offsets = self.offsets.lock().clone();
        if *flushed == offsets {
            return Ok(());
        }
        let text = json::to_bytes(&ResetOffsetBody { offset_table: offsets.clone() });
        let beside = self.directory.join(format!("{}.new", self.name));
        let file = self.disk.open(&beside, Open::OrCreate).await?;
        file.set_len(0).await?;
        file.write_at(0, &[text]).await?;
        file.sync_data().await?;
        self.disk.rename(&beside, &self.directory.join(&self.name)).await?;
        self.disk.sync_dir(&self.directory).await?;
        *flushed = offsets;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use env::Rng;
    use env::disk::simulated::SimDisk;

    use super::*;

    #[tokio::test]
    async fn what_was_flushed_survives_a_power_failure() {
        let disk = SimDisk::new(Rng::seeded(7));
        let directory = Path::new("/offsets");
        let queue = |id| MessageQueue::new("T", "b", id);
        let env = Env::simulated(7, disk.mount());
        let offsets = LocalOffsets::open(&env, directory, "g").await.unwrap();
        assert_eq!(offsets.get(&queue(0)), None);
        offsets.set(&queue(0), 5);
        offsets.flush().await.unwrap();
        offsets.set(&queue(0), 9);
        offsets.set(&queue(1), 1);
        let again = LocalOffsets::open(&env, directory, "g").await;
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::WouldBlock, "one client per file");
        drop(offsets);
        disk.crash_keeping(|_| false);
        let env = Env::simulated(7, disk.mount());
        let offsets = LocalOffsets::open(&env, directory, "g").await.unwrap();
        assert_eq!((offsets.get(&queue(0)), offsets.get(&queue(1))), (Some(5), None));
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_read_is_not_ignored() {
        let env = Env::simulated(7, SimDisk::new(Rng::seeded(7)));
        let directory = Path::new("/offsets");
        env.disk.create_dir_all(directory).await.unwrap();
        let file = env.disk.open(&directory.join("g.offsets.json"), Open::New).await.unwrap();
        file.write_at(0, &["{\"offsetTable\":".into()]).await.unwrap();
        let error = LocalOffsets::open(&env, directory, "g").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    }
}
