//! Three replicas: a client may ask any of them, and nothing acknowledged is lost with one of them.

use std::sync::Arc;

use broker::config::{BrokerConfig, GroupConfig};
use broker::{Broker, BrokerGroup};
use env::disk::simulated::SimDisk;
use env::{Env, Rng};
use protocol::body::ConsumerIdList;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{ConsumerGroupRequest, PullMessageRequest, RegisterBrokerRequest, SendMessageRequestV2};
use protocol::record::RecordView;
use raft_store::group::Role;

use crate::world::*;

pub struct Three {
    pub brokers: Vec<Broker>,
    configs: Vec<BrokerConfig>,
    _dirs: Vec<tempfile::TempDir>,
}

impl Three {
    pub async fn start(name_servers: Vec<String>) -> Three {
        Three::start_in(vec![Env::real(); 3], name_servers).await
    }

    /// Each in surroundings of its own.
    async fn start_in(envs: Vec<Env>, name_servers: Vec<String>) -> Three {
        Three::start_with(envs, name_servers, |_| {}).await
    }

    /// With a configuration that is `change`d.
    pub async fn start_with(envs: Vec<Env>, name_servers: Vec<String>, change: impl Fn(&mut GroupConfig)) -> Three {
        let dirs: Vec<_> = (0..3).map(|_| tempfile::tempdir().expect("a directory")).collect();
        let mut groups: Vec<_> = dirs.iter().map(|dir| group_config(dir.path())).collect();
        groups.iter_mut().for_each(change);
        let founders: Vec<String> = groups.iter().map(|group| group.peer_address.clone()).collect();
        groups.iter_mut().for_each(|group| group.founders = founders.clone());
        let configs: Vec<_> = groups.into_iter().map(|group| broker_config(group, name_servers.clone())).collect();
        let starts = envs.into_iter().zip(&configs).map(|(env, config)| start_in(env, config.clone()));
        let brokers = futures::future::join_all(starts).await;
        Three { brokers, configs, _dirs: dirs }
    }

    pub fn group(&self, at: usize) -> &Arc<BrokerGroup> {
        &self.brokers[at].groups()[0]
    }

    fn leader_now(&self) -> Option<usize> {
        (0..self.brokers.len())
            .find(|at| matches!(self.group(*at).status().raft.role, Role::Leader { ready: true, .. }))
    }

    pub async fn leader(&self) -> usize {
        until("somebody leads", async || self.leader_now().is_some()).await;
        self.leader_now().expect("somebody leads")
    }
}

