//! What the broker folds from the log beside the messages: topics, groups, consumer offsets, queue locks,
//! messages in consumers' hands.
//!
//! Pure: a command, group time and the rows before it decide everything. Each table is its own file; this one takes
//! commands apart and keeps rows.
//!
//! ```text
//! row key                                          value
//! 0x40 topic name                                  topics::Topic
//! 0x41 group name                                  groups::GroupConfig
//! 0x42 encoded offsets::OffsetKey                  offsets::ConsumerOffset
//! 0x43 encoded offsets::OffsetKey                  locks::QueueLock
//! 0x44                                             Versions
//! 0x45                                             pops::LeaseClock
//! 0x46 encoded offsets::OffsetKey                  pops::PopQueue
//! 0x47 encoded pops::LeaseKey                      pops::Lease
//! 0x48 encoded request_modes::ModeKey              request_modes::RequestMode
//! 0x4A encoded offsets::OffsetKey                  (nothing): the offset was reset
//! ```

pub mod command;
pub mod groups;
pub mod locks;
pub mod offsets;
pub mod pops;
pub mod request_modes;
pub mod topics;

use raft_store::codec::{self, Decode, Encode};
use raft_store::fold::{self, Apply, RowError};
use raft_store::position::{QueueId, Timestamp, TopicId};

use self::command::{Command, LeaseId, PopWish, Refusal, Reply};
use self::groups::{GroupConfig, Groups};
use self::locks::QueueLocks;
use self::offsets::{ConsumerOffsets, OffsetKey, Updated};
use self::pops::{LeaseKey, Pops, Terms};
use self::request_modes::{ModeKey, RequestMode, RequestModes};
use self::topics::{TopicConfig, Topics};

const TOPIC: u8 = 0x40;
const GROUP: u8 = 0x41;
const OFFSET: u8 = 0x42;
const LOCK: u8 = 0x43;
const VERSIONS: u8 = 0x44;
const LEASE_CLOCK: u8 = 0x45;
const POP_QUEUE: u8 = 0x46;
const LEASE: u8 = 0x47;
const REQUEST_MODE: u8 = 0x48;
const RESET: u8 = 0x4A;

/// How often the tables that tools poll have changed: RocketMQ's DataVersion.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Version {
    /// Changes so far.
    pub counter: i64,
    /// Group time of the last one, in milliseconds.
    pub changed_ms: i64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
struct Versions {
    topics: Version,
    groups: Version,
}

/// All of the broker's replicated tables.
#[derive(Debug, Default)]
pub struct Tables {
    topics: Topics,
    groups: Groups,
    offsets: ConsumerOffsets,
    locks: QueueLocks,
    pops: Pops,
    request_modes: RequestModes,
    versions: Versions,
}

impl Tables {
    /// The topics.
    pub fn topics(&self) -> &Topics {
        &self.topics
    }

    /// The consumer groups.
    pub fn groups(&self) -> &Groups {
        &self.groups
    }

    /// The consumer offsets.
    pub fn offsets(&self) -> &ConsumerOffsets {
        &self.offsets
    }

    /// The queue locks.
    pub fn locks(&self) -> &QueueLocks {
        &self.locks
    }

    /// The messages in consumers' hands.
    pub fn pops(&self) -> &Pops {
        &self.pops
    }

    /// How groups fetch.
    pub fn request_modes(&self) -> &RequestModes {
        &self.request_modes
    }

    /// Changes of the topics.
    pub fn topics_version(&self) -> Version {
        self.versions.topics
    }

    /// Changes of the groups.
    pub fn groups_version(&self) -> Version {
        self.versions.groups
    }

