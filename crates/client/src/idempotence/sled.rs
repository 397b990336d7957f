//! Seen messages in a sled database.
//!
//! ```text
//! key     as given
//! value   token present u8 (0: done), token u64, until ms i64, big-endian
//! ```

use std::path::Path;
use std::time::Duration;

use env::Env;
use parking_lot::Mutex;

use super::{Claim, Seen, SeenStore, StoreError};

const VALUE_BYTES: usize = 17;

/// Notes that each claim looks through for ended ones: more than it adds, so that there are never many.
const SWEPT_AT_ONCE: usize = 4;

const CACHE_BYTES: u64 = 16 << 20;

/// How often a directory that is in use is asked for again: sled's threads may hold it for some moments after the last
/// handle of a store is dropped.
const LOCKED_RETRIES: u32 = 100;
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Remembers on disk, in a directory that one process at a time may use. What is done is on the disk when its handler's
/// message is acknowledged; a claim may be lost with the machine, and with it the work was.
#[derive(Debug)]
pub struct SledSeenStore {
    database: ::sled::Db,
    /// Where the sweep for ended notes goes on.
    swept: Mutex<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Note {
    until_ms: i64,
    /// Of the claim; `None` for what is done.
    token: Option<u64>,
}

impl Note {
    fn to_bytes(self) -> [u8; VALUE_BYTES] {
        let mut bytes = [0; VALUE_BYTES];
        bytes[0] = u8::from(self.token.is_some());
        bytes[1..9].copy_from_slice(&self.token.unwrap_or(0).to_be_bytes());
        bytes[9..].copy_from_slice(&self.until_ms.to_be_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Note, StoreError> {
        let bytes: [u8; VALUE_BYTES] = bytes.try_into().map_err(|_| {
            format!("a note of {} bytes: the directory is another program's, or damaged; give another one", bytes.len())
        })?;
        let (token, until) = bytes[1..].split_at(8);
        let number = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().expect("eight bytes"));
        Ok(Note { until_ms: number(until) as i64, token: (bytes[0] != 0).then(|| number(token)) })
    }
}

impl SledSeenStore {
    /// Opens the database in `directory`, or makes it. An error if another store has it, and keeps it for two seconds.
    pub async fn open(directory: impl AsRef<Path>) -> Result<SledSeenStore, StoreError> {
        // Flushed when something is done; in between, claims may wait.
        let configuration =
            ::sled::Config::new().path(directory).cache_capacity(CACHE_BYTES).flush_every_ms(Some(1000));
        let clock = Env::real().clock;
        let mut retries = 0;
        let database = loop {
            match configuration.open() {
                Err(error) if is_locked(&error) && retries < LOCKED_RETRIES => {
                    clock.sleep(RETRY_INTERVAL).await;
                    retries += 1;
                }
                opened => break opened?,
            }
        };
        Ok(SledSeenStore { database, swept: Mutex::default() })
    }

    /// Removes some notes that have ended.
    fn sweep(&self, now_ms: i64) -> Result<(), StoreError> {
        let mut swept = self.swept.lock();
        let mut reached = Vec::new();
        for row in self.database.range(swept.clone()..).take(SWEPT_AT_ONCE) {
            let (key, value) = row?;
            if Note::from_bytes(&value)?.until_ms <= now_ms {
                // Unless somebody has claimed it meanwhile.
                let _ = self.database.compare_and_swap(&key, Some(value), None::<&[u8]>)?;
            }
            reached = [&key[..], &[0]].concat();
        }
        *swept = reached;
        Ok(())
    }
}

impl SeenStore for SledSeenStore {
    async fn claim(&self, key: &str, claim: Claim) -> Result<Seen, StoreError> {
        self.sweep(claim.now_ms)?;
        let until_ms = claim.now_ms.saturating_add(claim.lease.as_millis() as i64);
        let wanted = Note { until_ms, token: Some(claim.token) }.to_bytes();
        let mut found = self.database.get(key)?;
        loop {
            if let Some(found) = &found {
                let Note { until_ms, token } = Note::from_bytes(found)?;
                if until_ms > claim.now_ms {
                    return Ok(if token.is_some() { Seen::InProgress { until_ms } } else { Seen::Done });
                }
            }
            match self.database.compare_and_swap(key, found, Some(&wanted))? {
                Ok(()) => return Ok(Seen::New),
                Err(other) => found = other.current,
            }
        }
    }

    async fn done(&self, key: &str, now_ms: i64, keep: Duration) -> Result<(), StoreError> {
        let note = Note { until_ms: now_ms.saturating_add(keep.as_millis() as i64), token: None };
        self.database.insert(key, &note.to_bytes())?;
        self.database.flush_async().await?;
        Ok(())
    }

    async fn release(&self, key: &str, token: u64) -> Result<(), StoreError> {
        let Some(found) = self.database.get(key)? else { return Ok(()) };
        if Note::from_bytes(&found)?.token == Some(token) {
            let _ = self.database.compare_and_swap(key, Some(found), None::<&[u8]>)?;
        }
        Ok(())
    }
}

/// sled tells of a lock that is held in words only.
fn is_locked(error: &::sled::Error) -> bool {
    matches!(error, ::sled::Error::Io(error) if error.to_string().contains("acquire lock"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::tests::{has_one_winner, keeps_its_word};
    use super::*;

    #[tokio::test]
    async fn it_keeps_its_word_and_remembers_across_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledSeenStore::open(&directory).await.unwrap();
        keeps_its_word(&store).await;
        let store = Arc::new(store);
        has_one_winner(store.clone()).await;
        store.done("kept", 0, Duration::from_secs(3600)).await.unwrap();
        assert!(SledSeenStore::open(&directory).await.is_err(), "one process, once");
        drop(store);
        let store = SledSeenStore::open(&directory).await.unwrap();
        let claim = Claim { token: 1, now_ms: 1, lease: Duration::from_secs(1) };
        assert_eq!(store.claim("kept", claim).await.unwrap(), Seen::Done);
    }

    #[tokio::test]
    async fn what_has_ended_is_swept_out() {
        let directory = tempfile::tempdir().unwrap();
        let store = SledSeenStore::open(&directory).await.unwrap();
        for number in 0..100 {
            store.done(&format!("old {number}"), 0, Duration::from_secs(1)).await.unwrap();
        }
        for number in 0..50 {
            let claim = Claim { token: number, now_ms: 1000, lease: Duration::from_secs(60) };
            assert_eq!(store.claim(&format!("new {number}"), claim).await.unwrap(), Seen::New);
        }
        assert_eq!(store.database.len(), 50);
    }
}
