//! The body of an entry: a stamp (group time) and a list of operations, records and commands mixed as they arrived.
//!
//! ```text
//! head, 24 bytes, little-endian like everything below
//!  0 version u8 = 1 | 1 zero u8 x 3 | 4 operation count u32 | 8 stamp i64 (ms) | 16 records position u32 | 20 zero u32
//! operation table, 40 bytes each: apply reads this and nothing behind it but commands
//!  0 kind u8 (1 record, 2 core command, 3 tables command, 4 roll)
//!  1 visibility u8 (0 visible, 1 scheduled, 2 half)
//!  2 key hash count u16
//!  4 position u32 and 8 size u32 of the record or command in the body
//! 12 topic id u32 | 16 queue u32 | 20 tag hash i32 | 24 due i64 (ms) | 32 position of the first key hash u32 | 36 zero u32
//!    of a roll: 24 key of the pending row u64, the rest zero
//! key hashes, u64 each
//! commands, back to back
//! records, back to back to the end
//! ```
//!
//! A record's physical offset is the frame's physical offset + the frame head + its position in the body, so records are
//! copied exactly once, here, and never moved. The body's checksum is the caller's, taken once over the whole.

use bytes::{BufMut, Bytes, BytesMut};

use crate::codec::{self, CodecError, Decode, Encode};
use crate::position::{LogId, NodeId, PhysicalOffset, QueueId, Timestamp, TopicId};

const VERSION: u8 = 1;
const HEAD_BYTES: usize = 24;
const ROW_BYTES: usize = 40;

const KIND_RECORD: u8 = 1;
const KIND_CORE: u8 = 2;
const KIND_TABLES: u8 = 3;
const KIND_ROLL: u8 = 4;

/// One thing an entry asks for. Each operation has exactly one outcome.
#[derive(Clone, Debug, PartialEq)]
pub enum Operation {
    /// Store a message.
    Record(RecordOperation),
    /// Store the record of a pending row once more, so that the log may end before its old place.
    Roll(RollOperation),
    /// A command of this crate.
    Core(CoreCommand),
    /// A command of the broker's tables, opaque here.
    Tables(Bytes),
}

/// A message and what apply must know of it, so that apply never parses it.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordOperation {
    /// Where it goes: at once if visible, else when it falls due or its transaction commits.
    pub queue: QueueId,
    /// The stored layout, with queue offset and physical offset 0.
    pub record: Bytes,
    /// Java's `String.hashCode` of the tag; 0 without one.
    pub tag_hash: i32,
    /// When consumers see it.
    pub visibility: Visibility,
    /// Hashes of its keys, for the index.
    pub key_hashes: Vec<u64>,
}

/// A pending row's record, moved to the end of the log.
#[derive(Clone, Debug, PartialEq)]
pub struct RollOperation {
    /// The row: where its record was stored first.
    pub key: PhysicalOffset,
    /// The record as it is stored.
    pub record: Bytes,
}

/// When consumers see a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// As soon as the entry is applied.
    Visible,
    /// Not before group time reaches `due`.
    Scheduled {
        /// The earliest group time.
        due: Timestamp,
    },
    /// When its transaction commits; never if it is rolled back.
    Half,
}

