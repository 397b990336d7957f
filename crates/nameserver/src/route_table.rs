//! The route table: broker groups, their members, their topics. Pure; time comes as an argument.
//!
//! A *group* is one broker name. Its members are replicas, told apart by broker id; id 0 is the leader. What makes this
//! table more than a map is that registrations of one group arrive from several replicas, over several connections, in
//! any order, and some of their senders do not know yet that they were deposed:
//!
//! - **The term decides.** `DataVersion.state_version` is the Raft term. A claim to id 0 below the term that holds it is
//!   ignored. When the leader is gone, a claim must still reach what the remaining members say of the term: they outlive
//!   a leader, and a term that was only ever claimed does not outlive who claimed it. A late word of a lower term about
//!   an address or an id never undoes one of a higher term.
//! - **Topics come from the leader.** A leader's registration carries all topics and replaces what was known; one that is
//!   older than what is known, by its counter, only counts as a sign of life.
//! - **Deleted stays deleted.** A topic deleted here comes back only with a counter above the one at which it was
//!   deleted: the broker's periodic registration, on its way during the deletion, does not resurrect it.
//! - **An address is one member**, an id is one address.
//! - A member lives until its time of silence is over or the connection it last spoke on closes. A group lives as long
//!   as it has members; then all of it is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use protocol::body::{
    BrokerData, BrokerMemberGroup, ClusterInfo, DataVersion, MASTER_ID, QueueData, TopicConfig, TopicList,
    TopicRouteData,
};
use protocol::permission::Permission;

/// The connection that a member last spoke on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

/// Most groups: nobody authenticates who registers.
const GROUPS_MAX: usize = 4_096;

/// Most members of a group.
const MEMBERS_MAX: usize = 64;

/// A name or an address in a registration is not longer.
const TEXT_BYTES_MAX: usize = 512;

/// Most bytes that the topics of all groups may take, as [`topic_bytes`] counts them.
const TOPICS_BYTES_MAX: usize = 512 << 20;

/// What a broker says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// RocketMQ's cluster.
    pub cluster: String,
    /// The group.
    pub broker_name: String,
    /// 0 is the leader.
    pub broker_id: i64,
    /// Where clients reach it.
    pub address: String,
    /// Where replicas reach it; told to other members.
    pub ha_address: Option<String>,
    /// RocketMQ's zone.
    pub zone: Option<String>,
    /// Whether clients are told that a replica may pose as leader.
    pub enable_acting_master: bool,
    /// After how much silence it is removed; `None` for the table's default.
    pub expiry: Option<Duration>,
    /// Version of `topics`; its state version is the Raft term.
    pub version: DataVersion,
    /// All topics of the group.
    pub topics: Vec<TopicConfig>,
}

/// A member as others are told of it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MemberName {
    /// The group.
    pub broker_name: String,
    /// 0 is the leader.
    pub broker_id: i64,
    /// Where clients reach it.
    pub address: String,
}

/// What became of a registration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Registered {
    /// It is in the table.
    Accepted {
        /// Whether clients will see another leader than before.
        leader_changed: bool,
    },
    /// Its sender was deposed: a higher term is known.
    Ignored {
        /// The term that it would have to reach.
        known_term: i64,
    },
}

/// The table takes nothing more of that kind in; what it knows is served as before.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// A name or an address is too long.
    #[error("{what} of {bytes} bytes, at most {TEXT_BYTES_MAX}")]
    Text {
        /// Which.
        what: &'static str,
        /// How long.
        bytes: usize,
    },
    /// One group too many.
    #[error("{GROUPS_MAX} broker names are known, which is the limit")]
    Groups,
    /// One member too many.
    #[error("the group has {MEMBERS_MAX} members, which is the limit")]
    Members,
    /// Too many topics.
    #[error("the topics of all broker names would take {bytes} bytes, at most {limit_bytes}")]
    Topics {
        /// With the new ones.
        bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
}

/// Who serves which topic.
#[derive(Debug)]
pub struct RouteTable {
    groups: BTreeMap<String, Group>,
    default_expiry: Duration,
    topics_bytes_max: usize,
    /// No member expires before this.
    next_expiry: Option<Duration>,
}