/// The leader's disk fills up, whoever wrote there; those of the others do not. It would refuse every message for as long as
/// it leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_hands_over_and_messages_go_on() {
    let disks: Vec<_> = (0..3).map(|seed| SimDisk::new(Rng::seeded(seed))).collect();
    let envs = disks.iter().map(|disk| Env { disk: Arc::new(disk.clone()), ..Env::real() });
    let three = Three::start_in(envs.collect(), vec![]).await;
    let full = three.leader().await;
    let client = Wire::to(three.group((full + 1) % 3));
    client.sent("T", "before", &[]).await;
    // What is made ready of its log is all that it has left.
    disks[full].set_capacity(1 << 20);
    until("somebody else leads", async || three.leader_now().is_some_and(|leader| leader != full)).await;
    let stored = async || client.send(send_request("T", &[]), "after").await.code == 0;
    until("messages are taken again", stored).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_forwards_what_only_the_leader_does_and_serves_what_it_can() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let follower = (leader + 1) % 3;
    until("the follower knows", async || three.group(follower).status().is_ready).await;
    let (at_leader, at_follower) = (Wire::to(three.group(leader)), Wire::to(three.group(follower)));

    let sent = at_follower.sent("T", "through a follower", &[]).await;
    assert_eq!(sent.queue_offset, Some(0));
    let pulled = at_leader.pull(parked(pull_request("T", 0))).await;
    assert_eq!(pulled.bodies(), ["through a follower"]);
    let own = at_follower.client.connection(&at_follower.address).await.expect("a connection").local_addr();
    let record = RecordView::parse(&pulled.messages[0].record).expect("a record");
    assert_eq!(record.born_host(), own, "the client's address, not the follower's");

    // Nobody can claim to come from elsewhere: neither of a follower nor of the leader is that believed.
    for wire in [&at_leader, &at_follower] {
        for key in ["true", "0", "00000000000000000000000000000000"] {
            let forged = [
                ("raftmqForwarded", key),
                ("raftmqBornHost", "10.9.8.7:1"),
                ("raftmqClientId", "c9"),
                ("raftmqRemainingMs", "1"),
            ];
            let request = SendMessageRequestV2(send_request("T", &[]));
            let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &request).with_body("forged");
            let request = forged.iter().fold(request, |request, (name, value)| request.with_field(name, value));
            assert_eq!(wire.call(request).await.code, 14, "{key}");
        }
    }
    let named = Wire::offset_update("forged", "T", 1).with_field("raftmqBornHost", "10.9.8.7:1");
    assert_eq!(
        at_follower.call(named.with_field("raftmqClientId", "c9")).await.code,
        26,
        "the rest alone says nothing"
    );
    assert_eq!(at_leader.max_offset("T").await, 1, "nothing was stored");

    until("the topic is applied there", async || at_follower.pull(pull_request("T", 0)).await.code == 0).await;
    let pulled = at_follower.pull(pull_request("T", 0)).await;
    let record = RecordView::parse(&pulled.messages[0].record).expect("a record");
    assert_eq!(record.store_host(), three.group(follower).advertised_address(), "whoever serves it");
    assert_eq!(at_follower.max_offset("T").await, 1);

    let ahead = PullMessageRequest { queue_offset: 5, ..pull_request("T", 0) };
    let pulled = at_follower.pull(ahead.clone()).await;
    assert_eq!((pulled.code, pulled.next()), (19, 5), "it may merely be behind");
    assert_eq!(at_leader.pull(ahead).await.code, 21, "the leader knows");

    at_follower.heartbeat("c1", "g", &[("T", "*")]).await;
    let list = ConsumerGroupRequest { consumer_group: "g".to_owned(), broker_name: None };
    let list = RemotingCommand::request_with(RequestCode::GET_CONSUMER_LIST_BY_GROUP, &list);
    let ids = at_follower.call(list.clone()).await.json::<ConsumerIdList>().expect("a body").consumer_id_list;
    assert_eq!(ids, ["c1"], "heard by the replica that was told");
    assert_eq!(at_leader.call(list).await.code, 1, "and by no other");
    assert_eq!(at_follower.call(Wire::offset_update("g", "T", 1)).await.code, 0, "the group was made by the leader");
    assert_eq!(at_leader.consumer_offset("g", "T", false).await, Ok(1));
    at_follower.client.one_way(&at_follower.address, Wire::offset_update("g", "T", 2)).await.expect("it is queued");
    until("a one-way update is forwarded too", async || at_leader.consumer_offset("g", "T", false).await == Ok(2))
        .await;
    assert!(at_follower.lock("c1", "g", "T").await);
    assert!(!at_leader.lock("c2", "g", "T").await);

    for broker in &three.brokers {
        broker.stop().await.expect("it stops");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_with_the_leader_and_its_timers_fire_elsewhere() {
    let (server, heard) = name_server().await;
    let mut three = Three::start(vec![server.local_addr().to_string()]).await;
    let killed = three.leader().await;
    let wire = Wire::to(three.group(killed));
    for k in 0..20 {
        wire.sent("T", &format!("m{k}"), &[]).await;
    }
    wire.sent("T", "later", &[("DELAY", "1")]).await;
    three.brokers[killed].kill().await;

    let survivor = (killed + 1) % 3;
    let at_survivor = Wire::to(three.group(survivor));
    until("somebody else leads", async || {
        (0..3).any(|at| at != killed && matches!(three.group(at).status().raft.role, Role::Leader { ready: true, .. }))
    })
    .await;
    assert_eq!(at_survivor.sent("T", "after", &[]).await.queue_id, Some(0), "here, or forwarded");
    let bodies = async || at_survivor.pull(pull_request("T", 0)).await;
    until("all of it is there, the timer's too", async || bodies().await.messages.len() == 22).await;
    let pulled = bodies().await;
    let mut expected: Vec<String> = (0..20).map(|k| format!("m{k}")).collect();
    assert_eq!(pulled.bodies()[..20], expected.iter().map(String::as_str).collect::<Vec<_>>());
    expected = vec!["after".to_owned(), "later".to_owned()];
    let mut rest: Vec<String> = pulled.bodies()[20..].iter().map(|body| (*body).to_owned()).collect();
    rest.sort();
    assert_eq!(rest, expected, "each once");

    let leaders = || {
        let heard = heard.requests.lock();
        let mut addresses: Vec<String> = heard
            .iter()
            .filter(|request| request.request_code() == RequestCode::REGISTER_BROKER)
            .filter_map(|request| request.header::<RegisterBrokerRequest>().ok())
            .filter(|header| header.broker_id == 0)
            .map(|header| header.broker_addr)
            .collect();
        addresses.dedup();
        addresses
    };
    until("the new leader is registered", async || leaders().len() == 2).await;
    assert_eq!(leaders()[0], three.group(killed).advertised_address().to_string());

    three.brokers[killed] = start(three.configs[killed].clone()).await;
    let back = Wire::to(three.group(killed));
    until("the killed one has caught up", async || back.pull(pull_request("T", 0)).await.messages.len() == 22).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planned_stop_of_the_leader_is_no_error_to_a_producer() {
    let three = Arc::new(Three::start(vec![]).await);
    let leader = three.leader().await;
    let other = (leader + 1) % 3;
    let wire = Wire::to(three.group(other));
    until("the other knows", async || three.group(other).status().is_ready).await;
    let producing = tokio::spawn({
        let wire = Wire::to(three.group(other));
        async move {
            for k in 0..200 {
                wire.sent("T", &format!("m{k}"), &[]).await;
            }
        }
    });
    until("it is producing", async || wire.max_offset("T").await > 10).await;
    three.brokers[leader].stop().await.expect("it stops");
    producing.await.expect("every send was answered with success");
    let mut bodies = Vec::new();
    while bodies.len() < 200 {
        let pulled = wire.pull(parked(pull_request("T", bodies.len() as i64))).await;
        bodies.extend(pulled.messages.into_iter().map(|message| message.body));
    }
    assert_eq!(bodies, (0..200).map(|k| format!("m{k}")).collect::<Vec<_>>(), "each once, in order");
    assert_eq!(wire.max_offset("T").await, 200);
}
