//! Transactions that are committed, rolled back, or both at once, and some that their producers never end, so that whoever is
//! asked decides; and readers.
//!
//! What a producer's database would be is here a table that all producers share. A producer that leaves within a transaction
//! takes its client library along.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use client::admin::Admin;
use client::{Message, ReceivedMessage, SendReceipt, Transaction, TransactionState, TransactionalProducer};
use env::Rng;
use parking_lot::Mutex;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::EndTransactionRequest;
use protocol::message_id::MessageId;
use protocol::sys_flag::TransactionType;
use remoting::CallError;

use super::{AGAIN, CALL, Clients, Failure, Site, Worker, message_queue, reading};
use crate::append::{self, QUEUES};
use crate::cluster::PATIENCE;
use crate::history::edn::Edn;
use crate::run::operations;

/// The topic of this workload.
pub const TOPIC: &str = "jepsen-transactions";

const GROUP: &str = "jepsen-transactions-producers";

const PRODUCERS: u32 = 24;
const POLLERS: u32 = 2;

/// Between two transactions of one producer.
const PACE: Duration = Duration::from_millis(10);

/// Longer than a broker waits for the end of a transaction before it asks.
const LATE: Duration = Duration::from_millis(1_500);

/// How local transactions have ended.
#[derive(Clone, Default)]
struct Database {
    ended: Arc<Mutex<BTreeMap<u64, TransactionState>>>,
    /// Why the history is incomplete, if it is.
    failed: Arc<Mutex<Option<String>>>,
}

/// What its producer does about the end of a transaction.
#[derive(Clone, Copy)]
enum Ending {
    /// Says how it ended.
    Told,
    /// Says so twice.
    ToldTwice,
    /// Nothing.
    Silence,
    /// Says the opposite of what whoever is asked says.
    Contradicted,
    /// Nothing, and it leaves.
    Leaves,
}

/// Starts producers and readers.
pub(super) async fn start(clients: &mut Clients, rng: &Rng) -> io::Result<()> {
    let (site, database) = (&clients.site, Database::default());
    for _ in 0..PRODUCERS {
        clients.active.push(tokio::spawn(transact(Worker::new(site, rng), database.clone())));
    }
    let poller = |_| tokio::spawn(reading::poll(Worker::new(site, rng), TOPIC, Site::has_ended));
    clients.passive.extend((0..POLLERS).map(poller));
    let (client, producer) = database.join(site).await?;
    clients.answering = Some(Answering { client, _producer: producer, database });
    Ok(())
}

async fn transact(mut worker: Worker, database: Database) -> io::Result<()> {
    let mut joined = database.join(&worker.site).await?;
    while !worker.site.is_stopped() {
        let (queue, value) = (worker.rng.below(QUEUES.into()) as u32, worker.site.new_value());
        let message = Message::new(TOPIC, append::body(value));
        worker.recorded.invoke("send", operations::send(queue, value), vec![("transaction", true.into())])?;
        let begun = joined.1.begin_in(message, &message_queue(TOPIC, queue)).await;
        let ended = match &begun {
            Ok(_) if worker.rng.chance(3, 4) => TransactionState::Commit,
            // One that was perhaps not begun was not carried out.
            _ => TransactionState::Rollback,
        };
        let accepted = begun.as_ref().map(|_| operations::sent(queue, Edn::Nil, value));
        worker.ended(accepted.map_err(|error| Failure::from(error.clone()))).await?;
        database.ended.lock().insert(value, ended);
        if let Ok(transaction) = begun {
            let ending = match worker.rng.below(100) {
                0..50 => Ending::Told,
                50..65 => Ending::ToldTwice,
                65..85 => Ending::Silence,
                85..99 => Ending::Contradicted,
                _ => Ending::Leaves,
            };
            end(&mut worker, value, transaction, ended, ending).await?;
            if matches!(ending, Ending::Leaves) {
                joined.0.shutdown().await;
                joined = database.join(&worker.site).await?;
            }
        }
        worker.site.env.clock.sleep(PACE).await;
    }
    joined.0.shutdown().await;
    Ok(())
}

async fn end(
    worker: &mut Worker,
    value: u64,
    transaction: Transaction,
    ended: TransactionState,
    ending: Ending,
) -> io::Result<()> {
    let says = match ending {
        Ending::Told => vec![ended],
        Ending::ToldTwice => vec![ended, ended],
        Ending::Silence | Ending::Leaves => vec![],
        Ending::Contradicted => {
            worker.site.env.clock.sleep(LATE).await;
            let is_commit = ended == TransactionState::Commit;
            vec![if is_commit { TransactionState::Rollback } else { TransactionState::Commit }]
        }
    };
    let receipt = transaction.receipt().clone();
    let mut transaction = Some(transaction);
    for state in says {
        worker.recorded.invoke("end", said(value, state), Vec::new())?;
        let told = match (transaction.take(), state) {
            (Some(transaction), TransactionState::Commit) => transaction.commit().await.map_err(Failure::from),
            (Some(transaction), _) => transaction.rollback().await.map_err(Failure::from),
            (None, _) => end_anywhere(worker, &receipt, state).await,
        };
        let told = told.map(|()| said(value, state)).map_err(|failure| Failure {
            // Another end has won: this one has not, and never will.
            certain: failure.certain || failure.why.contains("before"),
            ..failure
        });
        worker.ended(told).await?;
    }
    Ok(())
}