    fn run(&mut self, command: Command, at: &mut Apply<'_>) -> Reply {
        match command {
            Command::PutTopic { config, only_if_absent } => Reply::Topic(self.put_topic(config, only_if_absent, at)),
            Command::DeleteTopic { name } => self.delete_topic(&name, at),
            Command::PutGroup { config, only_if_absent } => {
                self.put_group(config, only_if_absent, at);
                Reply::Done
            }
            Command::DeleteGroup { name, clean_offsets } => self.delete_group(&name, clean_offsets, at),
            Command::UpdateOffsets(updates) => {
                let mut overtaken = false;
                for update in &updates {
                    match self.offsets.update(update) {
                        Updated::No => {}
                        // Who does not wait for an answer needs none.
                        Updated::Overtaken => overtaken |= !update.one_way,
                        Updated::Row { key, row, ends_reset } => {
                            at.put(row_key(OFFSET, key), codec::to_bytes(row));
                            if ends_reset {
                                at.delete(row_key(RESET, key));
                            }
                            // Whoever sets the offset says where the group goes on: nothing of the queue is leased any more.
                            if let Some(leases) = self.pops.forget_queue(key) {
                                delete_pops(key, leases, at);
                            }
                        }
                    }
                }
                if overtaken { Reply::Refused(Refusal::OffsetReset) } else { Reply::Done }
            }
            Command::LockQueues { group, client, queues, lease_ms } => {
                let now = at.now();
                for key in self.locks.forget_ended(&group, now) {
                    at.delete(row_key(LOCK, &key));
                }
                let mut held = Vec::with_capacity(queues.len());
                for (topic, queue) in queues {
                    let key = OffsetKey { group: group.clone(), topic, queue };
                    if let Some(lock) = self.locks.lock(&key, &client, now, lease_ms) {
                        at.put(row_key(LOCK, &key), codec::to_bytes(lock));
                        held.push((key.topic, queue));
                    }
                }
                Reply::Locked(held)
            }
            Command::UnlockQueues { group, client, queues } => {
                for (topic, queue) in queues {
                    let key = OffsetKey { group: group.clone(), topic, queue };
                    if self.locks.unlock(&key, &client) {
                        at.delete(row_key(LOCK, &key));
                    }
                }
                Reply::Done
            }
            Command::BeginAt { group, topic, offsets } => {
                if let Some(refusal) = self.refusal_of(&group, &topic) {
                    return Reply::Refused(refusal);
                }
                for (queue, offset) in offsets {
                    let key = OffsetKey { group: group.clone(), topic: topic.clone(), queue };
                    if let Some((key, row)) = self.offsets.begin_at(key, offset) {
                        at.put(row_key(OFFSET, key), codec::to_bytes(row));
                    }
                }
                Reply::Done
            }
            Command::ResetOffsets { group, topic, offsets } => {
                if let Some(refusal) = self.refusal_of(&group, &topic) {
                    return Reply::Refused(refusal);
                }
                for (queue, offset) in offsets {
                    let key = OffsetKey { group: group.clone(), topic: topic.clone(), queue };
                    let (key, row) = self.offsets.reset(key, offset);
                    at.put(row_key(OFFSET, key), codec::to_bytes(row));
                    at.put(row_key(RESET, key), Vec::new());
                    if let Some(leases) = self.pops.forget_queue(key) {
                        delete_pops(key, leases, at);
                    }
                }
                Reply::Done
            }
            Command::Pop { group, topic, lease_ms, is_orderly, attempt, queues } => {
                let Some(config) = self.groups.get(&group) else { return Reply::Refused(Refusal::NoGroup) };
                if self.topics.get(&topic).is_none() {
                    return Reply::Refused(Refusal::NoTopic);
                }
                let max_retries = config.max_retries;
                let keyed = queues.into_iter().map(|wish| (pop_key(&group, &topic, wish.queue), wish));
                let keyed: Vec<(OffsetKey, PopWish)> = keyed.collect();
                let pop_ms = self.pops.pop_time(keyed.iter().map(|(key, _)| key), at.now());
                let terms = Terms { pop_ms, lease_ms, max_retries, is_orderly, attempt: &attempt };
                let queues = keyed.iter().map(|(key, wish)| self.pop(key, wish, terms, at)).collect();
                Reply::Popped { pop_ms, queues }
            }
            Command::AckPopped { group, topic, leases } => Reply::Acked(
                leases
                    .iter()
                    .map(|lease| {
                        let key = pop_key(&group, &topic, lease.queue);
                        let ended = self.pops.ack(&key, lease, at.now());
                        if ended == Ok(true) {
                            self.lease_ended(key, lease, at);
                        }
                        ended.err()
                    })
                    .collect(),
            ),
            Command::ChangeLease { group, topic, lease, lease_ms } => {
                let key = pop_key(&group, &topic, lease.queue);
                match self.pops.change(&key, &lease, lease_ms, at.now()) {
                    Ok(pop_ms) => {
                        self.put_pops(&key, std::iter::once(lease.offset), at);
                        Reply::LeaseChanged(pop_ms)
                    }
                    Err(refusal) => Reply::Refused(refusal),
                }
            }
            Command::BuryPopped { group, topic, leases } => {
                for lease in &leases {
                    let key = pop_key(&group, &topic, lease.queue);
                    if self.pops.bury(&key, lease) {
                        self.lease_ended(key, lease, at);
                    }
                }
                Reply::Done
            }
            Command::SetRequestMode { group, topic, mode } => {
                let key = ModeKey { group, topic };
                at.put(mode_key(&key), codec::to_bytes(&mode));
                self.request_modes.put(key, mode);
                Reply::Done
            }
        }
    }

