//! What tools ask: mqadmin, the dashboard, `raftmq admin`. Their codes come in on the clients' port, through the same
//! gate.
//!
//! - A change is a replicated command, made by the leader; a follower forwards it ([`topics`], [`groups`]).
//! - A question is answered by the replica that was asked, with what it has: that is what tools want to see of it. Only the
//!   configuration of one topic or group is the leader's, with everything that was acknowledged before the question.
//!   Progress, connections and configuration are folds of tables and clients ([`progress`], [`statistics`],
//!   [`connections`]); what a replica says of itself is in [`runtime`] and [`replica`].
//! - Who belongs to the group is changed by its leader, in the log ([`members`]).
//! - Transactions that wait are listed, and taken up again, at the leader ([`transactions`]).
//! - A group is moved elsewhere by a command, and its members are told ([`offsets`]).
//! - Two questions are for a client: they are relayed to it ([`relay`]).
//!
//! Bodies have exactly the members that Java's tools expect; what this broker does not have, such as thread pools, is left
//! out where they allow it.

mod connections;
mod groups;
mod members;
mod offsets;
mod pages;
mod progress;
mod queues;
mod relay;
mod replica;
mod runtime;
mod settings;
pub mod statistics;
mod topics;
mod transactions;

use crate::dispatch::Route;
use crate::route;

pub(crate) use self::queues::QueueView;
pub use self::statistics::Statistics;

/// What tools ask for.
pub const ROUTES: &[Route] = &[
    route!(UPDATE_AND_CREATE_TOPIC, Topic, Create, Leader, topics::create),
    route!(UPDATE_AND_CREATE_TOPIC_LIST, Topic, Create, Leader, topics::create_list),
    route!(DELETE_TOPIC_IN_BROKER, Topic, Delete, Leader, topics::delete),
    route!(GET_ALL_TOPIC_CONFIG, Topic, List, AnyReplica, topics::list),
    route!(GET_TOPIC_CONFIG, Topic, Get, Leader, topics::get),
    route!(GET_SYSTEM_TOPIC_LIST_FROM_BROKER, Topic, List, AnyReplica, topics::system_list),
    route!(UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, Group, Create, Leader, groups::create),
    route!(UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, Group, Create, Leader, groups::create_list),
    route!(DELETE_SUBSCRIPTIONGROUP, Group, Delete, Leader, groups::delete),
    route!(GET_ALL_SUBSCRIPTIONGROUP_CONFIG, Group, List, AnyReplica, groups::list),
    route!(GET_SUBSCRIPTIONGROUP_CONFIG, Group, Get, Leader, groups::get),
    route!(GET_TOPIC_STATS_INFO, Topic, Get, AnyReplica, progress::topic_stats),
    route!(GET_CONSUME_STATS, Group, Get, AnyReplica, progress::consume_stats),
    route!(GET_BROKER_CONSUME_STATS, Cluster, Get, AnyReplica, progress::broker_consume_stats),
    route!(QUERY_TOPIC_CONSUME_BY_WHO, Topic, Get, AnyReplica, progress::groups_of_topic),
    route!(QUERY_TOPICS_BY_CONSUMER, Group, Get, AnyReplica, progress::topics_of_group),
    route!(QUERY_CONSUME_TIME_SPAN, Group, Get, AnyReplica, progress::time_span),
    route!(QUERY_CONSUME_QUEUE, Topic, Get, AnyReplica, progress::consume_queue),
    route!(INVOKE_BROKER_TO_RESET_OFFSET, Group, Update, Leader, offsets::reset),
    route!(CLONE_GROUP_OFFSET, Group, Update, Leader, offsets::clone_offsets),
    route!(INVOKE_BROKER_TO_GET_CONSUMER_STATUS, Group, Get, AnyReplica, offsets::consumer_status),
    route!(GET_ALL_CONSUMER_OFFSET, Group, List, AnyReplica, progress::all_offsets),
    route!(VIEW_BROKER_STATS_DATA, Cluster, Get, AnyReplica, progress::view_stats),
    route!(GET_CONSUMER_CONNECTION_LIST, Group, Get, AnyReplica, connections::of_consumers),
    route!(GET_PRODUCER_CONNECTION_LIST, Cluster, Get, AnyReplica, connections::of_producers),
    route!(GET_ALL_PRODUCER_INFO, Cluster, Get, AnyReplica, connections::all_producers),
    route!(QUERY_SUBSCRIPTION_BY_CONSUMER, Group, Get, AnyReplica, connections::subscription),
    route!(GET_CONSUMER_RUNNING_INFO, Group, Get, AnyReplica, relay::running_info),
    route!(CONSUME_MESSAGE_DIRECTLY, Group, Sub, AnyReplica, relay::consume_directly),
    route!(GET_BROKER_RUNTIME_INFO, Cluster, Get, AnyReplica, runtime::runtime_info),
    route!(GET_BROKER_HA_STATUS, Cluster, Get, AnyReplica, runtime::ha_status),
    route!(GET_BROKER_CONFIG, Cluster, Get, AnyReplica, settings::get),
    route!(UPDATE_BROKER_CONFIG, Cluster, Update, AnyReplica, settings::update),
    route!(CLEAN_EXPIRED_CONSUMEQUEUE, Cluster, Update, AnyReplica, settings::clean),
    route!(CLEAN_UNUSED_TOPIC, Cluster, Update, AnyReplica, settings::clean),
    route!(DELETE_EXPIRED_COMMITLOG, Cluster, Update, AnyReplica, settings::clean),
    route!(GET_REPLICA_STATUS, Cluster, Get, AnyReplica, replica::status),
    route!(MAKE_CHECKPOINT, Cluster, Update, Leader, replica::make_checkpoint),
    route!(ADD_LEARNER, Cluster, Update, Leader, members::add_learner),
    route!(CHANGE_VOTERS, Cluster, Update, Leader, members::change_voters),
    route!(TRANSFER_LEADER, Cluster, Update, Leader, members::transfer_leader),
    route!(LIST_TRANSACTIONS, Cluster, List, Leader, transactions::list),
    route!(RESUME_CHECK_HALF_MESSAGE, Topic, Update, Leader, transactions::resume),
];
