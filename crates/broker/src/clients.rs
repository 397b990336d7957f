//! Who is connected: producers and consumers by group. Soft state, made of heartbeats; nothing here survives a restart,
//! and nothing needs to: clients say it all again every 30 s.
//!
//! Pure: time is an argument, and what should be told to whom is returned.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use protocol::body::{ConsumerData, HeartbeatData, SubscriptionData};
use protocol::language::Language;

use crate::filter::{BadFilter, Filter};

/// A client that has been silent for longer is gone.
pub const EXPIRY: Duration = Duration::from_secs(120);

/// Groups that one client may be in, as producer and as consumer together.
pub const GROUPS_MAX: usize = 1_024;

/// Memberships of all clients together: ten thousand connections with a hundred groups each.
const MEMBERSHIPS_MAX: usize = 1_000_000;

/// Topics that one heartbeat may subscribe a group to.
pub const SUBSCRIPTIONS_MAX: usize = 1_024;

/// A connection, by the number that `remoting` gave it.
pub type ConnectionId = u64;

/// A client in one group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// What it calls itself.
    pub client_id: String,
    /// Where it connects from.
    pub address: SocketAddr,
    /// What it is written in.
    pub language: Language,
    /// Its version ordinal.
    pub version: i32,
    /// Monotonic time of its last heartbeat.
    pub last_seen: Duration,
}

/// What a group wants of one topic, taken apart once, because every pull looks at it.
#[derive(Clone, Debug)]
pub struct Subscription {
    /// As the members said it.
    pub data: SubscriptionData,
    /// What the expression says; an error if it makes no sense.
    pub filter: Result<Arc<Filter>, BadFilter>,
}

impl Subscription {
    fn new(data: &SubscriptionData) -> Subscription {
        Subscription { data: data.clone(), filter: Filter::of(data).map(Arc::new) }
    }
}

/// A consumer group as its members describe it.
#[derive(Clone, Debug)]
pub struct ConsumerGroup {
    /// Type, model and first offset: those of the last heartbeat. Its subscriptions are in `subscriptions`.
    pub described: ConsumerData,
    /// The newest subscription to each topic.
    pub subscriptions: BTreeMap<String, Subscription>,
    /// Members by connection.
    pub members: BTreeMap<ConnectionId, Arc<Member>>,
}

/// Everybody who is connected.
#[derive(Debug, Default)]
pub struct Clients {
    known: BTreeMap<ConnectionId, Known>,
    /// The connections of `known` by what the clients behind them call themselves.
    by_id: BTreeMap<String, BTreeSet<ConnectionId>>,
    producers: BTreeMap<String, BTreeMap<ConnectionId, Arc<Member>>>,
    consumers: BTreeMap<String, ConsumerGroup>,
    /// Groups of all that is known, added up.
    memberships: usize,
}

/// The client behind a connection.
#[derive(Debug, Default)]
struct Known {
    /// What it calls itself.
    client_id: String,
    /// What its last whole heartbeat called its subscriptions; 0 if that was of the first version.
    fingerprint: i32,
    /// What it is a member of, so that its farewell need not look into every group.
    groups: BTreeSet<(Role, String)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    Producer,
    Consumer,
}

/// A heartbeat that is not taken in: nothing of it counts.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum TooManyGroups {
    /// Of this client: it should leave some.
    #[error("a client would be in {0} groups, at most {GROUPS_MAX}")]
    OfClient(usize),
    /// Of all clients together: later, or elsewhere.
    #[error("all clients together would be in {0} groups, at most {MEMBERSHIPS_MAX}")]
    OfAll(usize),
}

/// Members to tell that their group has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Changed(BTreeMap<String, BTreeSet<ConnectionId>>);

impl Changed {
    /// Groups with the connections of those members that are still there.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &BTreeSet<ConnectionId>)> {
        self.0.iter().map(|(group, members)| (group.as_str(), members))
    }

    /// Whether nobody needs to be told anything.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// What a heartbeat led to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// Groups that gained a member or whose set of topics has changed.
    pub changed: Changed,
    /// The heartbeat left its subscriptions out, and they are not known here: the next one must carry them.
    pub needs_subscriptions: bool,
}

