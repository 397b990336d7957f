//! Topics and consumer groups: created, changed, deleted and asked for, a few at a time, so that each stays small enough to
//! be searched. The value of a topic is its number of queues, that of a group how often it retries.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use client::RequestError;
use client::admin::Admin;
use env::{Env, Rng};
use protocol::body::{SubscriptionGroupConfig, SubscriptionGroupWrapper, TopicConfig, TopicConfigSerializeWrapper};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{CreateTopicRequest, GroupRequest, TopicRequest};
use remoting::{CallError, Client, NoRequests};

use super::{CALL, Clients, Failure, Worker};
use crate::history::edn::Edn;

const CLIENTS: u32 = 8;

/// Topics, and as many groups, that are used at one time.
const AT_A_TIME: u64 = 3;

/// They are used for so long.
const GENERATION: Duration = Duration::from_secs(3);

/// Between two operations of a client.
const PACE: Duration = Duration::from_millis(5);

const TOPICS: &str = "jepsen-topic-";
const GROUPS: &str = "jepsen-group-";

/// Values are below this: a topic has no more queues.
const VALUES: u64 = 64;

/// Starts the clients.
pub(super) fn start(clients: &mut Clients, rng: &Rng) -> io::Result<()> {
    let began = clients.site.env.clock.monotonic();
    for _ in 0..CLIENTS {
        clients.active.push(tokio::spawn(work(Worker::new(&clients.site, rng), began)));
    }
    Ok(())
}

async fn work(mut worker: Worker, began: Duration) -> io::Result<()> {
    while !worker.site.is_stopped() {
        let generation = (worker.site.env.clock.monotonic() - began).as_secs() / GENERATION.as_secs();
        let number = generation * AT_A_TIME + worker.rng.below(AT_A_TIME);
        let thing = if worker.rng.chance(1, 2) { Thing::Topic(number) } else { Thing::Group(number) };
        match worker.rng.below(10) {
            0..4 => read(&mut worker, thing).await?,
            4..8 => {
                let value = 1 + worker.rng.below(VALUES);
                write(&mut worker, thing, Some(value)).await?;
            }
            _ => write(&mut worker, thing, None).await?,
        }
        worker.site.env.clock.sleep(PACE).await;
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Thing {
    Topic(u64),
    Group(u64),
}

impl Thing {
    fn name(self) -> String {
        match self {
            Thing::Topic(number) => format!("{TOPICS}{number}"),
            Thing::Group(number) => format!("{GROUPS}{number}"),
        }
    }
}

async fn write(worker: &mut Worker, thing: Thing, value: Option<u64>) -> io::Result<()> {
    let told = Edn::vector([Edn::from(thing.name()), value.into()]);
    let node = worker.node();
    worker.recorded.invoke("metadata-write", told.clone(), vec![node])?;
    let admin = Admin::new(&worker.site.env, vec![worker.site.name_server.to_string()]).with_timeout(CALL);
    let done = change(&admin, &worker.address().to_string(), thing, value).await;
    worker.ended(done.map(|()| told).map_err(Failure::from)).await.map(drop)
}

async fn change(admin: &Admin, broker: &str, thing: Thing, value: Option<u64>) -> Result<(), RequestError> {
    match (thing, value) {
        (Thing::Topic(_), Some(queues)) => {
            let topic = CreateTopicRequest {
                topic: thing.name(),
                read_queue_nums: queues as i32,
                write_queue_nums: queues as i32,
                perm: 6,
                topic_filter_type: Some("SINGLE_TAG".to_owned()),
                ..CreateTopicRequest::default()
            };
            admin.put_topic(broker, &topic).await
        }
        (Thing::Group(_), Some(times)) => {
            let config = SubscriptionGroupConfig::new(thing.name());
            admin.put_group(broker, &SubscriptionGroupConfig { retry_max_times: times as i32, ..config }).await
        }
        (Thing::Topic(_), None) => admin.delete_topic(broker, &thing.name()).await,
        (Thing::Group(_), None) => admin.delete_group(broker, &thing.name(), true).await,
    }
}

async fn read(worker: &mut Worker, thing: Thing) -> io::Result<()> {
    let node = worker.node();
    worker.recorded.invoke("metadata-read", Edn::vector([Edn::from(thing.name()), Edn::Nil]), vec![node])?;
    let told = ask(&worker.remoting, worker.address(), thing).await;
    let told = told.map(|value| Edn::vector([Edn::from(thing.name()), value.into()]));
    // It changes nothing: without an answer it failed.
    worker.ended(told.map_err(|why| Failure { why, certain: true })).await.map(drop)
}

async fn ask(client: &Client<NoRequests>, broker: SocketAddr, thing: Thing) -> Result<Option<i64>, String> {
    let name = thing.name();
    let (request, none) = match thing {
        Thing::Topic(_) => {
            let header = TopicRequest { topic: name, ..TopicRequest::default() };
            (RemotingCommand::request_with(RequestCode::GET_TOPIC_CONFIG, &header), ResponseCode::TOPIC_NOT_EXIST)
        }
        Thing::Group(_) => {
            let header = GroupRequest { group: name };
            let request = RemotingCommand::request_with(RequestCode::GET_SUBSCRIPTIONGROUP_CONFIG, &header);
            (request, ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST)
        }
    };
    let answer = client.call(&broker.to_string(), request, CALL).await.map_err(|error: CallError| error.to_string())?;
    match (answer.response_code(), thing) {
        (code, _) if code == none => Ok(None),
        (ResponseCode::SUCCESS, Thing::Topic(_)) => {
            let config: TopicConfig = answer.json().map_err(|error| error.to_string())?;
            Ok(Some(config.read_queue_nums.into()))
        }
        (ResponseCode::SUCCESS, Thing::Group(_)) => {
            let config: SubscriptionGroupConfig = answer.json().map_err(|error| error.to_string())?;
            Ok(Some(config.retry_max_times.into()))
        }
        (code, _) => Err(format!("{code}: {}", answer.remark_text())),
    }
}

/// Every topic and group of the workload that one replica knows, with its value.
pub(in crate::run) async fn scan(env: &Env, replica: SocketAddr) -> Result<Edn, String> {
    let client = Client::new(env, remoting::Limits::default(), std::sync::Arc::new(NoRequests));
    let list = async |code| {
        let answer = client.call(&replica.to_string(), RemotingCommand::request(code), CALL).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.is_success() { Ok(answer) } else { Err(answer.remark_text().to_owned()) }
    };
    let topics: TopicConfigSerializeWrapper =
        list(RequestCode::GET_ALL_TOPIC_CONFIG).await?.json().map_err(|error| error.to_string())?;
    let groups: SubscriptionGroupWrapper =
        list(RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG).await?.json().map_err(|error| error.to_string())?;
    let topics = topics.topic_config_table.into_iter().map(|(name, config)| (name, config.read_queue_nums));
    let groups = groups.subscription_group_table.into_iter().map(|(name, config)| (name, config.retry_max_times));
    let ours = topics.chain(groups).filter(|(name, _)| name.starts_with(TOPICS) || name.starts_with(GROUPS));
    Ok(Edn::Map(ours.map(|(name, value)| (name.into(), i64::from(value).into())).collect()))
}