#[derive(Debug)]
struct Group {
    cluster: String,
    enable_acting_master: bool,
    zone: Option<String>,
    /// By broker id. Never empty; no address stands here twice.
    members: BTreeMap<i64, Member>,
    /// The term that a claim to id 0 must reach. Decreases only when nobody holds id 0.
    leader_term: i64,
    /// Version of `topics`: the last leader's.
    version: Option<DataVersion>,
    topics: BTreeMap<String, QueueData>,
    /// What `topics` and `deleted` take.
    topics_bytes: usize,
    /// Topics deleted here, and the counter of `version` at that time. Forgotten once a later registration agrees.
    deleted: BTreeMap<String, i64>,
    /// Nobody may write: the group is being drained.
    write_permission_wiped: bool,
}

#[derive(Debug)]
struct Member {
    address: String,
    ha_address: Option<String>,
    version: DataVersion,
    connection: ConnectionId,
    expiry: Duration,
    expires_at: Duration,
}

impl RouteTable {
    /// An empty table whose members expire after `default_expiry` of silence, unless they ask for another time.
    pub fn new(default_expiry: Duration) -> RouteTable {
        RouteTable { groups: BTreeMap::new(), default_expiry, topics_bytes_max: TOPICS_BYTES_MAX, next_expiry: None }
    }

    /// A broker says what it is and what it has.
    pub fn register(
        &mut self,
        registration: Registration,
        connection: ConnectionId,
        now: Duration,
    ) -> Result<Registered, Full> {
        self.refuse_too_much(&registration)?;
        let Registration { broker_name, broker_id, address, version, topics, .. } = registration;
        let term = version.state_version;
        let group = self.groups.entry(broker_name.clone()).or_insert_with(|| Group::new(registration.cluster.clone()));
        if let Some(known_term) = group.objection(broker_id, &address, term) {
            return Ok(Registered::Ignored { known_term });
        }
        let expiry = registration.expiry.unwrap_or(self.default_expiry);
        let expires_at = now.saturating_add(expiry);
        self.next_expiry = Some(self.next_expiry.map_or(expires_at, |next| next.min(expires_at)));
        let leader_before = group.leader_address().map(str::to_owned);
        group.members.retain(|id, member| *id == broker_id || member.address != address);
        let ha_address = registration.ha_address;
        let member = Member { address, ha_address, version, connection, expiry, expires_at };
        group.members.insert(broker_id, member);
        if broker_id == MASTER_ID {
            assert!(term >= group.leader_term, "term {term} < {} of {broker_name}", group.leader_term);
            group.leader_term = term;
            group.cluster = registration.cluster;
            group.enable_acting_master = registration.enable_acting_master;
            group.zone = registration.zone;
            group.replace_topics(&broker_name, version, topics);
        }
        group.forget_term_without_leader();
        Ok(Registered::Accepted { leader_changed: group.leader_address() != leader_before.as_deref() })
    }

    fn refuse_too_much(&self, registration: &Registration) -> Result<(), Full> {
        let Registration { cluster, broker_name, broker_id, address, ha_address, zone, topics, .. } = registration;
        let texts = [
            ("a cluster name", Some(cluster)),
            ("a broker name", Some(broker_name)),
            ("an address", Some(address)),
            ("an HA address", ha_address.as_ref()),
            ("a zone", zone.as_ref()),
        ];
        for (what, text) in texts {
            if let Some(bytes) = text.map(String::len).filter(|bytes| *bytes > TEXT_BYTES_MAX) {
                return Err(Full::Text { what, bytes });
            }
        }
        match self.groups.get(broker_name) {
            None if self.groups.len() == GROUPS_MAX => return Err(Full::Groups),
            Some(group) if group.members.len() == MEMBERS_MAX && !group.members.contains_key(broker_id) => {
                return Err(Full::Members);
            }
            _ => {}
        }
        if *broker_id == MASTER_ID {
            let more = topics.iter().map(|topic| topic_bytes(broker_name, &topic.topic_name)).sum();
            let known = self.groups.get(broker_name).map_or(0, |group| group.topics_bytes);
            self.refuse_more_topics(known, more)?;
        }
        Ok(())
    }

    /// Refuses `more` bytes of topics in the place of `known` ones, unless they are no more, or fit.
    fn refuse_more_topics(&self, known: usize, more: usize) -> Result<(), Full> {
        let all: usize = self.groups.values().map(|group| group.topics_bytes).sum();
        let bytes = all - known + more;
        let limit_bytes = self.topics_bytes_max;
        if more <= known || bytes <= limit_bytes { Ok(()) } else { Err(Full::Topics { bytes, limit_bytes }) }
    }