/// Commands that this crate itself applies. `now` is the entry's stamp.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CoreCommand {
    /// A leader's first entry: gives the time since the last entry to whoever holds a lease.
    Lead,
    /// Due pending rows become visible in their queues, at most `limit` of them.
    FireTimers {
        /// Most rows to fire.
        limit: u32,
    },
    /// Every replica writes an image of the keyed state at exactly this entry.
    Checkpoint,
    /// Allows what needs a newer version; every member has announced it.
    RaiseClusterVersion {
        /// The version; a lower one than the present is refused.
        version: u32,
    },
    /// Retention: nothing below a checkpoint's place is needed any more. The newest checkpoint is taken that lies at or
    /// below `min_physical`, every pending record, and every segment in which something became visible at `cut` or later.
    Trim {
        /// At most this far.
        min_physical: PhysicalOffset,
        /// What became visible at this time or later stays.
        cut: Timestamp,
    },
    /// The hashes of the images that voters have cut at a checkpoint: the one that a majority of all voters has is right.
    StateHash {
        /// The checkpoint.
        position: LogId,
        /// How many voters there are.
        voters: u32,
        /// Those that could be asked, and what they have.
        hashes: Vec<(NodeId, u64)>,
    },
    /// A half record becomes visible, by reference, or never will. The first end of a record counts; it is gone for every
    /// other one.
    EndTransaction {
        /// The record: where it was stored first.
        half: PhysicalOffset,
        /// Else it is rolled back.
        commit: bool,
    },
    /// What became of the question how the transaction of a half record has ended.
    CheckTransaction {
        /// The record: where it was stored first.
        half: PhysicalOffset,
        /// What became of it.
        check: TransactionCheck,
    },
    /// A scheduled record will never become visible. It is gone for every other recall, and for its time.
    Recall {
        /// The record: where it was stored first.
        scheduled: PhysicalOffset,
    },
}

/// A step in finding out how a transaction has ended, whose producer does not say so by itself.
///
/// Replicated, so that another leader goes on counting where this one stopped. Only questions that were handed to a live
/// producer are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum TransactionCheck {
    /// A producer was asked.
    Asked,
    /// Nobody is asked any more. The record stays, for an operator to see; an end still ends it.
    Discard,
    /// A discarded one is asked about again, and counted from the beginning.
    Resume,
}

/// Encodes an entry body. Each record is copied once, into a buffer of exactly the right size.
///
/// Panics if the body would exceed `u32` positions, a record has over 65535 key hashes or is empty: the proposer sees to
/// that.
pub fn encode_entry(stamp: Timestamp, operations: &[Operation]) -> Bytes {
    let core: Vec<Vec<u8>> = operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::Core(command) => Some(codec::to_bytes(command)),
            _ => None,
        })
        .collect();
    let (mut key_count, mut record_bytes, mut command_bytes) = (0, 0, core.iter().map(Vec::len).sum::<usize>());
    for operation in operations {
        match operation {
            Operation::Record(record) => {
                key_count += record.key_hashes.len();
                record_bytes += record.record.len();
            }
            Operation::Roll(roll) => record_bytes += roll.record.len(),
            Operation::Core(_) => {}
            Operation::Tables(command) => command_bytes += command.len(),
        }
    }
    let keys_at = HEAD_BYTES + operations.len() * ROW_BYTES;
    let commands_at = keys_at + key_count * 8;
    let records_at = commands_at + command_bytes;
    let total = records_at + record_bytes;
    assert!(total <= u32::MAX as usize, "entry body of {total} bytes");

    let mut body = BytesMut::with_capacity(total);
    body.put_u8(VERSION);
    body.put_bytes(0, 3);
    body.put_u32_le(operations.len() as u32);
    body.put_i64_le(stamp.0);
    body.put_u32_le(records_at as u32);
    body.put_u32_le(0);

    let (mut key_at, mut command_at, mut record_at) = (keys_at, commands_at, records_at);
    let mut core_sizes = core.iter().map(Vec::len);
    for operation in operations {
        match operation {
            Operation::Record(record) => {
                let keys = u16::try_from(record.key_hashes.len()).expect("at most 65535 key hashes");
                assert!(!record.record.is_empty(), "an empty record has no place");
                let (visibility, due) = match record.visibility {
                    Visibility::Visible => (0, 0),
                    Visibility::Scheduled { due } => (1, due.0),
                    Visibility::Half => (2, 0),
                };
                body.put_u8(KIND_RECORD);
                body.put_u8(visibility);
                body.put_u16_le(keys);
                body.put_u32_le(record_at as u32);
                body.put_u32_le(record.record.len() as u32);
                body.put_u32_le(record.queue.topic.0);
                body.put_u32_le(record.queue.queue);
                body.put_i32_le(record.tag_hash);
                body.put_i64_le(due);
                body.put_u32_le(if keys == 0 { 0 } else { key_at as u32 });
                body.put_u32_le(0);
                key_at += record.key_hashes.len() * 8;
                record_at += record.record.len();
            }
            Operation::Roll(roll) => {
                assert!(!roll.record.is_empty(), "an empty record has no place");
                body.put_u8(KIND_ROLL);
                body.put_bytes(0, 3);
                body.put_u32_le(record_at as u32);
                body.put_u32_le(roll.record.len() as u32);
                body.put_bytes(0, 12);
                body.put_u64_le(roll.key.0);
                body.put_bytes(0, 8);
                record_at += roll.record.len();
            }
            Operation::Core(_) | Operation::Tables(_) => {
                let (kind, size) = match operation {
                    Operation::Tables(command) => (KIND_TABLES, command.len()),
                    _ => (KIND_CORE, core_sizes.next().expect("one encoding per core command")),
                };
                body.put_u8(kind);
                body.put_bytes(0, 3);
                body.put_u32_le(command_at as u32);
                body.put_u32_le(size as u32);
                body.put_bytes(0, ROW_BYTES - 12);
                command_at += size;
            }
        }
    }
    for operation in operations {
        if let Operation::Record(record) = operation {
            for hash in &record.key_hashes {
                body.put_u64_le(*hash);
            }
        }
    }
    let mut core = core.into_iter();
    for operation in operations {
        match operation {
            Operation::Core(_) => body.put_slice(&core.next().expect("one encoding per core command")),
            Operation::Tables(command) => body.put_slice(command),
            Operation::Record(_) | Operation::Roll(_) => {}
        }
    }
    for operation in operations {
        match operation {
            Operation::Record(record) => body.put_slice(&record.record),
            Operation::Roll(roll) => body.put_slice(&roll.record),
            Operation::Core(_) | Operation::Tables(_) => {}
        }
    }
    assert_eq!(body.len(), total, "the reserved size is the size");
    body.freeze()
}

