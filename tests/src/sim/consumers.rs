//! Clients that do what consumers do beside pulling: store offsets, one way and two ways, and lock queues.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::body::{LockBatchRequest, LockBatchResponse, MessageQueue};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{OffsetResponse, QueryConsumerOffsetRequest, UpdateConsumerOffsetRequest};

use super::clients::{Caller, Lost};
use super::history::{Access, End, Grant, Sighting};
use super::host::BROKER_NAME;
use super::workload::{GROUP, TOPIC, now_ms};

/// Offsets that clients store and read two ways: few, so that they meet.
const REGISTERS: u32 = 2;

/// The queue whose offset is stored one way.
const PUSHED: u32 = 2;

impl Caller {
    /// Stores and reads consumer offsets.
    pub async fn keep_offsets(mut self) {
        while !self.work.stops.get() {
            let register = self.rng.below(u64::from(REGISTERS)) as u32;
            let stores = self.rng.chance(1, 2).then(|| self.work.value());
            let at = self.work.invoke(|history, invoked| {
                history.accesses.push(Access { register, stores, invoked, end: End::Info });
                history.accesses.len() - 1
            });
            let answered = match stores {
                Some(value) => self.store(register, value).await,
                None => self.query(register).await,
            };
            let end = match answered {
                Ok(value) => End::Ok(value, self.work.ends(value)),
                Err(lost) => lost.end(),
            };
            self.work.history.borrow_mut().accesses[at].end = end;
            self.pause().await;
        }
    }

    /// Sends offsets that grow, each one way, over a connection of its own: to the broker that is another client, which may
    /// not move back what another one has stored. And reads what is stored.
    pub async fn push_offsets(mut self) {
        // A connection that is dropped may not have sent yet.
        let mut open = VecDeque::new();
        while !self.work.stops.get() {
            if self.rng.chance(1, 2) {
                let raw = self.another();
                // Whether it arrives, nobody says.
                let _ = raw.one_way(&self.broker(), update_of(PUSHED, self.work.value())).await;
                open.push_back(raw);
                if open.len() > 8 {
                    open.pop_front();
                }
                self.at = self.rng.below(self.work.brokers.len() as u64) as usize;
            } else {
                let invoked = self.work.invoke(|_, invoked| invoked);
                if let Ok(value) = self.query(PUSHED).await {
                    let ended = self.work.ends(value);
                    self.work.history.borrow_mut().sightings.push(Sighting { value, invoked, ended });
                }
            }
            self.pause().await;
        }
    }

    /// Reads stored offsets, for a while at the same broker: one that may not lead any more.
    pub async fn watch_offsets(mut self) {
        while !self.work.stops.get() {
            let register = self.rng.below(u64::from(REGISTERS)) as u32;
            let at = self.work.invoke(|history, invoked| {
                history.accesses.push(Access { register, stores: None, invoked, end: End::Info });
                history.accesses.len() - 1
            });
            if let Ok(value) = self.query(register).await {
                let ended = self.work.ends(value);
                self.work.history.borrow_mut().accesses[at].end = End::Ok(value, ended);
            }
            if self.rng.chance(1, 30) {
                self.try_next();
            }
            self.pause().await;
        }
    }

    /// Takes and gives back the lock of a queue, or lets it end by itself.
    pub async fn lock_queue(mut self, name: &'static str) {
        let mut lives = 0;
        let mut client = name.to_owned();
        while !self.work.stops.get() {
            let invoked_ms = now_ms();
            let granted = match self.call(lock_request(RequestCode::LOCK_BATCH_MQ, &client)).await {
                Ok(answer) => answer.json::<LockBatchResponse>().is_ok_and(|locked| !locked.lock_ok_mq_set.is_empty()),
                Err(_) => false,
            };
            if granted {
                self.work.ends(1);
                let grant = Grant { client: client.clone(), invoked_ms, answered_ms: now_ms(), left_ms: u64::MAX };
                self.work.history.borrow_mut().grants.push(grant);
                self.env.clock.sleep(Duration::from_millis(self.rng.below(self.work.lease_ms))).await;
                if self.rng.chance(1, 2) && !self.leave(&client).await {
                    // What it gave back may yet be given back, when it has taken it again.
                    lives += 1;
                    client = format!("{name}-{lives}");
                }
            }
            self.pause().await;
        }
    }

    /// Gives the lock back; whether that was answered.
    async fn leave(&mut self, client: &str) -> bool {
        for grant in self.work.history.borrow_mut().grants.iter_mut().filter(|grant| grant.client == client) {
            grant.left_ms = grant.left_ms.min(now_ms());
        }
        self.call(lock_request(RequestCode::UNLOCK_BATCH_MQ, client)).await.is_ok()
    }

    async fn store(&mut self, register: u32, value: u64) -> Result<u64, Lost> {
        self.call(update_of(register, value)).await?;
        Ok(value)
    }

    async fn query(&mut self, register: u32) -> Result<u64, Lost> {
        let header = QueryConsumerOffsetRequest {
            consumer_group: GROUP.to_owned(),
            topic: TOPIC.to_owned(),
            queue_id: register as i32,
            ..QueryConsumerOffsetRequest::default()
        };
        let request = RemotingCommand::request_with(RequestCode::QUERY_CONSUMER_OFFSET, &header);
        match self.call(request).await {
            Ok(answer) => {
                answer.header::<OffsetResponse>().map(|answer| answer.offset as u64).map_err(|_| Lost::Unknown)
            }
            Err(Lost::Told(ResponseCode::QUERY_NOT_FOUND)) => Ok(0),
            Err(lost) => Err(lost),
        }
    }
}

fn update_of(register: u32, value: u64) -> RemotingCommand {
    let header = UpdateConsumerOffsetRequest {
        consumer_group: GROUP.to_owned(),
        topic: TOPIC.to_owned(),
        queue_id: register as i32,
        commit_offset: value as i64,
        ..UpdateConsumerOffsetRequest::default()
    };
    RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &header)
}

/// Asks for a lock, or gives it back: that of the first queue.
fn lock_request(code: RequestCode, client: &str) -> RemotingCommand {
    let body = LockBatchRequest {
        client_id: client.to_owned(),
        consumer_group: GROUP.to_owned(),
        mq_set: vec![MessageQueue::new(TOPIC, BROKER_NAME, 0)],
        only_this_broker: false,
    };
    RemotingCommand::request(code).with_json(&body)
}