    /// A broker says that it lives. A broker that is not in the table stays out of it: it has to register.
    pub fn heartbeat(
        &mut self,
        broker_name: &str,
        address: &str,
        expiry: Option<Duration>,
        connection: ConnectionId,
        now: Duration,
    ) {
        let Some(group) = self.groups.get_mut(broker_name) else { return };
        if let Some(member) = group.members.values_mut().find(|member| member.address == address) {
            member.connection = connection;
            member.expiry = expiry.unwrap_or(member.expiry);
            // May be earlier than before, if the broker asks for less.
            member.expires_at = now.saturating_add(member.expiry);
            self.next_expiry = self.next_expiry.map(|next| next.min(member.expires_at));
        }
    }

    /// The version that a member registered last, by which it knows whether to register anew.
    pub fn known_version(&self, broker_name: &str, broker_id: i64, address: &str) -> Option<DataVersion> {
        let member = self.groups.get(broker_name)?.members.get(&broker_id)?;
        (member.address == address).then_some(member.version)
    }

    /// A broker leaves. It is known by its address: the id that it believes to have may be another's by now.
    pub fn unregister(&mut self, broker_name: &str, address: &str) -> Vec<MemberName> {
        self.remove(|name, _, member| name == broker_name && member.address == address)
    }

    /// A connection is closed, and with it go the members that last spoke on it.
    pub fn disconnect(&mut self, connection: ConnectionId) -> Vec<MemberName> {
        self.remove(|_, _, member| member.connection == connection)
    }

    /// Whether [`RouteTable::expire`] may have something to do.
    pub fn is_expiry_due(&self, now: Duration) -> bool {
        self.next_expiry.is_some_and(|next| next <= now)
    }

    /// Removes the members that have been silent for too long.
    pub fn expire(&mut self, now: Duration) -> Vec<MemberName> {
        let removed = self.remove(|_, _, member| member.expires_at <= now);
        let members = self.groups.values().flat_map(|group| group.members.values());
        self.next_expiry = members.map(|member| member.expires_at).min();
        removed
    }

    fn remove(&mut self, leaves: impl Fn(&str, i64, &Member) -> bool) -> Vec<MemberName> {
        let mut removed = Vec::new();
        self.groups.retain(|broker_name, group| {
            group.members.retain(|id, member| {
                let leaves = leaves(broker_name, *id, member);
                if leaves {
                    let (broker_name, address) = (broker_name.clone(), member.address.clone());
                    removed.push(MemberName { broker_name, broker_id: *id, address });
                }
                !leaves
            });
            group.forget_term_without_leader();
            !group.members.is_empty()
        });
        removed
    }

    /// Where clients, and where replicas, reach the leader of a group.
    pub fn leader(&self, broker_name: &str) -> Option<(&str, Option<&str>)> {
        let leader = self.groups.get(broker_name)?.members.get(&MASTER_ID)?;
        Some((&leader.address, leader.ha_address.as_deref()))
    }

    /// Where a topic is. `None` if nowhere. The order of an ordered topic is the caller's to add.
    pub fn route(&self, topic: &str) -> Option<TopicRouteData> {
        let mut route = TopicRouteData::default();
        for (broker_name, group) in &self.groups {
            if let Some(queues) = group.topics.get(topic) {
                route.queue_datas.push(group.effective(queues));
                route.broker_datas.push(group.broker_data(broker_name));
            }
        }
        (!route.queue_datas.is_empty()).then_some(route)
    }

    /// All groups.
    pub fn cluster_info(&self) -> ClusterInfo {
        let mut info = ClusterInfo::default();
        for (broker_name, group) in &self.groups {
            info.broker_addr_table.insert(broker_name.clone(), group.broker_data(broker_name));
            info.cluster_addr_table.entry(group.cluster.clone()).or_default().insert(broker_name.clone());
        }
        info
    }

    /// The members of one group; none if it is unknown.
    pub fn member_group(&self, cluster: &str, broker_name: &str) -> BrokerMemberGroup {
        let group = self.groups.get(broker_name).filter(|group| group.cluster == cluster);
        BrokerMemberGroup {
            broker_addrs: group.map(Group::addresses).unwrap_or_default(),
            broker_name: broker_name.to_owned(),
            cluster: cluster.to_owned(),
        }
    }