impl Clients {
    /// Takes in a heartbeat.
    pub fn heartbeat(
        &mut self,
        connection: ConnectionId,
        member: Member,
        heartbeat: &HeartbeatData,
    ) -> Result<Heard, TooManyGroups> {
        let known = self.know(connection, &member.client_id, heartbeat)?;
        let is_told = if heartbeat.without_sub {
            known.fingerprint == heartbeat.heartbeat_fingerprint
        } else {
            known.fingerprint = heartbeat.heartbeat_fingerprint;
            true
        };
        let member = Arc::new(member);
        let mut heard = Heard::default();
        for producer in &heartbeat.producer_data_set {
            self.producers.entry(producer.group_name.clone()).or_default().insert(connection, member.clone());
        }
        for described in &heartbeat.consumer_data_set {
            let without_subscriptions =
                |described: &ConsumerData| ConsumerData { subscription_data_set: Vec::new(), ..described.clone() };
            let group = self.consumers.entry(described.group_name.clone()).or_insert_with(|| ConsumerGroup {
                described: without_subscriptions(described),
                subscriptions: BTreeMap::new(),
                members: BTreeMap::new(),
            });
            let joined = group.members.insert(connection, member.clone()).is_none();
            let mut resubscribed = false;
            if heartbeat.without_sub {
                heard.needs_subscriptions |= joined || !is_told;
            } else {
                group.described = without_subscriptions(described);
                resubscribed = group.subscribe(&described.subscription_data_set);
            }
            if joined || resubscribed {
                heard.changed.0.insert(described.group_name.clone(), group.members.keys().copied().collect());
            }
        }
        Ok(heard)
    }

    /// Remembers who is behind a connection and what groups it is in, unless these are too many.
    fn know(
        &mut self,
        connection: ConnectionId,
        client_id: &str,
        heartbeat: &HeartbeatData,
    ) -> Result<&mut Known, TooManyGroups> {
        let producers = heartbeat.producer_data_set.iter().map(|group| (Role::Producer, group.group_name.clone()));
        let consumers = heartbeat.consumer_data_set.iter().map(|group| (Role::Consumer, group.group_name.clone()));
        let mut groups: BTreeSet<(Role, String)> = producers.chain(consumers).collect();
        if self.client_id(connection) != Some(client_id) {
            self.forget_name(connection);
            self.by_id.entry(client_id.to_owned()).or_default().insert(connection);
        }
        let known = self.known.entry(connection).or_default();
        client_id.clone_into(&mut known.client_id);
        groups.retain(|group| !known.groups.contains(group));
        let (of_client, of_all) = (known.groups.len() + groups.len(), self.memberships + groups.len());
        if of_client > GROUPS_MAX {
            return Err(TooManyGroups::OfClient(of_client));
        }
        if of_all > MEMBERSHIPS_MAX && !groups.is_empty() {
            return Err(TooManyGroups::OfAll(of_all));
        }
        self.memberships = of_all;
        known.groups.append(&mut groups);
        Ok(known)
    }

    /// A client leaves one group, or both of its roles.
    pub fn unregister(&mut self, connection: ConnectionId, producer: Option<&str>, consumer: Option<&str>) -> Changed {
        let named = [producer.map(|group| (Role::Producer, group)), consumer.map(|group| (Role::Consumer, group))];
        let named = named.into_iter().flatten();
        self.remove(named.map(|(role, group)| (connection, role, group.to_owned())).collect())
    }

    /// A connection is closed: its client leaves every group.
    pub fn closed(&mut self, connection: ConnectionId) -> Changed {
        let Some(known) = self.known.get(&connection) else { return Changed::default() };
        let all = known.groups.iter().map(|(role, group)| (connection, *role, group.clone())).collect();
        let changed = self.remove(all);
        self.forget_name(connection);
        self.known.remove(&connection);
        changed
    }

