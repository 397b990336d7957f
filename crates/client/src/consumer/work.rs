//! The queue of work that a concurrent consumer's workers share.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use super::owned_queue::OwnedQueue;

/// One entry per message that waits, naming the queue whose next message it stands for. Bounded by the queues' own
/// limits.
#[derive(Debug)]
pub(crate) struct Work {
    entries: Mutex<VecDeque<Arc<OwnedQueue>>>,
    /// One permit per entry; closed at the end.
    ready: Semaphore,
}

impl Work {
    pub(crate) fn new() -> Work {
        Work { entries: Mutex::new(VecDeque::new()), ready: Semaphore::new(0) }
    }

    pub(crate) fn add(&self, owned: &Arc<OwnedQueue>, messages: usize) {
        self.entries.lock().extend(std::iter::repeat_n(owned.clone(), messages));
        self.ready.add_permits(messages);
    }

    /// The next entry; `None` once closed. Cancel-safe: an entry is taken in the step in which it is returned.
    pub(crate) async fn next(&self) -> Option<Arc<OwnedQueue>> {
        self.ready.acquire().await.ok()?.forget();
        let entry = self.entries.lock().pop_front();
        Some(entry.expect("a permit stands for an entry"))
    }

    pub(crate) fn close(&self) {
        self.ready.close();
    }
}