/// The bytes an operation adds to a body, at most: for proposers that fill entries up to a size.
pub fn encoded_bytes(operation: &Operation) -> usize {
    ROW_BYTES
        + match operation {
            Operation::Record(record) => record.record.len() + record.key_hashes.len() * 8,
            Operation::Roll(roll) => roll.record.len(),
            Operation::Core(command) => codec::to_bytes(command).len(),
            Operation::Tables(command) => command.len(),
        }
}

/// Why a body cannot be applied as it is.
#[derive(Debug, thiserror::Error)]
pub enum EntryError {
    /// A version or kind of a newer program. Do not apply it, nor anything behind it: stop and be upgraded.
    #[error("unknown to this version: {0}")]
    Unknown(String),
    /// Not an entry body, although its checksum holds: its proposer was wrong, on every replica alike. Refuse and go on.
    #[error("malformed entry: {0}")]
    Malformed(&'static str),
}

/// A checked view of an entry body: iterating it cannot fail.
#[derive(Clone, Debug)]
pub struct EntryView {
    body: Bytes,
    stamp: Timestamp,
    count: usize,
    /// Decoded while checking, in order. Commands are rare beside records.
    core: Vec<CoreCommand>,
}

/// One operation of a decoded entry.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum OperationView<'a> {
    /// A record, by its descriptor.
    Record(RecordView<'a>),
    /// A pending row's record, moved.
    Roll(RollView),
    /// A command of this crate.
    Core(&'a CoreCommand),
    /// A command of the broker's tables.
    Tables(&'a [u8]),
}

/// A roll's descriptor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RollView {
    /// The pending row.
    pub key: PhysicalOffset,
    /// Where the record's bytes begin in the body.
    pub position: u32,
    /// How many they are.
    pub size: u32,
}

/// A record's descriptor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RecordView<'a> {
    /// Its queue.
    pub queue: QueueId,
    /// Where its bytes begin in the body.
    pub position: u32,
    /// How many they are.
    pub size: u32,
    /// Hash of its tag.
    pub tag_hash: i32,
    /// When consumers see it.
    pub visibility: Visibility,
    key_hashes: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Hashes of its keys.
    pub fn key_hashes(&self) -> impl ExactSizeIterator<Item = u64> + 'a {
        self.key_hashes.chunks_exact(8).map(|hash| u64::from_le_bytes(hash.try_into().expect("chunks of 8")))
    }
}