    /// Drops who has been silent for too long.
    pub fn expire(&mut self, now: Duration) -> Changed {
        let silent = |member: &Member| now.saturating_sub(member.last_seen) > EXPIRY;
        let mut gone = Vec::new();
        let producers = self.producers.iter().map(|(name, members)| (Role::Producer, name, members));
        let consumers = self.consumers.iter().map(|(name, group)| (Role::Consumer, name, &group.members));
        for (role, name, members) in producers.chain(consumers) {
            let silent = members.iter().filter(|(_, member)| silent(member));
            gone.extend(silent.map(|(connection, _)| (*connection, role, name.clone())));
        }
        let changed = self.remove(gone);
        let silent = self.known.iter().filter(|(_, known)| known.groups.is_empty());
        for connection in silent.map(|(connection, _)| *connection).collect::<Vec<_>>() {
            self.forget_name(connection);
            self.known.remove(&connection);
        }
        changed
    }

    fn forget_name(&mut self, connection: ConnectionId) {
        let Some(name) = self.known.get(&connection).map(|known| known.client_id.as_str()) else { return };
        if let Some(connections) = self.by_id.get_mut(name) {
            connections.remove(&connection);
            if connections.is_empty() {
                self.by_id.remove(name);
            }
        }
    }

    /// What the client behind a connection calls itself, if it was heard.
    pub fn client_id(&self, connection: ConnectionId) -> Option<&str> {
        self.known.get(&connection).map(|known| known.client_id.as_str())
    }

    /// The consumer group, if anybody of it is connected.
    pub fn consumer_group(&self, name: &str) -> Option<&ConsumerGroup> {
        self.consumers.get(name)
    }

    /// The newest connection of a producer that calls itself so.
    pub fn producer(&self, client_id: &str) -> Option<ConnectionId> {
        let is_producer = |known: &Known| known.groups.iter().any(|(role, _)| *role == Role::Producer);
        let named = self.by_id.get(client_id)?.iter().rev();
        named.copied().find(|connection| self.known.get(connection).is_some_and(is_producer))
    }

    /// All consumer groups with members.
    pub fn consumer_groups(&self) -> impl Iterator<Item = (&str, &ConsumerGroup)> {
        self.consumers.iter().map(|(name, group)| (name.as_str(), group))
    }

    /// The group's producers, by connection.
    pub fn producer_group(&self, name: &str) -> Option<&BTreeMap<ConnectionId, Arc<Member>>> {
        self.producers.get(name)
    }

    /// All producer groups with members.
    pub fn producer_groups(&self) -> impl Iterator<Item = (&str, &BTreeMap<ConnectionId, Arc<Member>>)> {
        self.producers.iter().map(|(name, members)| (name.as_str(), members))
    }

    fn remove(&mut self, gone: Vec<(ConnectionId, Role, String)>) -> Changed {
        let mut changed = Changed::default();
        for (connection, role, group) in gone {
            let place = (role, group);
            if !self.known.get_mut(&connection).is_some_and(|known| known.groups.remove(&place)) {
                continue;
            }
            self.memberships -= 1;
            let (_, name) = place;
            match role {
                Role::Producer => {
                    let members = self.producers.get_mut(&name).expect("a member's group is known");
                    members.remove(&connection);
                    if members.is_empty() {
                        self.producers.remove(&name);
                    }
                }
                Role::Consumer => {
                    let members = &mut self.consumers.get_mut(&name).expect("a member's group is known").members;
                    members.remove(&connection);
                    if members.is_empty() {
                        self.consumers.remove(&name);
                    }
                    changed.0.insert(name, BTreeSet::new());
                }
            }
        }
        // Only those who are still there when all of them have left.
        changed.0.retain(|name, members| {
            members.extend(self.consumers.get(name).iter().flat_map(|group| group.members.keys()));
            !members.is_empty()
        });
        changed
    }
}

impl ConsumerGroup {
    /// Ids of the members, each once per connection, in order of the id: what clients sort by anyway.
    pub fn client_ids(&self) -> Vec<&str> {
        let mut ids: Vec<_> = self.members.values().map(|member| member.client_id.as_str()).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes the subscriptions of the last heartbeat: the newer version of each topic wins, topics that it does not
    /// name are dropped. Whether the set of topics has changed.
    fn subscribe(&mut self, wanted: &[SubscriptionData]) -> bool {
        let mut changed = false;
        for subscription in wanted {
            match self.subscriptions.get_mut(&subscription.topic) {
                None => {
                    self.subscriptions.insert(subscription.topic.clone(), Subscription::new(subscription));
                    changed = true;
                }
                Some(known) if known.data.sub_version < subscription.sub_version => {
                    *known = Subscription::new(subscription);
                }
                Some(_) => {}
            }
        }
        let before = self.subscriptions.len();
        let named: BTreeSet<&str> = wanted.iter().map(|subscription| subscription.topic.as_str()).collect();
        self.subscriptions.retain(|topic, _| named.contains(topic.as_str()));
        changed || self.subscriptions.len() < before
    }
}

#[cfg(test)]
mod tests {
    use protocol::body::ProducerData;