    fn pop(&mut self, key: &OffsetKey, wish: &PopWish, terms: Terms<'_>, at: &mut Apply<'_>) -> pops::Popped {
        let first = self.offsets.get(&key.group, &key.topic, key.queue).unwrap_or(wish.from);
        let popped = self.pops.pop(key, first, wish, terms, at.now());
        self.put_pops(key, popped.messages.iter().map(|(offset, _)| *offset), at);
        for offset in wish.gone.iter().filter(|offset| self.pops.lease(key, **offset).is_none()) {
            at.delete(lease_key(key.clone(), *offset));
        }
        self.offset_follows(key, at);
        popped
    }

    /// Writes the queue's row and those of the leases.
    fn put_pops(&self, key: &OffsetKey, leases: impl Iterator<Item = u64>, at: &mut Apply<'_>) {
        if let Some(row) = self.pops.row(key) {
            at.put(row_key(POP_QUEUE, key), codec::to_bytes(row));
        }
        for offset in leases {
            if let Some(lease) = self.pops.lease(key, offset) {
                at.put(lease_key(key.clone(), offset), codec::to_bytes(lease));
            }
        }
    }

    fn lease_ended(&mut self, key: OffsetKey, lease: &LeaseId, at: &mut Apply<'_>) {
        self.offset_follows(&key, at);
        at.delete(lease_key(key, lease.offset));
    }

    /// The group's consumer offset is the first message that is not done.
    fn offset_follows(&mut self, key: &OffsetKey, at: &mut Apply<'_>) {
        let Some(offset) = self.pops.first_not_done(key) else { return };
        if let Some((row, ends_reset)) = self.offsets.follow(key, offset) {
            at.put(row_key(OFFSET, key), codec::to_bytes(row));
            if ends_reset {
                at.delete(row_key(RESET, key));
            }
        }
    }

    /// Why offsets of the group on the topic cannot be set.
    fn refusal_of(&self, group: &str, topic: &str) -> Option<Refusal> {
        if self.groups.get(group).is_none() {
            Some(Refusal::NoGroup)
        } else if self.topics.get(topic).is_none() {
            Some(Refusal::NoTopic)
        } else {
            None
        }
    }

    fn put_topic(&mut self, config: TopicConfig, only_if_absent: bool, at: &mut Apply<'_>) -> TopicId {
        let (id, changes) = self.topics.known(&config, only_if_absent);
        let id = id.unwrap_or_else(|| at.allocate_topic_id());
        if changes {
            let topic = self.topics.put(id, config);
            for queue in 0..topic.queues() {
                at.ensure_queue(QueueId { topic: id, queue });
            }
            at.put(named_key(TOPIC, &topic.config.name), codec::to_bytes(topic));
            self.topics_changed(at);
        }
        id
    }

    fn delete_topic(&mut self, name: &str, at: &mut Apply<'_>) -> Reply {
        let Some(id) = self.topics.get(name).map(topics::Topic::id) else { return Reply::Refused(Refusal::NoTopic) };
        let next = |queue| at.queue_bounds(QueueId { topic: id, queue }).map(|(_, next)| next);
        let topic = self.topics.delete(name, next).expect("it was there");
        for queue in 0..topic.queues() {
            at.close_queue(QueueId { topic: id, queue });
        }
        at.put(named_key(TOPIC, name), codec::to_bytes(topic));
        self.forget(|key| key.topic == name, at);
        self.forget_modes(|key| key.topic == name, at);
        self.topics_changed(at);
        Reply::Done
    }