/// Checks `body` and gives a view of it. Record bytes are not touched.
pub fn decode_entry(body: &Bytes) -> Result<EntryView, EntryError> {
    let head = body.get(..HEAD_BYTES).ok_or(EntryError::Malformed("shorter than its head"))?;
    if head[0] != VERSION {
        return Err(EntryError::Unknown(format!("entry version {}", head[0])));
    }
    let count = u32_at(head, 4) as usize;
    let stamp = Timestamp(i64::from_le_bytes(head[8..16].try_into().expect("8 bytes")));
    let table = count
        .checked_mul(ROW_BYTES)
        .and_then(|bytes| body.get(HEAD_BYTES..bytes.checked_add(HEAD_BYTES)?))
        .ok_or(EntryError::Malformed("operation table beyond the body"))?;

    let within = |position: u32, size: usize| {
        (position as usize).checked_add(size).is_some_and(|end| end <= body.len()) && position as usize >= HEAD_BYTES
    };
    let mut core = Vec::new();
    // Records lie back to back to the end and none is empty: no two of the log have the same place.
    let mut next_record = u32_at(head, 16);
    // Kinds first: an entry of a newer program is unknown as a whole, however its rows may look to this one.
    if let Some(row) = table.chunks_exact(ROW_BYTES).find(|row| !(KIND_RECORD..=KIND_ROLL).contains(&row[0])) {
        return Err(EntryError::Unknown(format!("operation kind {}", row[0])));
    }
    for row in table.chunks_exact(ROW_BYTES) {
        let (position, size) = (u32_at(row, 4), u32_at(row, 8));
        if !within(position, size as usize) {
            return Err(EntryError::Malformed("operation beyond the body"));
        }
        if matches!(row[0], KIND_RECORD | KIND_ROLL) {
            if position != next_record || size == 0 {
                return Err(EntryError::Malformed("records not back to back"));
            }
            next_record = position + size;
        }
        match row[0] {
            KIND_RECORD => {
                if row[1] > 2 {
                    return Err(EntryError::Unknown(format!("visibility {}", row[1])));
                }
                let keys = u16_at(row, 2) as usize;
                if keys > 0 && !within(u32_at(row, 32), keys * 8) {
                    return Err(EntryError::Malformed("key hashes beyond the body"));
                }
            }
            KIND_CORE => match codec::from_bytes(&body[position as usize..][..size as usize]) {
                Ok(command) => core.push(command),
                Err(CodecError::Unknown(what)) => return Err(EntryError::Unknown(what)),
                Err(CodecError::Malformed(_)) => return Err(EntryError::Malformed("core command")),
            },
            _ => {}
        }
    }
    if next_record as usize != body.len() {
        return Err(EntryError::Malformed("records do not end with the body"));
    }
    Ok(EntryView { body: body.clone(), stamp, count, core })
}

impl EntryView {
    /// Group time at the entry, as its proposer stamped it.
    pub fn stamp(&self) -> Timestamp {
        self.stamp
    }

    /// How many operations there are.
    pub fn operation_count(&self) -> usize {
        self.count
    }

    /// Whether there is anything but records.
    pub fn has_commands(&self) -> bool {
        !self.core.is_empty() || self.rows().any(|row| row[0] == KIND_TABLES)
    }

    /// Whether a command for the broker's tables is among them, or one that calls on the tables.
    pub fn needs_tables(&self) -> bool {
        self.core.contains(&CoreCommand::Lead) || self.rows().any(|row| row[0] == KIND_TABLES)
    }