    use super::*;

    #[test]
    fn a_producer_is_found_by_what_it_calls_itself_as_long_as_it_is_one() {
        let mut clients = Clients::default();
        let produces = HeartbeatData {
            producer_data_set: vec![ProducerData { group_name: "pg".to_owned() }],
            ..HeartbeatData::default()
        };
        for (connection, name) in [(1, "a"), (2, "a"), (3, "b"), (4, "c")] {
            clients.heartbeat(connection, member(name, 0), &produces).expect("taken in");
        }
        assert_eq!((clients.producer("a"), clients.producer("b"), clients.producer("x")), (Some(2), Some(3), None));
        clients.closed(2);
        assert_eq!(clients.producer("a"), Some(1));
        clients.heartbeat(1, member("d", 0), &produces).expect("taken in");
        assert_eq!((clients.producer("a"), clients.producer("d")), (None, Some(1)), "it calls itself otherwise now");
        clients.unregister(3, Some("pg"), None);
        assert_eq!(clients.producer("b"), None, "connected, and no producer");
        clients.expire(Duration::from_secs(1_000));
        assert_eq!(clients.producer("c"), None);
        assert!(clients.by_id.is_empty() && clients.known.is_empty());
    }

    fn member(client_id: &str, seconds: u64) -> Member {
        Member {
            client_id: client_id.to_owned(),
            address: "127.0.0.1:1".parse().expect("an address"),
            language: Language::JAVA,
            version: 479,
            last_seen: Duration::from_secs(seconds),
        }
    }

    fn heartbeat(group: &str, topics: &[(&str, &str, i64)]) -> HeartbeatData {
        let subscription_data_set = topics
            .iter()
            .map(|(topic, expression, version)| SubscriptionData {
                topic: (*topic).to_owned(),
                sub_string: (*expression).to_owned(),
                sub_version: *version,
                ..SubscriptionData::default()
            })
            .collect();
        HeartbeatData {
            consumer_data_set: vec![ConsumerData {
                group_name: group.to_owned(),
                subscription_data_set,
                ..ConsumerData::default()
            }],
            producer_data_set: vec![ProducerData { group_name: "p".to_owned() }],
            ..HeartbeatData::default()
        }
    }

    fn hear(clients: &mut Clients, connection: ConnectionId, member: Member, said: &HeartbeatData) -> Heard {
        clients.heartbeat(connection, member, said).expect("few groups")
    }

    fn told(changed: &Changed) -> Vec<(&str, Vec<ConnectionId>)> {
        changed.iter().map(|(group, members)| (group, members.iter().copied().collect())).collect()
    }

    #[test]
    fn members_are_told_of_a_newcomer_and_of_a_leaver_and_of_nothing_else() {
        let mut clients = Clients::default();
        let wanted = heartbeat("g", &[("T", "*", 1)]);
        assert_eq!(told(&hear(&mut clients, 1, member("b", 0), &wanted).changed), [("g", vec![1])]);
        assert!(hear(&mut clients, 1, member("b", 30), &wanted).changed.is_empty());
        assert_eq!(told(&hear(&mut clients, 2, member("a", 30), &wanted).changed), [("g", vec![1, 2])]);
        assert_eq!(clients.consumer_group("g").expect("a group").client_ids(), ["a", "b"]);
        assert_eq!((clients.client_id(2), clients.client_id(3)), (Some("a"), None));
        assert!(clients.unregister(2, Some("p"), None).is_empty(), "a producer leaves nobody to tell");
        assert_eq!(told(&clients.unregister(2, None, Some("g"))), [("g", vec![1])]);
        assert!(clients.closed(1).is_empty(), "nobody is left");
        assert!(clients.consumer_group("g").is_none() && clients.producer_group("p").is_none());
    }