    fn put_group(&mut self, config: GroupConfig, only_if_absent: bool, at: &mut Apply<'_>) {
        let retry = TopicConfig::retry_of(&config);
        let key = named_key(GROUP, &config.name);
        let value = codec::to_bytes(&config);
        if self.groups.put(config, only_if_absent) {
            at.put(key, value);
            self.versions.groups = Version { counter: self.versions.groups.counter + 1, changed_ms: at.now().0 };
            at.put(vec![VERSIONS], codec::to_bytes(&self.versions));
        }
        // Clients ask for the retry topic's route as soon as the group exists.
        if let Some(retry) = retry {
            self.put_topic(retry, true, at);
        }
    }

    fn delete_group(&mut self, name: &str, clean_offsets: bool, at: &mut Apply<'_>) -> Reply {
        if !self.groups.delete(name) {
            return Reply::Refused(Refusal::NoGroup);
        }
        at.delete(named_key(GROUP, name));
        self.versions.groups = Version { counter: self.versions.groups.counter + 1, changed_ms: at.now().0 };
        at.put(vec![VERSIONS], codec::to_bytes(&self.versions));
        if clean_offsets {
            self.forget(|key| key.group == name, at);
        }
        for key in self.locks.forget(|key| key.group == name) {
            at.delete(row_key(LOCK, &key));
        }
        for (key, leases) in self.pops.forget(|key| key.group == name) {
            delete_pops(&key, leases, at);
        }
        self.forget_modes(|key| key.group == name, at);
        Reply::Done
    }

    /// Drops the consumer offsets, locks and leases that `forget` names.
    fn forget(&mut self, forget: impl Fn(&OffsetKey) -> bool, at: &mut Apply<'_>) {
        for key in self.offsets.forget(&forget) {
            at.delete(row_key(OFFSET, &key));
            at.delete(row_key(RESET, &key));
        }
        for key in self.locks.forget(&forget) {
            at.delete(row_key(LOCK, &key));
        }
        for (key, leases) in self.pops.forget(&forget) {
            delete_pops(&key, leases, at);
        }
    }

    fn forget_modes(&mut self, forget: impl Fn(&ModeKey) -> bool, at: &mut Apply<'_>) {
        for key in self.request_modes.forget(forget) {
            at.delete(mode_key(&key));
        }
    }

    fn topics_changed(&mut self, at: &mut Apply<'_>) {
        self.versions.topics = Version { counter: self.versions.topics.counter + 1, changed_ms: at.now().0 };
        at.put(vec![VERSIONS], codec::to_bytes(&self.versions));
    }
}

impl fold::Tables for Tables {
    type Reply = Reply;

    fn knows(&self, command: &[u8]) -> bool {
        codec::from_bytes::<Command>(command).is_ok()
    }

    fn apply(&mut self, command: &[u8], at: &mut Apply<'_>) -> Reply {
        match codec::from_bytes(command) {
            Ok(command) => self.run(command, at),
            Err(error) => unreachable!("a command that is not known is not applied: {error}"),
        }
    }

    fn lead(&mut self, now: Timestamp, gap_ms: i64, at: &mut Apply<'_>) {
        for (key, lock) in self.locks.extend(now, gap_ms) {
            at.put(row_key(LOCK, key), codec::to_bytes(lock));
        }
        if let Some(clock) = self.pops.lead(gap_ms) {
            at.put(vec![LEASE_CLOCK], codec::to_bytes(clock));
        }
    }

