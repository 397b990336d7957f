//! Consumer offsets: a few clients on the queues of one group at a time, so that each register stays small enough to be
//! searched. After a while all go on to a new group.
//!
//! A two-way update sets any offset, also a smaller one. One-way updates only rise: a broker drops those that are late by
//! which connection they come on, and a client has several.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use client::RequestError;
use client::admin::Admin;
use env::Rng;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{OffsetResponse, QueryConsumerOffsetRequest, UpdateConsumerOffsetRequest};
use remoting::CallError;

use super::{CALL, Clients, Failure, Site, Worker};
use crate::append::{QUEUES, create_topic};
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;

const TOPIC: &str = "jepsen-offsets";
const CLIENTS: u32 = 8;

/// A group is used for so long.
const GROUP: Duration = Duration::from_secs(2);

/// Between two operations of a client.
const PACE: Duration = Duration::from_millis(3);

/// Which group is used now, and the greatest offset so far.
#[derive(Default)]
struct Shared {
    group: AtomicU64,
    greatest: AtomicU64,
}

/// Starts the clients, and who makes their groups.
pub(super) async fn start(clients: &mut Clients, rng: &Rng) -> io::Result<()> {
    let site = &clients.site;
    create_topic(&site.env, &site.replicas, TOPIC, QUEUES).await?;
    site.create_group(&name(0)).await?;
    let shared = Arc::new(Shared::default());
    clients.offsets = Some(LastLook { worker: Worker::new(site, rng), shared: shared.clone() });
    clients.active.push(tokio::spawn(make_groups(site.clone(), Arc::clone(&shared))));
    for _ in 0..CLIENTS {
        clients.active.push(tokio::spawn(work(Worker::new(site, rng), Arc::clone(&shared))));
    }
    Ok(())
}

fn name(group: u64) -> String {
    format!("jepsen-offsets-{group}")
}

async fn make_groups(site: Site, shared: Arc<Shared>) -> io::Result<()> {
    let mut next = 1;
    while !site.is_stopped() {
        let made_at = site.env.clock.monotonic();
        site.create_group(&name(next)).await?;
        while !site.is_stopped() && site.env.clock.monotonic() < made_at + GROUP {
            site.env.clock.sleep(PACE).await;
        }
        shared.group.store(next, Ordering::Relaxed);
        next += 1;
    }
    Ok(())
}

async fn work(mut worker: Worker, shared: Arc<Shared>) -> io::Result<()> {
    while !worker.site.is_stopped() {
        let group = name(shared.group.load(Ordering::Relaxed));
        let queue = worker.rng.below(QUEUES.into()) as u32;
        match worker.rng.below(10) {
            0..5 => drop(query(&mut worker, group, queue).await?),
            5..8 => {
                let offset = worker.rng.below(shared.greatest.load(Ordering::Relaxed) + 1);
                update(&mut worker, group, queue, offset).await?;
            }
            _ => {
                let offset = shared.greatest.fetch_add(1, Ordering::Relaxed) + 1;
                update_one_way(&mut worker, group, queue, offset).await?;
            }
        }
        worker.site.env.clock.sleep(PACE).await;
    }
    Ok(())
}

/// Who asks for all offsets once more when nobody sets any.
pub(super) struct LastLook {
    worker: Worker,
    shared: Arc<Shared>,
}

impl LastLook {
    /// Asks until there is an answer, or patience ends. What is missing then, the checker says.
    pub async fn take(mut self) -> io::Result<()> {
        let clock = self.worker.site.env.clock.clone();
        let deadline = clock.monotonic() + PATIENCE;
        for group in 0..=self.shared.group.load(Ordering::Relaxed) {
            for queue in 0..QUEUES {
                while !query(&mut self.worker, name(group), queue).await? && clock.monotonic() < deadline {}
            }
        }
        Ok(())
    }
}

/// Whether there was an answer.
async fn query(worker: &mut Worker, group: String, queue: u32) -> io::Result<bool> {
    let key = key(&group, queue);
    let node = worker.node();
    worker.recorded.invoke("query-offset", Edn::vector([key.clone(), Edn::Nil]), vec![node])?;
    let header = QueryConsumerOffsetRequest {
        consumer_group: group,
        topic: TOPIC.to_owned(),
        queue_id: queue as i32,
        set_zero_if_not_found: Some(false),
        broker_name: None,
    };
    let request = RemotingCommand::request_with(RequestCode::QUERY_CONSUMER_OFFSET, &header);
    let told = worker.remoting.call(&worker.address().to_string(), request, CALL).await;
    let told = told.map_err(|error| error.to_string()).and_then(|answer| match answer.response_code() {
        ResponseCode::QUERY_NOT_FOUND => Ok(Edn::Nil),
        ResponseCode::SUCCESS => {
            let told = answer.header().map_err(|error| error.to_string());
            told.map(|OffsetResponse { offset }| offset.into())
        }
        code => Err(format!("{code}: {}", answer.remark_text())),
    });
    // It changes nothing: without an answer it failed.
    let told = told.map(|offset| Edn::vector([key, offset])).map_err(|why| Failure { why, certain: true });
    worker.ended(told).await
}

async fn update(worker: &mut Worker, group: String, queue: u32, offset: u64) -> io::Result<()> {
    let value = Edn::vector([key(&group, queue), offset.into()]);
    let node = worker.node();
    worker.recorded.invoke("update-offset", value.clone(), vec![node, client_of(worker)])?;
    let admin = Admin::new(&worker.site.env, vec![worker.site.name_server.to_string()]).with_timeout(CALL);
    let broker = worker.address().to_string();
    let done = admin.update_consumer_offset(&broker, &group, TOPIC, queue as i32, offset as i64).await;
    worker.ended(done.map(|()| value).map_err(|error: RequestError| error.into())).await.map(drop)
}

/// Nobody says what became of it.
async fn update_one_way(worker: &mut Worker, group: String, queue: u32, offset: u64) -> io::Result<()> {
    let value = Edn::vector([key(&group, queue), offset.into()]);
    let extra = vec![worker.node(), client_of(worker), ("one-way", true.into())];
    worker.recorded.invoke("update-offset", value, extra)?;
    let header = UpdateConsumerOffsetRequest {
        consumer_group: group,
        topic: TOPIC.to_owned(),
        queue_id: queue as i32,
        commit_offset: offset as i64,
        broker_name: None,
    };
    let request = RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &header);
    match worker.remoting.one_way(&worker.address().to_string(), request).await {
        Err(CallError::NotSent(why)) => {
            worker.recorded.fail(&why)?;
            worker.go_elsewhere();
        }
        Err(CallError::Unknown(why)) => {
            worker.recorded.info(&why)?;
            worker.go_elsewhere();
        }
        Ok(()) => worker.recorded.info("one-way")?,
    }
    Ok(())
}

fn key(group: &str, queue: u32) -> Edn {
    Edn::vector([Edn::from(group), queue.into()])
}

/// Who it is towards the brokers: the worker, whatever number the history gives it now.
fn client_of(worker: &Worker) -> (&'static str, Edn) {
    ("client", worker.name.as_str().into())
}