    /// Every topic.
    pub fn topics(&self) -> TopicList {
        self.topics_where(|_, _| true)
    }

    /// Every topic of a cluster.
    pub fn topics_of_cluster(&self, cluster: &str) -> TopicList {
        self.topics_where(|group, _| group.cluster == cluster)
    }

    /// Every topic whose unit bits `chosen` likes.
    pub fn topics_by_flag(&self, chosen: impl Fn(i32) -> bool) -> TopicList {
        self.topics_where(|_, queues| chosen(queues.topic_sys_flag))
    }

    fn topics_where(&self, chosen: impl Fn(&Group, &QueueData) -> bool) -> TopicList {
        let of = |group: &Group| -> BTreeSet<String> {
            group.topics.iter().filter(|(_, queues)| chosen(group, queues)).map(|(topic, _)| topic.clone()).collect()
        };
        TopicList { broker_addr: None, topic_list: self.groups.values().flat_map(of).collect() }
    }

    /// The topics named after clusters and groups, and a broker that knows the other topics of the system.
    pub fn system_topics(&self) -> TopicList {
        let mut list = TopicList::default();
        for (broker_name, group) in &self.groups {
            list.topic_list.insert(group.cluster.clone());
            list.topic_list.insert(broker_name.clone());
        }
        let first = |group: &Group| group.members.values().next().map(|member| member.address.clone());
        let leader = |group: &Group| group.leader_address().map(str::to_owned);
        list.broker_addr = self.groups.values().find_map(leader).or_else(|| self.groups.values().find_map(first));
        list
    }

    /// Forgets a topic, in one cluster or in all, until a broker registers it with a higher counter.
    pub fn delete_topic(&mut self, topic: &str, cluster: Option<&str>) {
        for group in self.groups.values_mut().filter(|group| cluster.is_none_or(|cluster| group.cluster == cluster)) {
            let was_known = group.topics.remove(topic).is_some();
            if let Some(version) = group.version.filter(|_| was_known) {
                group.deleted.insert(topic.to_owned(), version.counter);
            }
        }
    }

    /// A tool names a topic's queues. Only on groups that are known; stands until their next change of topics.
    pub fn register_topic(&mut self, topic: &str, queues: Vec<QueueData>) -> Result<(), Full> {
        for queues in queues {
            let Some(group) = self.groups.get(&queues.broker_name) else { continue };
            let is_known = group.topics.contains_key(topic) || group.deleted.contains_key(topic);
            let more = if is_known { 0 } else { topic_bytes(&queues.broker_name, topic) };
            self.refuse_more_topics(0, more)?;
            let group = self.groups.get_mut(&queues.broker_name).expect("it was there");
            group.topics_bytes += more;
            group.deleted.remove(topic);
            group.topics.insert(topic.to_owned(), queues);
        }
        Ok(())
    }

    /// Takes a group out of what producers write to, or puts it back; stands until it is put back or forgotten. The
    /// number of its topics.
    pub fn set_write_permission(&mut self, broker_name: &str, allowed: bool) -> usize {
        let Some(group) = self.groups.get_mut(broker_name) else { return 0 };
        group.write_permission_wiped = !allowed;
        group.topics.len()
    }
}

impl Group {
    fn new(cluster: String) -> Group {
        Group {
            cluster,
            enable_acting_master: false,
            zone: None,
            members: BTreeMap::new(),
            leader_term: i64::MIN,
            version: None,
            topics: BTreeMap::new(),
            topics_bytes: 0,
            deleted: BTreeMap::new(),
            write_permission_wiped: false,
        }
    }

    /// The higher term that speaks against a registration, if any.
    fn objection(&self, broker_id: i64, address: &str, term: i64) -> Option<i64> {
        let of_leader = (broker_id == MASTER_ID).then_some(self.leader_term);
        let of_id = self.members.get(&broker_id).map(|member| member.version.state_version);
        let same_address = self.members.values().find(|member| member.address == address);
        let of_address = same_address.map(|member| member.version.state_version);
        [of_leader, of_id, of_address].into_iter().flatten().max().filter(|known| *known > term)
    }

