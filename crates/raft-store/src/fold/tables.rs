//! The seam to the broker: what it folds from the log beside the messages.

use crate::fold::Apply;
use crate::position::Timestamp;

/// Keys of the broker's rows begin with this byte or a higher one; lower ones are this crate's.
pub const FIRST_TABLES_BYTE: u8 = 0x40;

/// Keys above this byte belong to the keyed store itself.
pub const LAST_TABLES_BYTE: u8 = 0xEF;

/// The broker's replicated tables.
///
/// Every method must be total and deterministic: the same rows and the same command give the same reply and the same
/// rows on every replica, whatever its clock, its memory layout or its version (a change of behaviour waits for the
/// cluster version). What is not in rows does not survive a restart.
pub trait Tables: Send + Sync + 'static {
    /// What the proposer of a command gets back.
    type Reply: Send + 'static;

    /// Whether this program knows the command. If not, the replica stops before applying anything of its entry.
    fn knows(&self, command: &[u8]) -> bool {
        let _ = command;
        true
    }

    /// Applies one command. A precondition that no longer holds is a reply, not a panic.
    fn apply(&mut self, command: &[u8], at: &mut Apply<'_>) -> Self::Reply;

    /// A leader takes office at `now`, `gap_ms` after the entry before: leases are extended by the gap.
    fn lead(&mut self, now: Timestamp, gap_ms: i64, at: &mut Apply<'_>);

    /// Takes back one row, as it was put. Called in key order on cleared tables, at start and after an image is installed.
    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError>;

    /// Forgets everything.
    fn clear(&mut self);
}

/// A row that the tables cannot read: written by a newer version, or damaged where no checksum looked.
#[derive(Debug, thiserror::Error)]
#[error("row {key}: {reason}")]
pub struct RowError {
    /// The key, in hex.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl RowError {
    /// `key` cannot be read because of `reason`.
    pub fn new(key: &[u8], reason: impl ToString) -> RowError {
        let key = key.iter().map(|byte| format!("{byte:02x}")).collect();
        RowError { key, reason: reason.to_string() }
    }
}