    #[test]
    fn the_newest_subscription_wins_and_a_topic_no_longer_named_is_dropped() {
        let mut clients = Clients::default();
        hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[("T", "A", 5), ("U", "*", 5)]));
        let changed = hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[("T", "B", 4)])).changed;
        assert!(!changed.is_empty(), "U is gone");
        let filter = |clients: &Clients| {
            let group = clients.consumer_group("g").expect("a group");
            group.subscriptions["T"].filter.clone().expect("a filter")
        };
        assert!(filter(&clients).may_match(65), "an older version does not win");
        assert!(hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[("T", "B", 6)])).changed.is_empty());
        assert!(filter(&clients).may_match(66));
        hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[("T", "||", 7)]));
        assert!(clients.consumer_group("g").expect("a group").subscriptions["T"].filter.is_err());
    }

    #[test]
    fn the_silent_are_gone_after_two_minutes() {
        let mut clients = Clients::default();
        hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[]));
        hear(&mut clients, 2, member("b", 100), &heartbeat("g", &[]));
        assert!(clients.expire(Duration::from_secs(120)).is_empty());
        assert_eq!(told(&clients.expire(Duration::from_secs(121))), [("g", vec![2])]);
        assert_eq!(clients.producer_group("p").expect("one is left").len(), 1);
    }

    #[test]
    fn a_short_heartbeat_keeps_what_is_known_and_asks_for_what_is_not() {
        let mut clients = Clients::default();
        let short = HeartbeatData { without_sub: true, ..heartbeat("g", &[]) };
        let heard = hear(&mut clients, 1, member("a", 0), &short);
        assert!(heard.needs_subscriptions && !heard.changed.is_empty(), "a member of unknown subscriptions");
        hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[("T", "*", 1)]));
        assert_eq!(hear(&mut clients, 1, member("a", 30), &short), Heard::default());
        let changed = HeartbeatData { heartbeat_fingerprint: 7, ..short };
        assert!(hear(&mut clients, 1, member("a", 30), &changed).needs_subscriptions, "it has others by now");
        hear(
            &mut clients,
            1,
            member("a", 30),
            &HeartbeatData { heartbeat_fingerprint: 7, ..heartbeat("g", &[("T", "*", 1)]) },
        );
        assert_eq!(hear(&mut clients, 1, member("a", 30), &changed), Heard::default());
        assert!(clients.consumer_group("g").expect("a group").subscriptions.contains_key("T"));
    }

    #[test]
    fn who_leaves_one_group_out_is_gone_from_that_one_only() {
        let mut clients = Clients::default();
        hear(&mut clients, 1, member("a", 0), &heartbeat("g", &[]));
        hear(&mut clients, 1, member("a", 100), &heartbeat("h", &[]));
        assert!(clients.expire(Duration::from_secs(121)).is_empty(), "nobody is left in g");
        assert!(clients.consumer_group("g").is_none() && clients.consumer_group("h").is_some());
        assert_eq!(clients.client_id(1), Some("a"));
        clients.expire(Duration::from_secs(221));
        assert_eq!((clients.client_id(1), clients.memberships), (None, 0));
    }

    #[test]
    fn a_client_that_names_other_groups_each_time_is_refused_in_the_end() {
        let mut clients = Clients::default();
        let producers = |names: std::ops::Range<usize>| HeartbeatData {
            producer_data_set: names.map(|n| ProducerData { group_name: format!("p{n}") }).collect(),
            ..HeartbeatData::default()
        };
        hear(&mut clients, 1, member("a", 0), &producers(0..1_000));
        let refused = clients.heartbeat(1, member("a", 1), &producers(500..1_025));
        assert_eq!(refused, Err(TooManyGroups::OfClient(1_025)));
        assert!(clients.producer_group("p1001").is_none(), "nothing of it counts");
        hear(&mut clients, 1, member("a", 2), &producers(500..1_024));
        hear(&mut clients, 2, member("b", 2), &heartbeat("g", &[]));
        assert_eq!(clients.memberships, 1_026);
        clients.closed(1);
        assert_eq!((clients.memberships, clients.producer_groups().count()), (2, 1));
    }
}