    /// Without a leader the highest term that a remaining member registered stands, if it is lower: a mistaken or forged
    /// claim in a term that the group will never reach must not lock its leaders out once it is gone.
    fn forget_term_without_leader(&mut self) {
        if self.members.contains_key(&MASTER_ID) {
            return;
        }
        let of_members = self.members.values().map(|member| member.version.state_version).max();
        self.leader_term = self.leader_term.min(of_members.unwrap_or(i64::MIN));
    }

    fn replace_topics(&mut self, broker_name: &str, version: DataVersion, topics: Vec<TopicConfig>) {
        if let Some(known) = self.version {
            // Registrations of one leader can overtake each other: several connections lead here.
            let is_older = version.state_version == known.state_version
                && version.counter < known.counter
                && version.timestamp <= known.timestamp;
            if version == known || is_older {
                return;
            }
        }
        self.version = Some(version);
        self.deleted.retain(|_, deleted_at| *deleted_at >= version.counter);
        let kept = topics.into_iter().filter(|topic| !self.deleted.contains_key(&topic.topic_name));
        self.topics = kept.map(|topic| (topic.topic_name.clone(), queues_of(broker_name, &topic))).collect();
        let names = self.topics.keys().chain(self.deleted.keys());
        self.topics_bytes = names.map(|topic| topic_bytes(broker_name, topic)).sum();
    }

    fn leader_address(&self) -> Option<&str> {
        self.members.get(&MASTER_ID).map(|leader| leader.address.as_str())
    }

    fn addresses(&self) -> BTreeMap<i64, String> {
        self.members.iter().map(|(id, member)| (*id, member.address.clone())).collect()
    }

    fn broker_data(&self, broker_name: &str) -> BrokerData {
        BrokerData {
            broker_addrs: self.addresses(),
            broker_name: broker_name.to_owned(),
            cluster: self.cluster.clone(),
            enable_acting_master: self.enable_acting_master,
            zone_name: self.zone.clone(),
        }
    }

    /// The queues as clients may use them.
    fn effective(&self, queues: &QueueData) -> QueueData {
        let perm = Permission(queues.perm);
        let perm = if self.write_permission_wiped { perm.with(Permission::WRITE, false) } else { perm };
        QueueData { perm: perm.0, ..queues.clone() }
    }
}

/// What a topic of a group takes, about: both names, numbers, and the places in the tables.
fn topic_bytes(broker_name: &str, topic: &str) -> usize {
    const REST: usize = 128;
    broker_name.len() + topic.len() + REST
}