    /// The operations in order.
    pub fn operations(&self) -> impl Iterator<Item = OperationView<'_>> {
        let mut core = self.core.iter();
        self.rows().map(move |row| {
            let (position, size) = (u32_at(row, 4), u32_at(row, 8));
            match row[0] {
                KIND_RECORD => OperationView::Record(self.record(row, position, size)),
                KIND_ROLL => OperationView::Roll(RollView { key: PhysicalOffset(u64_at(row, 24)), position, size }),
                KIND_CORE => OperationView::Core(core.next().expect("decoded while checking")),
                _ => OperationView::Tables(&self.body[position as usize..][..size as usize]),
            }
        })
    }

    fn record(&self, row: &[u8], position: u32, size: u32) -> RecordView<'_> {
        let keys = u16_at(row, 2) as usize;
        RecordView {
            queue: QueueId { topic: TopicId(u32_at(row, 12)), queue: u32_at(row, 16) },
            position,
            size,
            tag_hash: u32_at(row, 20) as i32,
            visibility: match row[1] {
                0 => Visibility::Visible,
                1 => Visibility::Scheduled { due: Timestamp(u64_at(row, 24) as i64) },
                _ => Visibility::Half,
            },
            key_hashes: if keys == 0 { &[] } else { &self.body[u32_at(row, 32) as usize..][..keys * 8] },
        }
    }

    fn rows(&self) -> impl Iterator<Item = &[u8]> {
        self.body[HEAD_BYTES..HEAD_BYTES + self.count * ROW_BYTES].chunks_exact(ROW_BYTES)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"))
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("2 bytes"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn operation() -> impl Strategy<Value = Operation> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..60).prop_map(Bytes::from);
        let visibility = prop_oneof![
            Just(Visibility::Visible),
            any::<i64>().prop_map(|due| Visibility::Scheduled { due: Timestamp(due) }),
            Just(Visibility::Half),
        ];
        let keys = proptest::collection::vec(any::<u64>(), 0..4);
        let record_bytes = proptest::collection::vec(any::<u8>(), 1..60).prop_map(Bytes::from);
        let record = (any::<u32>(), any::<u32>(), record_bytes, any::<i32>(), visibility, keys).prop_map(
            |(topic, queue, record, tag_hash, visibility, key_hashes)| {
                let queue = QueueId { topic: TopicId(topic), queue };
                Operation::Record(RecordOperation { queue, record, tag_hash, visibility, key_hashes })
            },
        );
        let rolled = proptest::collection::vec(any::<u8>(), 1..60).prop_map(Bytes::from);
        let roll = (any::<u64>(), rolled)
            .prop_map(|(key, record)| Operation::Roll(RollOperation { key: PhysicalOffset(key), record }));
        let trim = (any::<u64>(), any::<i64>())
            .prop_map(|(at, cut)| CoreCommand::Trim { min_physical: PhysicalOffset(at), cut: Timestamp(cut) });
        let hashes = proptest::collection::vec(any::<(u64, u64)>(), 0..4);
        let state_hash = (any::<(u64, u64)>(), any::<u32>(), hashes).prop_map(|((term, index), voters, hashes)| {
            CoreCommand::StateHash { position: LogId { term, index }, voters, hashes }
        });
        let end = any::<(u64, bool)>()
            .prop_map(|(half, commit)| CoreCommand::EndTransaction { half: PhysicalOffset(half), commit });
        let checks = [TransactionCheck::Asked, TransactionCheck::Discard, TransactionCheck::Resume];
        let check = (any::<u64>(), proptest::sample::select(checks.to_vec()))
            .prop_map(|(half, check)| CoreCommand::CheckTransaction { half: PhysicalOffset(half), check });
        let recall = any::<u64>().prop_map(|scheduled| CoreCommand::Recall { scheduled: PhysicalOffset(scheduled) });
        prop_oneof![
            4 => record,
            2 => roll,
            1 => trim.prop_map(Operation::Core),
            1 => state_hash.prop_map(Operation::Core),
            1 => bytes().prop_map(Operation::Tables),
            1 => Just(Operation::Core(CoreCommand::Lead)),
            1 => any::<u32>().prop_map(|limit| Operation::Core(CoreCommand::FireTimers { limit })),
            1 => Just(Operation::Core(CoreCommand::Checkpoint)),
            1 => any::<u32>().prop_map(|version| Operation::Core(CoreCommand::RaiseClusterVersion { version })),
            1 => end.prop_map(Operation::Core),
            1 => check.prop_map(Operation::Core),
            1 => recall.prop_map(Operation::Core),
        ]
    }

    fn owned(view: &EntryView) -> Vec<Operation> {
        view.operations()
            .map(|operation| match operation {
                OperationView::Core(command) => Operation::Core(command.clone()),
                OperationView::Tables(command) => Operation::Tables(Bytes::copy_from_slice(command)),
                OperationView::Roll(RollView { key, position, size }) => Operation::Roll(RollOperation {
                    key,
                    record: view.body.slice(position as usize..(position + size) as usize),
                }),
                OperationView::Record(record) => Operation::Record(RecordOperation {
                    queue: record.queue,
                    record: view.body.slice(record.position as usize..(record.position + record.size) as usize),
                    tag_hash: record.tag_hash,
                    visibility: record.visibility,
                    key_hashes: record.key_hashes().collect(),
                }),
            })
            .collect()
    }

    proptest! {
        #[test]
        fn round_trip(stamp in any::<i64>(), operations in proptest::collection::vec(operation(), 0..12)) {
            let body = encode_entry(Timestamp(stamp), &operations);
            prop_assert!(body.len() <= HEAD_BYTES + operations.iter().map(encoded_bytes).sum::<usize>());
            let view = decode_entry(&body).unwrap();
            prop_assert_eq!(view.stamp(), Timestamp(stamp));
            prop_assert_eq!(view.operation_count(), operations.len());
            prop_assert_eq!(owned(&view), operations);
        }

        #[test]
        fn any_bytes_are_decoded_or_refused(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for fix in [false, true] {
                if fix && bytes.len() >= HEAD_BYTES {
                    // Past the version and with a plausible count, so that rows are reached.
                    bytes[0] = VERSION;
                    let plausible = u32::from(bytes[4]) % 6;
                    bytes[4..8].copy_from_slice(&plausible.to_le_bytes());
                    let count = bytes[4] as usize;
                    for row in bytes[HEAD_BYTES..].chunks_mut(ROW_BYTES).take(count) {
                        row[0] = 1 + row[0] % 4;
                        for high in [6, 7, 10, 11, 34, 35] {
                            if let Some(byte) = row.get_mut(high) { *byte = 0 }
                        }
                    }
                }
                if let Ok(view) = decode_entry(&Bytes::from(bytes.clone())) {
                    prop_assert_eq!(owned(&view).len(), view.operation_count());
                }
            }
        }

        #[test]
        fn flipped_bytes_never_panic(operations in proptest::collection::vec(operation(), 1..5), at in any::<usize>(), flip in 1u8..) {
            let mut body = encode_entry(Timestamp(1), &operations).to_vec();
            let at = at % body.len();
            body[at] ^= flip;
            if let Ok(view) = decode_entry(&Bytes::from(body)) {
                prop_assert_eq!(owned(&view).len(), view.operation_count());
            }
        }
    }

    /// If this fails, logs written by earlier releases can no longer be read.
    #[test]
    fn golden_bytes() {
        let body = encode_entry(
            Timestamp(5),
            &[
                Operation::Record(RecordOperation {
                    queue: QueueId { topic: TopicId(2), queue: 3 },
                    record: Bytes::from_static(b"REC"),
                    tag_hash: -1,
                    visibility: Visibility::Scheduled { due: Timestamp(9) },
                    key_hashes: vec![0x0807060504030201],
                }),
                Operation::Core(CoreCommand::FireTimers { limit: 4 }),
            ],
        );
        let mut golden = vec![1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 116, 0, 0, 0, 0, 0, 0, 0];
        golden.extend([1, 1, 1, 0, 116, 0, 0, 0, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 255, 255, 255, 255]);
        golden.extend([9, 0, 0, 0, 0, 0, 0, 0, 104, 0, 0, 0, 0, 0, 0, 0]);
        golden.extend([2, 0, 0, 0, 112, 0, 0, 0, 4, 0, 0, 0]);
        golden.extend([0; 28]);
        golden.extend([1, 2, 3, 4, 5, 6, 7, 8]);
        golden.extend([0xB2, 1, 1, 4]);
        golden.extend(b"REC");
        assert_eq!(body, golden);
    }

    /// The same for what retention proposes.
    #[test]
    fn golden_bytes_of_roll_and_trim() {
        let roll = RollOperation { key: PhysicalOffset(258), record: Bytes::from_static(b"REC") };
        let trim = CoreCommand::Trim { min_physical: PhysicalOffset(7), cut: Timestamp(-2) };
        let body = encode_entry(Timestamp(5), &[Operation::Roll(roll), Operation::Core(trim)]);
        let mut golden = vec![1, 0, 0, 0, 2, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 109, 0, 0, 0, 0, 0, 0, 0];
        golden.extend([4, 0, 0, 0, 109, 0, 0, 0, 3, 0, 0, 0]);
        golden.extend([0; 12]);
        golden.extend([2, 1, 0, 0, 0, 0, 0, 0]);
        golden.extend([0; 8]);
        golden.extend([2, 0, 0, 0, 104, 0, 0, 0, 5, 0, 0, 0]);
        golden.extend([0; 28]);
        golden.extend([0xB2, 1, 4, 7, 3]);
        golden.extend(b"REC");
        assert_eq!(body, golden);
    }

    #[test]
    fn golden_bytes_of_a_state_hash() {
        let position = LogId { term: 1, index: 9 };
        let command = CoreCommand::StateHash { position, voters: 3, hashes: vec![(7, 200), (8, 5)] };
        let operation = Operation::Core(command);
        let body = encode_entry(Timestamp(5), std::slice::from_ref(&operation));
        assert_eq!(body.len(), HEAD_BYTES + encoded_bytes(&operation));
        assert_eq!(body[HEAD_BYTES + ROW_BYTES..], [0xB2, 1, 5, 1, 9, 3, 2, 7, 200, 8, 5]);
    }

    #[test]
    fn golden_bytes_of_a_transaction() {
        let half = PhysicalOffset(200);
        for (command, golden) in [
            (CoreCommand::EndTransaction { half, commit: true }, [0xB2, 1, 6, 200, 1]),
            (CoreCommand::EndTransaction { half, commit: false }, [0xB2, 1, 6, 200, 0]),
            (CoreCommand::CheckTransaction { half, check: TransactionCheck::Asked }, [0xB2, 1, 7, 200, 0]),
            (CoreCommand::CheckTransaction { half, check: TransactionCheck::Discard }, [0xB2, 1, 7, 200, 1]),
            (CoreCommand::CheckTransaction { half, check: TransactionCheck::Resume }, [0xB2, 1, 7, 200, 2]),
        ] {
            assert_eq!(codec::to_bytes(&command), golden, "{command:?}");
        }
    }

    /// Two records in one place would be one message in two queues, or a pending row lost.
    #[test]
    fn records_that_overlap_are_malformed() {
        let record = |byte| {
            Operation::Record(RecordOperation {
                queue: QueueId::default(),
                record: Bytes::from(vec![byte; 4]),
                tag_hash: 0,
                visibility: Visibility::Half,
                key_hashes: vec![],
            })
        };
        let body = encode_entry(Timestamp(1), &[record(1), record(2)]).to_vec();
        let second = HEAD_BYTES + ROW_BYTES;
        for (at, value) in [(second + 4, body[HEAD_BYTES + 4]), (second + 8, 3), (second + 8, 0), (HEAD_BYTES + 8, 5)] {
            let mut body = body.clone();
            body[at] = value;
            assert!(matches!(decode_entry(&Bytes::from(body)), Err(EntryError::Malformed(_))));
        }
    }

    #[test]
    fn a_newer_kind_is_unknown_not_malformed() {
        let mut body = encode_entry(Timestamp(1), &[Operation::Core(CoreCommand::Lead)]).to_vec();
        let last = body.len() - 1;
        body[last] = 200;
        assert!(matches!(decode_entry(&Bytes::from(body.clone())), Err(EntryError::Unknown(_))));
        body[HEAD_BYTES] = 9;
        body[HEAD_BYTES + 4] = 255;
        assert!(matches!(decode_entry(&Bytes::from(body.clone())), Err(EntryError::Unknown(_))));
        body[0] = 2;
        assert!(matches!(decode_entry(&Bytes::from(body)), Err(EntryError::Unknown(_))));
    }
}
