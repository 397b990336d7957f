//! Clients with transactions: half messages, and ends of every kind, while faults strike.
//!
//! Half messages and ends go over raw connections, each once, so that it is known what was said; questions are answered by the
//! product's own client, from a database that says how the local transactions have ended.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Client, ReceivedMessage, TransactionState, TransactionalProducer};
use parking_lot::Mutex;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{EndTransactionRequest, SendMessageRequest, SendMessageRequestV2, SendMessageResponse};
use protocol::message_id::MessageId;
use protocol::properties::{self, Properties};

use super::clients::{Caller, Lost, body, value_of};
use super::history::{End, Transaction};
use super::host::NAME_SERVER_PORT;
use super::workload::{DELAYED_TOPIC, now_ms};

const COMMIT: i32 = 8;
const ROLLBACK: i32 = 12;

/// How the local transactions of one client have ended. One that is not in here is going on.
type Database = Arc<Mutex<BTreeMap<u64, bool>>>;

/// A half message that is stored.
#[derive(Clone, Copy, Debug)]
struct Half {
    value: u64,
    /// Its place in the history.
    at: usize,
    physical_offset: i64,
    queue_offset: i64,
}

impl Caller {
    /// Begins transactions and ends them once, twice, both ways, or not at all; answers questions until nothing waits.
    pub async fn transact(mut self) {
        let group = format!("transactors-{}", self.rng.below(u64::MAX));
        let database = Database::default();
        let (client, producer) = self.answer(&group, &database).await;
        while !self.work.stops.get() {
            let Some(half) = self.begin(&group, &database).await else {
                self.pause().await;
                continue;
            };
            self.pause().await;
            let takes_place = self.rng.chance(1, 2);
            if takes_place {
                self.transaction(&half, |transaction| transaction.committed_ms = Some(now_ms()));
            }
            database.lock().insert(half.value, takes_place);
            let end = if takes_place { COMMIT } else { ROLLBACK };
            match self.rng.below(4) {
                // Nobody but the database tells.
                0 => {}
                1 => self.end(&group, &half, end).await,
                2 => {
                    for _ in 0..3 {
                        self.end(&group, &half, end).await;
                    }
                }
                _ => {
                    // It has changed its mind, perhaps too late.
                    self.transaction(&half, |transaction| {
                        transaction.committed_ms.get_or_insert_with(now_ms);
                    });
                    let mut ends = [COMMIT, ROLLBACK];
                    if self.rng.chance(1, 2) {
                        ends.reverse();
                    }
                    for end in ends {
                        self.end(&group, &half, end).await;
                    }
                }
            }
            self.pause().await;
        }
        while !self.work.is_settled.get() {
            self.env.clock.sleep(Duration::from_millis(50)).await;
        }
        drop(producer);
        client.shutdown().await;
    }

    /// A client that answers questions about the group.
    async fn answer(&self, group: &str, database: &Database) -> (Client, TransactionalProducer) {
        let name_server = SocketAddr::new(self.work.name_server, NAME_SERVER_PORT);
        let client = Client::builder().name_servers(name_server.to_string()).env(self.env.clone());
        let client = client.client_id(group).build().expect("a good configuration");
        let database = database.clone();
        let checker = move |message: Arc<ReceivedMessage>| {
            let took_place = database.lock().get(&value_of(message.body())).copied();
            async move {
                match took_place {
                    Some(true) => TransactionState::Commit,
                    Some(false) => TransactionState::Rollback,
                    None => TransactionState::Unknown,
                }
            }
        };
        loop {
            let started = client.transactional_producer(group).topic(DELAYED_TOPIC).start(checker.clone()).await;
            if let Ok(producer) = started {
                return (client, producer);
            }
            self.pause().await;
        }
    }

    /// Stores a half message. One that may be stored without an answer did not take place.
    async fn begin(&mut self, group: &str, database: &Database) -> Option<Half> {
        let value = self.work.value();
        let at = self.work.invoke(|history, _| {
            let half = End::Info;
            let (committed_ms, is_committed, is_rolled_back) = (None, false, false);
            history.transactions.push(Transaction { value, half, committed_ms, is_committed, is_rolled_back });
            history.transactions.len() - 1
        });
        let mut all = Properties::new();
        all.set(properties::TRAN_MSG, true);
        all.set(properties::PGROUP, group);
        let header = SendMessageRequestV2(SendMessageRequest {
            producer_group: group.to_owned(),
            topic: DELAYED_TOPIC.to_owned(),
            default_topic: "TBW102".to_owned(),
            default_topic_queue_nums: 1,
            born_timestamp: self.env.clock.wall_ms(),
            properties: Some(all.into_encoded()),
            ..SendMessageRequest::default()
        });
        let request = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &header).with_body(body(value));
        let placed = self.call(request).await.and_then(|answer| answer.header().map_err(|_| Lost::Unknown));
        let placed: Result<SendMessageResponse, Lost> = placed;
        let (end, placed) = match placed {
            Ok(placed) => (End::Ok((), self.work.ends(value)), Some(placed)),
            Err(lost) => {
                database.lock().insert(value, false);
                (lost.end(), None)
            }
        };
        self.work.history.borrow_mut().transactions[at].half = end;
        let placed = placed?;
        let id: MessageId = placed.msg_id.as_deref().unwrap_or_default().parse().expect("a broker's id");
        let queue_offset = placed.queue_offset.expect("a broker's offset");
        Some(Half { value, at, physical_offset: id.physical_offset, queue_offset })
    }

    /// Says once how the transaction ends; notes what is answered.
    async fn end(&mut self, group: &str, half: &Half, how: i32) {
        let header = EndTransactionRequest {
            topic: Some(DELAYED_TOPIC.to_owned()),
            producer_group: group.to_owned(),
            tran_state_table_offset: half.queue_offset,
            commit_log_offset: half.physical_offset,
            commit_or_rollback: how,
            ..EndTransactionRequest::default()
        };
        let request = RemotingCommand::request_with(RequestCode::END_TRANSACTION, &header);
        if self.call(request).await.is_ok() {
            self.work.ends(half.value);
            self.transaction(half, |transaction| match how {
                COMMIT => transaction.is_committed = true,
                _ => transaction.is_rolled_back = true,
            });
        }
    }

    fn transaction(&self, half: &Half, note: impl FnOnce(&mut Transaction)) {
        note(&mut self.work.history.borrow_mut().transactions[half.at]);
    }
}