fn queues_of(broker_name: &str, topic: &TopicConfig) -> QueueData {
    QueueData {
        broker_name: broker_name.to_owned(),
        perm: topic.perm,
        read_queue_nums: topic.read_queue_nums,
        topic_sys_flag: topic.topic_sys_flag,
        write_queue_nums: topic.write_queue_nums,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plays a script against a table: each line is a command, answered by its outcome and the whole table after it.
    ///
    /// ```text
    /// SECONDS register GROUP ID ADDRESS term.counter CONNECTION TOPIC:QUEUES...
    /// SECONDS alive GROUP ADDRESS CONNECTION [EXPIRY]
    /// SECONDS leave GROUP ADDRESS | close CONNECTION | expire | delete TOPIC | wipe GROUP | restore GROUP
    /// ```
    fn play(script: &str) -> String {
        let mut table = RouteTable::new(Duration::from_secs(120));
        let mut said = String::new();
        for line in script.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let now = Duration::from_secs(words[0].parse().expect("seconds first"));
            let number = |text: &str| text.parse::<i64>().expect("a number");
            let connection = |text: &str| ConnectionId(number(text) as u64);
            let gone = |removed: Vec<MemberName>| {
                let names = removed.iter().map(|member| member.address.as_str()).collect::<Vec<_>>().join(" ");
                format!("gone [{names}]")
            };
            let outcome = match words[1] {
                "register" => {
                    let (term, counter) = words[5].split_once('.').expect("term.counter");
                    let topics = words[7..].iter().map(|topic| {
                        let (name, queues) = topic.split_once(':').expect("topic:queues");
                        TopicConfig::new(name, number(queues) as i32, 6)
                    });
                    let registration = Registration {
                        cluster: "C".into(),
                        broker_name: words[2].into(),
                        broker_id: number(words[3]),
                        address: words[4].into(),
                        ha_address: None,
                        zone: None,
                        enable_acting_master: false,
                        expiry: None,
                        version: DataVersion { counter: number(counter), state_version: number(term), timestamp: 0 },
                        topics: topics.collect(),
                    };
                    match table.register(registration, connection(words[6]), now).expect("there is room") {
                        Registered::Accepted { leader_changed: true } => "new leader".to_owned(),
                        Registered::Accepted { leader_changed: false } => "accepted".to_owned(),
                        Registered::Ignored { known_term } => format!("ignored, term {known_term} is known"),
                    }
                }
                "alive" => {
                    let expiry = words.get(5).map(|seconds| Duration::from_secs(number(seconds) as u64));
                    table.heartbeat(words[2], words[3], expiry, connection(words[4]), now);
                    "heard".to_owned()
                }
                "leave" => gone(table.unregister(words[2], words[3])),
                "close" => gone(table.disconnect(connection(words[2]))),
                "expire" if table.is_expiry_due(now) => gone(table.expire(now)),
                "expire" => "not due".to_owned(),
                "delete" => {
                    table.delete_topic(words[2], None);
                    "deleted".to_owned()
                }
                "wipe" => format!("{} topics", table.set_write_permission(words[2], false)),
                "restore" => format!("{} topics", table.set_write_permission(words[2], true)),
                other => panic!("no such command: {other}"),
            };
            said += &format!("{line}\n  {outcome}{}\n", show(&table));
        }
        said
    }

    fn show(table: &RouteTable) -> String {
        let group = |(name, group): (&String, &Group)| {
            let members = group.members.iter().map(|(id, member)| format!(" {id}={}", member.address));
            let topics = group.topics.iter().map(|(topic, queues)| {
                let QueueData { read_queue_nums, perm, .. } = group.effective(queues);
                format!(" {topic}:{read_queue_nums}:{}", Permission(perm))
            });
            format!("; {name}{} |{}", members.collect::<String>(), topics.collect::<String>())
        };
        table.groups.iter().map(group).collect()
    }

    /// Compares a transcript whose answers stand below their commands, indented.
    fn check(transcript: &str) {
        let trimmed: Vec<&str> = transcript.lines().map(str::trim_end).filter(|line| !line.trim().is_empty()).collect();
        let margin = trimmed.iter().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
        let expected: String = trimmed.iter().map(|line| format!("{}\n", &line[margin..])).collect();
        let commands: String =
            expected.lines().filter(|line| !line.starts_with(' ')).map(|line| format!("{line}\n")).collect();
        assert_eq!(play(&commands), expected);
    }

    #[test]
    fn a_higher_term_takes_the_lead_and_a_lower_one_never_takes_it_back() {
        check(
            "
            0 register a 0 n1 5.1 1 T:4
              new leader; a 0=n1 | T:4:RW-
            0 register a 1 n2 5.1 2 T:4
              accepted; a 0=n1 1=n2 | T:4:RW-
            0 register a 2 n3 5.1 3 T:4
              accepted; a 0=n1 1=n2 2=n3 | T:4:RW-
            1 register a 0 n2 6.1 2 T:4
              new leader; a 0=n2 2=n3 | T:4:RW-
            2 register a 0 n1 5.2 1 T:4 OLD:4
              ignored, term 6 is known; a 0=n2 2=n3 | T:4:RW-
            3 register a 1 n1 6.1 1 T:4
              accepted; a 0=n2 1=n1 2=n3 | T:4:RW-
            4 register a 1 n2 5.1 2 T:4
              ignored, term 6 is known; a 0=n2 1=n1 2=n3 | T:4:RW-
            ",
        );
    }

    #[test]
    fn the_term_outlives_the_leader_but_not_the_group() {
        check(
            "
            0 register a 0 n1 7.1 1 T:4
              new leader; a 0=n1 | T:4:RW-
            0 register a 1 n2 7.1 2 T:4
              accepted; a 0=n1 1=n2 | T:4:RW-
            1 close 1
              gone [n1]; a 1=n2 | T:4:RW-
            2 register a 0 n3 6.9 3 T:4 OLD:4
              ignored, term 7 is known; a 1=n2 | T:4:RW-
            3 close 2
              gone [n2]
            4 register a 0 n9 1.1 9 NEW:1
              new leader; a 0=n9 | NEW:1:RW-
            ",
        );
    }

    #[test]
    fn a_claim_in_a_term_that_nobody_reaches_ends_with_who_made_it() {
        check(
            "
            0 register a 0 n1 5.1 1 T:4
              new leader; a 0=n1 | T:4:RW-
            0 register a 1 n2 5.1 2
              accepted; a 0=n1 1=n2 | T:4:RW-
            1 register a 0 evil 9223372036854775807.1 9 T:4
              new leader; a 0=evil 1=n2 | T:4:RW-
            2 register a 0 n1 5.2 1 T:4
              ignored, term 9223372036854775807 is known; a 0=evil 1=n2 | T:4:RW-
            3 close 9
              gone [evil]; a 1=n2 | T:4:RW-
            4 register a 0 n1 5.2 1 T:4
              new leader; a 0=n1 1=n2 | T:4:RW-
            5 register a 7 evil 9223372036854775807.1 9
              accepted; a 0=n1 1=n2 7=evil | T:4:RW-
            6 register a 1 n1 5.2 1
              new leader; a 1=n1 7=evil | T:4:RW-
            7 register a 0 n2 6.1 2 T:4
              new leader; a 0=n2 1=n1 7=evil | T:4:RW-
            ",
        );
    }

    #[test]
    fn silence_ends_a_member_and_its_group() {
        check(
            "
            0 register a 0 n1 1.1 1 T:4
              new leader; a 0=n1 | T:4:RW-
            60 register a 1 n2 1.1 2
              accepted; a 0=n1 1=n2 | T:4:RW-
            119 expire
              not due; a 0=n1 1=n2 | T:4:RW-
            119 alive a n1 1
              heard; a 0=n1 1=n2 | T:4:RW-
            120 expire
              gone []; a 0=n1 1=n2 | T:4:RW-
            180 expire
              gone [n2]; a 0=n1 | T:4:RW-
            200 alive a n1 1 5
              heard; a 0=n1 | T:4:RW-
            201 alive a n2 2
              heard; a 0=n1 | T:4:RW-
            205 expire
              gone [n1]
            ",
        );
    }

    #[test]
    fn a_closed_connection_takes_only_members_that_still_use_it() {
        check(
            "
            0 register a 0 n1 1.1 1 T:4
              new leader; a 0=n1 | T:4:RW-
            1 register b 0 n2 1.1 1 T:2
              new leader; a 0=n1 | T:4:RW-; b 0=n2 | T:2:RW-
            2 alive a n1 5
              heard; a 0=n1 | T:4:RW-; b 0=n2 | T:2:RW-
            3 close 1
              gone [n2]; a 0=n1 | T:4:RW-
            4 leave a n2
              gone []; a 0=n1 | T:4:RW-
            5 leave a n1
              gone [n1]
            ",
        );
    }

    #[test]
    fn a_deleted_topic_comes_back_only_with_a_later_counter() {
        check(
            "
            0 register a 0 n1 1.8 1 T:4 U:4
              new leader; a 0=n1 | T:4:RW- U:4:RW-
            1 delete T
              deleted; a 0=n1 | U:4:RW-
            2 register a 0 n1 1.8 1 T:4 U:4
              accepted; a 0=n1 | U:4:RW-
            3 register a 0 n1 1.7 1 T:4 U:4 OLD:1
              accepted; a 0=n1 | U:4:RW-
            4 register a 0 n2 2.8 2 T:4 U:4
              new leader; a 0=n2 | U:4:RW-
            5 register a 0 n2 2.9 2 U:4
              accepted; a 0=n2 | U:4:RW-
            6 register a 0 n2 2.10 2 T:1 U:4
              accepted; a 0=n2 | T:1:RW- U:4:RW-
            ",
        );
    }

    #[test]
    fn topics_come_from_the_leader_and_replace_what_was_known() {
        check(
            "
            0 register a 1 n2 1.1 2 T:4
              accepted; a 1=n2 |
            1 register a 0 n1 1.1 1 T:4
              new leader; a 0=n1 1=n2 | T:4:RW-
            2 register a 1 n2 1.5 2 X:9
              accepted; a 0=n1 1=n2 | T:4:RW-
            3 register a 0 n1 1.2 1 U:2
              accepted; a 0=n1 1=n2 | U:2:RW-
            ",
        );
    }

    #[test]
    fn a_drained_group_stays_drained_over_registrations() {
        check(
            "
            0 register a 0 n1 1.1 1 T:4
              new leader; a 0=n1 | T:4:RW-
            1 wipe a
              1 topics; a 0=n1 | T:4:R--
            2 register a 0 n1 1.2 1 T:4 U:4
              accepted; a 0=n1 | T:4:R-- U:4:R--
            3 restore a
              2 topics; a 0=n1 | T:4:RW- U:4:RW-
            4 wipe b
              0 topics; a 0=n1 | T:4:RW- U:4:RW-
            ",
        );
    }

    #[test]
    fn a_version_is_known_of_the_member_in_its_place_only() {
        let mut table = RouteTable::new(Duration::from_secs(120));
        let version = DataVersion { counter: 3, state_version: 2, timestamp: 1 };
        let registration = Registration {
            cluster: "C".into(),
            broker_name: "a".into(),
            broker_id: 0,
            address: "n1".into(),
            ha_address: Some("n1:ha".into()),
            zone: None,
            enable_acting_master: false,
            expiry: None,
            version,
            topics: Vec::new(),
        };
        table.register(registration, ConnectionId(1), Duration::ZERO).expect("there is room");
        assert_eq!(table.known_version("a", 0, "n1"), Some(version));
        assert_eq!((table.known_version("a", 1, "n1"), table.known_version("a", 0, "n2")), (None, None));
        assert_eq!(table.leader("a"), Some(("n1", Some("n1:ha"))));
        assert_eq!(table.system_topics().broker_addr.as_deref(), Some("n1"));
    }

    fn registration(broker_name: &str, broker_id: i64, topics: Vec<TopicConfig>) -> Registration {
        Registration {
            cluster: "C".into(),
            broker_name: broker_name.into(),
            broker_id,
            address: format!("{broker_name}{broker_id}"),
            ha_address: None,
            zone: None,
            enable_acting_master: false,
            expiry: None,
            version: DataVersion { counter: 1, state_version: 1, timestamp: 1 },
            topics,
        }
    }

    #[test]
    fn names_members_and_lengths_are_bounded_and_what_is_known_stays() {
        let mut table = RouteTable::new(Duration::from_secs(120));
        let mut register = |registration| table.register(registration, ConnectionId(1), Duration::ZERO);
        for n in 0..GROUPS_MAX {
            register(registration(&format!("b{n}"), 0, vec![])).expect("there is room");
        }
        assert_eq!(register(registration("one more", 0, vec![])), Err(Full::Groups));
        for id in 1..MEMBERS_MAX as i64 {
            register(registration("b0", id, vec![])).expect("there is room");
        }
        assert_eq!(register(registration("b0", 64, vec![])), Err(Full::Members));
        register(registration("b0", 63, vec![])).expect("it is known");
        let long = Registration { zone: Some("z".repeat(513)), ..registration("b0", 1, vec![]) };
        assert_eq!(register(long), Err(Full::Text { what: "a zone", bytes: 513 }));
        assert_eq!(table.groups.len(), GROUPS_MAX);
    }

    #[test]
    fn topics_of_all_groups_share_one_budget() {
        let room_for_16 = 16 * topic_bytes("a", "T0");
        let mut table = RouteTable { topics_bytes_max: room_for_16, ..RouteTable::new(Duration::from_secs(120)) };
        let topics = |names: std::ops::Range<u8>| -> Vec<TopicConfig> {
            names.map(|n| TopicConfig::new(format!("T{n}"), 1, 6)).collect()
        };
        let mut register = |registration| table.register(registration, ConnectionId(1), Duration::ZERO);
        register(registration("a", 0, topics(0..8))).expect("there is room");
        assert!(matches!(register(registration("b", 0, topics(0..9))), Err(Full::Topics { .. })));
        register(registration("b", 0, topics(0..7))).expect("there is room");
        register(registration("b", 0, topics(0..7))).expect("the same again is no more");
        let queues = |topic: &str| vec![queues_of("a", &TopicConfig::new(topic, 1, 6))];
        let long = "t".repeat(200);
        assert!(matches!(table.register_topic(&long, queues("T")), Err(Full::Topics { .. })));
        table.register_topic("T", queues("T")).expect("there is room");
        let bytes = |table: &RouteTable| table.groups["a"].topics_bytes;
        let before = bytes(&table);
        table.delete_topic("T", None);
        assert_eq!(bytes(&table), before, "what is deleted is still remembered");
        table.register_topic("T", queues("T")).expect("it is known");
        assert_eq!(bytes(&table), before);
    }
}