    fn restore(&mut self, key: &[u8], value: &[u8]) -> Result<(), RowError> {
        let bad = |error: &dyn std::fmt::Display| RowError::new(key, error.to_string());
        match key {
            [TOPIC, ..] => self.topics.restore(codec::from_bytes(value).map_err(|error| bad(&error))?),
            [GROUP, ..] => {
                self.groups.put(codec::from_bytes(value).map_err(|error| bad(&error))?, false);
            }
            [OFFSET, place @ ..] => self.offsets.restore(
                codec::from_bytes(place).map_err(|error| bad(&error))?,
                codec::from_bytes(value).map_err(|error| bad(&error))?,
            ),
            [LOCK, place @ ..] => self.locks.restore(
                codec::from_bytes(place).map_err(|error| bad(&error))?,
                codec::from_bytes(value).map_err(|error| bad(&error))?,
            ),
            [RESET, place @ ..] => {
                if !self.offsets.restore_reset(codec::from_bytes(place).map_err(|error| bad(&error))?) {
                    return Err(bad(&"no offset was reset there"));
                }
            }
            [LEASE_CLOCK] => self.pops.restore_clock(codec::from_bytes(value).map_err(|error| bad(&error))?),
            [POP_QUEUE, place @ ..] => self.pops.restore(
                codec::from_bytes(place).map_err(|error| bad(&error))?,
                codec::from_bytes(value).map_err(|error| bad(&error))?,
            ),
            [LEASE, place @ ..] => self.pops.restore_lease(
                codec::from_bytes(place).map_err(|error| bad(&error))?,
                codec::from_bytes(value).map_err(|error| bad(&error))?,
            ),
            [REQUEST_MODE, place @ ..] => self.request_modes.put(
                codec::from_bytes(place).map_err(|error| bad(&error))?,
                codec::from_bytes(value).map_err(|error| bad(&error))?,
            ),
            [VERSIONS] => self.versions = codec::from_bytes(value).map_err(|error| bad(&error))?,
            _ => return Err(bad(&"no table has such a key")),
        }
        Ok(())
    }

    fn clear(&mut self) {
        *self = Tables::default();
    }
}

/// A row in words, for whoever looks into a directory: the table, its key, its value. `None` if it is in none of these.
pub fn describe_row(key: &[u8], value: &[u8]) -> Option<(&'static str, String, String)> {
    fn shown<V: Decode<()> + std::fmt::Debug>(bytes: &[u8]) -> String {
        codec::from_bytes::<V>(bytes).map_or_else(|error| format!("unreadable: {error}"), |value| format!("{value:?}"))
    }
    let name = |name: &[u8]| String::from_utf8_lossy(name).into_owned();
    let (table, rest) = key.split_first()?;
    Some(match *table {
        TOPIC => ("topic", name(rest), shown::<topics::Topic>(value)),
        GROUP => ("consumer-group", name(rest), shown::<GroupConfig>(value)),
        OFFSET => ("offset", shown::<OffsetKey>(rest), shown::<offsets::ConsumerOffset>(value)),
        LOCK => ("lock", shown::<OffsetKey>(rest), shown::<locks::QueueLock>(value)),
        RESET => ("reset", shown::<OffsetKey>(rest), String::new()),
        LEASE_CLOCK => ("lease-clock", String::new(), shown::<pops::LeaseClock>(value)),
        POP_QUEUE => ("pop-queue", shown::<OffsetKey>(rest), shown::<pops::PopQueue>(value)),
        LEASE => ("lease", shown::<LeaseKey>(rest), shown::<pops::Lease>(value)),
        REQUEST_MODE => ("request-mode", shown::<ModeKey>(rest), shown::<RequestMode>(value)),
        VERSIONS => ("versions", String::new(), shown::<Versions>(value)),
        _ => return None,
    })
}

fn named_key(table: u8, name: &str) -> Vec<u8> {
    let mut key = vec![table];
    key.extend_from_slice(name.as_bytes());
    key
}

fn row_key(table: u8, place: &OffsetKey) -> Vec<u8> {
    let mut key = vec![table];
    key.extend_from_slice(&codec::to_bytes(place));
    key
}

fn pop_key(group: &str, topic: &str, queue: u32) -> OffsetKey {
    OffsetKey { group: group.to_owned(), topic: topic.to_owned(), queue }
}

fn lease_key(queue: OffsetKey, offset: u64) -> Vec<u8> {
    let mut key = vec![LEASE];
    key.extend_from_slice(&codec::to_bytes(&LeaseKey { queue, offset }));
    key
}

fn mode_key(place: &ModeKey) -> Vec<u8> {
    let mut key = vec![REQUEST_MODE];
    key.extend_from_slice(&codec::to_bytes(place));
    key
}

/// Deletes the rows of a queue that was forgotten, with its leases.
fn delete_pops(key: &OffsetKey, leases: Vec<u64>, at: &mut Apply<'_>) {
    at.delete(row_key(POP_QUEUE, key));
    for offset in leases {
        at.delete(lease_key(key.clone(), offset));
    }
}
