//! Admission by bytes: messages that wait for their quorum are bounded, and whoever is refused learns at which stage.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of messages between arrival and answer.
#[derive(Debug)]
pub struct Admission {
    limit_bytes: usize,
    in_flight_bytes: AtomicUsize,
}

/// Gives its bytes back when dropped.
#[derive(Debug)]
pub struct Admitted {
    admission: Arc<Admission>,
    bytes: usize,
}

/// Refused: safe to send again, a little later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "[OVERLOAD] broker busy at admission: {in_flight_bytes} bytes wait for their quorum, the limit is {limit_bytes}; \
     slow down or send again shortly"
)]
pub struct Overload {
    /// Bytes in flight when it was refused.
    pub in_flight_bytes: usize,
    /// The limit.
    pub limit_bytes: usize,
}

impl Admission {
    /// Admits up to `limit_bytes` at a time; a single message may be larger when nothing else is in flight.
    pub fn new(limit_bytes: usize) -> Arc<Admission> {
        Arc::new(Admission { limit_bytes, in_flight_bytes: AtomicUsize::new(0) })
    }

    /// Bytes in flight now.
    pub fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes.load(Ordering::Relaxed)
    }

    /// Lets `bytes` in, or says why not.
    pub fn admit(self: &Arc<Self>, bytes: usize) -> Result<Admitted, Overload> {
        let before = self.in_flight_bytes.fetch_add(bytes, Ordering::Relaxed);
        let admitted = Admitted { admission: self.clone(), bytes };
        if before > 0 && before + bytes > self.limit_bytes {
            return Err(Overload { in_flight_bytes: before, limit_bytes: self.limit_bytes });
        }
        Ok(admitted)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.admission.in_flight_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_bounded_and_given_back() {
        let admission = Admission::new(100);
        let large = admission.admit(1000).expect("alone, anything goes");
        assert!(admission.admit(1).is_err());
        drop(large);
        let first = admission.admit(60).expect("room");
        let refused = admission.admit(60).expect_err("no room");
        assert_eq!(refused, Overload { in_flight_bytes: 60, limit_bytes: 100 });
        assert_eq!(admission.in_flight_bytes(), 60, "a refused one holds nothing");
        drop(first);
        assert_eq!(admission.in_flight_bytes(), 0);
    }
}