/// An end as any broker may get it: a repeated one, on another way than the first.
async fn end_anywhere(worker: &Worker, receipt: &SendReceipt, state: TransactionState) -> Result<(), Failure> {
    let id: MessageId = receipt.offset_message_id.parse().map_err(|_| unknown("no offset message id".to_owned()))?;
    let commit = if state == TransactionState::Commit { TransactionType::Commit } else { TransactionType::Rollback };
    let end = EndTransactionRequest {
        topic: Some(TOPIC.to_owned()),
        producer_group: GROUP.to_owned(),
        tran_state_table_offset: receipt.queue_offset,
        commit_log_offset: id.physical_offset,
        commit_or_rollback: commit as i32,
        from_transaction_check: false,
        msg_id: Some(receipt.unique_key.clone()),
        transaction_id: Some(receipt.unique_key.clone()),
        broker_name: None,
    };
    let request = RemotingCommand::request_with(RequestCode::END_TRANSACTION, &end);
    match worker.remoting.call(&worker.address().to_string(), request, CALL).await {
        Ok(answer) if answer.is_success() => Ok(()),
        Ok(answer) => Err(unknown(format!("{}: {}", answer.response_code(), answer.remark_text()))),
        Err(CallError::NotSent(why)) => Err(Failure { why, certain: true }),
        Err(CallError::Unknown(why)) => Err(unknown(why)),
    }
}

fn unknown(why: String) -> Failure {
    Failure { why, certain: false }
}

fn said(value: u64, state: TransactionState) -> Edn {
    let state = match state {
        TransactionState::Commit => Edn::keyword("commit"),
        TransactionState::Rollback => Edn::keyword("rollback"),
        TransactionState::Unknown => Edn::Nil,
    };
    Edn::vector([value.into(), state])
}

impl Database {
    /// A producer on a client library of its own, which is asked about all transactions.
    async fn join(&self, site: &Site) -> io::Result<(client::Client, TransactionalProducer)> {
        let client = site.library()?;
        let (database, asked_at) = (self.clone(), site.clone());
        let checker = move |message: Arc<ReceivedMessage>| {
            let (database, site) = (database.clone(), asked_at.clone());
            async move { database.asked(&site, &message) }
        };
        let deadline = site.env.clock.monotonic() + PATIENCE;
        loop {
            let producer = client.transactional_producer(GROUP).timeout(CALL).topic(TOPIC);
            match producer.start(checker.clone()).await {
                Ok(producer) => return Ok((client, producer)),
                Err(error) if site.env.clock.monotonic() > deadline => return Err(io::Error::other(error)),
                Err(_) => site.env.clock.sleep(AGAIN).await,
            }
        }
    }

    fn asked(&self, site: &Site, message: &ReceivedMessage) -> TransactionState {
        let mut recorded = site.recorder.client();
        let mut answer = || {
            let value = append::value(message.body())?;
            recorded.invoke("check", said(value, TransactionState::Unknown), Vec::new())?;
            let state = self.ended.lock().get(&value).copied().unwrap_or(TransactionState::Unknown);
            recorded.ok(said(value, state), Vec::new())?;
            io::Result::Ok(state)
        };
        answer().unwrap_or_else(|error| {
            self.failed.lock().get_or_insert(error.to_string());
            TransactionState::Unknown
        })
    }
}

/// A producer that stays to be asked.
pub(super) struct Answering {
    client: client::Client,
    _producer: TransactionalProducer,
    database: Database,
}

impl Answering {
    /// Waits until every transaction has ended and records that, or that it never came to it.
    pub async fn settle(self, site: &Site) -> io::Result<()> {
        site.record_end("settle", Edn::Nil, PATIENCE, async || !has_waiting(site).await).await?;
        self.client.shutdown().await;
        match self.database.failed.lock().take() {
            Some(error) => Err(io::Error::other(error)),
            None => Ok(()),
        }
    }
}

/// Whether a transaction waits for its end, as far as any replica knows, or one does not say.
async fn has_waiting(site: &Site) -> bool {
    let admin = Admin::new(&site.env, vec![site.name_server.to_string()]);
    for replica in &site.replicas {
        for state in ["unasked", "asked", "discarded"] {
            match admin.transactions(&replica.to_string(), state, None, 1).await {
                Ok(waiting) if waiting.transactions.is_empty() => {}
                _ => return true,
            }
        }
    }
    false
}
