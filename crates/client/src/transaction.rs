//! Transactions: a message that is stored before a local transaction and visible after it, or never.
//!
//! A half message goes out first; then the program does what it has to do, and ends the transaction by a commit or a
//! rollback. If that word is lost, or the program dies, a broker asks any live producer of the group how the transaction has
//! ended: its [`TransactionChecker`] looks, usually into the program's own database.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use protocol::body::MessageQueue;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{CheckTransactionStateRequest, EndTransactionRequest};
use protocol::message_id::MessageId;
use protocol::properties;
use protocol::sys_flag::TransactionType;
use remoting::Connection;
use tokio::sync::Semaphore;

use crate::builder::Client;
use crate::errors::{InvalidMessage, RequestError, SendError, StartError};
use crate::message::{Message, ReceivedMessage};
use crate::producer::{Durability, Producer, ProducerBuilder, SendReceipt, StartProducerError};
use crate::retry::AfterUnknown;
use crate::trace::TransactionEnd;

/// Checks of one producer at a time; the next ones wait.
const CHECKS_AT_ONCE: usize = 32;

/// How a local transaction has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TransactionState {
    /// It took place: consumers are to see the message.
    Commit,
    /// It did not, and never will: nobody is to see the message.
    Rollback,
    /// That is not known yet: the broker asks again later, a limited number of times.
    Unknown,
}

impl TransactionState {
    /// As END_TRANSACTION says it.
    pub(crate) fn wire(self) -> i32 {
        match self {
            TransactionState::Commit => TransactionType::Commit as i32,
            TransactionState::Rollback => TransactionType::Rollback as i32,
            TransactionState::Unknown => TransactionType::None as i32,
        }
    }
}

/// Finds out how local transactions have ended. Implemented for closures that take an `Arc<ReceivedMessage>` and return a
/// future.
///
/// Brokers ask when they have heard nothing for a while: after 6 s, and again every 30 s, unless configured otherwise. Any
/// producer of the group may be asked about any transaction of the group, also about one that another process began, and one
/// that is still going on. A transaction that was never begun, because its half message seemed not to be stored, should be
/// answered with [`TransactionState::Rollback`]. A panic counts as [`TransactionState::Unknown`].
pub trait TransactionChecker: Send + Sync + 'static {
    /// How the transaction of this message has ended. Tell messages by their keys or their unique key.
    fn check(&self, message: Arc<ReceivedMessage>) -> impl Future<Output = TransactionState> + Send;
}

impl<F, Fut> TransactionChecker for F
where
    F: Fn(Arc<ReceivedMessage>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = TransactionState> + Send,
{
    fn check(&self, message: Arc<ReceivedMessage>) -> impl Future<Output = TransactionState> + Send {
        self(message)
    }
}

/// [`TransactionChecker`] without its type.
trait AnyChecker: Send + Sync {
    fn check(&self, message: Arc<ReceivedMessage>) -> BoxFuture<'_, TransactionState>;
}

impl<C: TransactionChecker> AnyChecker for C {
    fn check(&self, message: Arc<ReceivedMessage>) -> BoxFuture<'_, TransactionState> {
        Box::pin(TransactionChecker::check(self, message))
    }
}

/// The checkers of a client's transactional producers, by group. Weak: a producer lives as long as the program holds it.
#[derive(Debug, Default)]
pub(crate) struct Checkers(Mutex<BTreeMap<String, Weak<Checking>>>);

/// What answers a group's questions.
struct Checking {
    checker: Box<dyn AnyChecker>,
    group: String,
    places: Semaphore,
}

impl std::fmt::Debug for Checking {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checking").field("group", &self.group).finish_non_exhaustive()
    }
}

impl Checkers {
    /// Whether the group had none yet.
    fn enter(&self, checking: &Arc<Checking>) -> bool {
        let mut checkers = self.0.lock();
        let is_free = checkers.get(&checking.group).is_none_or(|known| known.strong_count() == 0);
        if is_free {
            checkers.insert(checking.group.clone(), Arc::downgrade(checking));
        }
        is_free
    }

    /// Whether there is any. Forgets those whose producers are gone.
    pub(crate) fn is_empty(&self) -> bool {
        let mut checkers = self.0.lock();
        checkers.retain(|_, known| known.strong_count() > 0);
        checkers.is_empty()
    }

    /// Takes in CHECK_TRANSACTION_STATE; the answer goes out on the same connection, when there is one.
    pub(crate) fn asked(&self, connection: &Connection, request: &RemotingCommand) -> Result<(), RequestError> {
        let malformed = |error: String| RequestError::Malformed(error);
        let question: CheckTransactionStateRequest = request.header().map_err(|error| malformed(format!("{error}")))?;
        let queue = MessageQueue::new(
            question.topic.clone().unwrap_or_default(),
            question.broker_name.clone().unwrap_or_default(),
            protocol::record::RecordView::parse(&request.body).map_or(0, |record| record.queue_id()),
        );
        let message = ReceivedMessage::from_record(&request.body, &Arc::new(queue));
        let message = message.map_err(|error| malformed(error.to_string()))?;
        let group = message.property(properties::PGROUP).unwrap_or_default();
        let Some(checking) = self.0.lock().get(group).and_then(Weak::upgrade) else {
            return Err(malformed(format!("the producer group {group} is not in this client")));
        };
        tokio::spawn(answer(checking, connection.clone(), question, Arc::new(message)));
        Ok(())
    }
}

/// Lets the program look, and tells the broker what it has found.
async fn answer(
    checking: Arc<Checking>,
    connection: Connection,
    question: CheckTransactionStateRequest,
    message: Arc<ReceivedMessage>,
) {
    let group = checking.group.clone();
    let looking = tokio::spawn(async move {
        let _place = checking.places.acquire().await;
        checking.checker.check(message).await
    });
    let state = looking.await.unwrap_or_else(|error| {
        tracing::warn!(group, %error, "a transaction checker panicked");
        TransactionState::Unknown
    });
    let end = EndTransactionRequest {
        topic: question.topic,
        producer_group: group.clone(),
        tran_state_table_offset: question.tran_state_table_offset,
        commit_log_offset: question.commit_log_offset,
        commit_or_rollback: state.wire(),
        from_transaction_check: true,
        msg_id: question.msg_id,
        transaction_id: question.transaction_id,
        broker_name: question.broker_name,
    };
    let request = RemotingCommand::request_with(RequestCode::END_TRANSACTION, &end);
    if let Err(error) = connection.one_way(request) {
        tracing::debug!(group, %error, "the broker that asked is gone; another one will ask again");
    }
}

/// Builds a [`TransactionalProducer`].
#[derive(Debug)]
#[must_use]
pub struct TransactionalProducerBuilder {
    client: Client,
    group: String,
    producer: ProducerBuilder,
    topics: Vec<String>,
}

impl TransactionalProducerBuilder {
    pub(crate) fn new(client: &Client, group: String) -> TransactionalProducerBuilder {
        // A half message that was stored without an answer is asked about as if it were the one that its retry stored.
        let producer = ProducerBuilder::new(client, group.clone()).after_unknown(AfterUnknown::GiveUp);
        TransactionalProducerBuilder { client: client.clone(), group, producer, topics: Vec::new() }
    }

    /// How long [`TransactionalProducer::begin`] may take with all its attempts; 10 s by default.
    pub fn timeout(mut self, limit: Duration) -> TransactionalProducerBuilder {
        self.producer = self.producer.timeout(limit);
        self
    }

    /// How long a broker may take to answer one attempt; 3 s by default.
    pub fn attempt_timeout(mut self, limit: Duration) -> TransactionalProducerBuilder {
        self.producer = self.producer.attempt_timeout(limit);
        self
    }

    /// What to do when it is unknown whether a half message is stored: by default report it, and let the checker answer
    /// [`TransactionState::Rollback`] for a transaction that was not begun. Any retry may store the message twice, and the
    /// checker would let both be seen, unless the brokers recognise repeated sends.
    pub fn after_unknown(mut self, policy: AfterUnknown) -> TransactionalProducerBuilder {
        self.producer = self.producer.after_unknown(policy);
        self
    }

    /// A topic of which this producer answers questions at once, before it has sent anything to it: the transactions of an
    /// earlier life of the program.
    pub fn topic(mut self, topic: impl Into<String>) -> TransactionalProducerBuilder {
        self.topics.push(topic.into());
        self
    }

    /// The producer. Brokers may ask its `checker` from now on.
    pub async fn start(self, checker: impl TransactionChecker) -> Result<TransactionalProducer, StartError> {
        let client = &self.client.0;
        let places = Semaphore::new(CHECKS_AT_ONCE);
        let checking = Arc::new(Checking { checker: Box::new(checker), group: self.group.clone(), places });
        for topic in &self.topics {
            client.routes.get(topic).await.map_err(RequestError::from)?;
        }
        if !client.callbacks.checkers.enter(&checking) {
            return Err(StartError::AlreadyMember(self.group));
        }
        let producer = self.producer.start().map_err(|error| match error {
            StartProducerError::Group(error) => StartError::Invalid(error),
            StartProducerError::Config(error) => StartError::Config(error),
        })?;
        Ok(TransactionalProducer { client: self.client, producer, checking })
    }
}

/// Sends messages that become visible together with a local transaction. Cheap to clone; made with
/// [`Client::transactional_producer`].
#[derive(Debug, Clone)]
pub struct TransactionalProducer {
    client: Client,
    producer: Producer,
    /// Answers questions as long as a producer lives.
    checking: Arc<Checking>,
}

impl TransactionalProducer {
    /// The producer's group.
    pub fn group(&self) -> &str {
        &self.checking.group
    }

    /// Stores a half message, which nobody sees before [`Transaction::commit`].
    ///
    /// On an error the local transaction must not be carried out. If that is [`SendError::Unknown`], the checker may be asked
    /// about the message all the same.
    pub async fn begin(&self, message: Message) -> Result<Transaction, SendError> {
        self.begin_at(message, None).await
    }

    /// As [`TransactionalProducer::begin`]; once committed, the message is in that queue and no other.
    pub async fn begin_in(&self, message: Message, queue: &MessageQueue) -> Result<Transaction, SendError> {
        self.begin_at(message, Some(queue)).await
    }

    async fn begin_at(&self, message: Message, queue: Option<&MessageQueue>) -> Result<Transaction, SendError> {
        if message.is_timed() {
            return Err(InvalidMessage::Transaction("it is delayed").into());
        }
        let receipt = self.producer.send_half(&message, queue).await?;
        let id: Result<MessageId, _> = receipt.offset_message_id.parse();
        let Ok(id) = id else {
            let reason = format!("the broker answered with the id {:?}", receipt.offset_message_id);
            return Err(SendError::Unknown { reason, unique_key: receipt.unique_key });
        };
        let is_safe = receipt.durability == Durability::AsConfigured;
        let transaction = Transaction { producer: self.clone(), message, receipt, physical_offset: id.physical_offset };
        if is_safe {
            return Ok(transaction);
        }
        let reason = format!("the half message is not safe: {:?}", transaction.receipt.durability);
        let rolled_back = transaction.rollback().await;
        tracing::debug!(?rolled_back, reason, "a transaction is not begun");
        Err(SendError::NotStored { reason })
    }

    /// Stores a half message, carries out the local transaction, and ends the message's as that says.
    ///
    /// An error means that the local transaction was not carried out. Whether the broker has heard the end is in
    /// [`Sent::ended`]; if it has not, it will ask.
    pub async fn send<F, Fut>(&self, message: Message, local: F) -> Result<Sent, SendError>
    where
        F: FnOnce(SendReceipt) -> Fut,
        Fut: Future<Output = TransactionState>,
    {
        let transaction = self.begin(message).await?;
        let receipt = transaction.receipt.clone();
        let state = local(receipt.clone()).await;
        let ended = match state {
            TransactionState::Unknown => Ok(()),
            _ => transaction.end(state).await,
        };
        Ok(Sent { receipt, state, ended })
    }

    /// Leaves the producer group. Transactions that were begun can still be ended.
    pub async fn shutdown(&self) {
        self.producer.shutdown().await;
    }
}

/// What became of a message sent with its local transaction.
#[derive(Debug, Clone)]
pub struct Sent {
    /// Of the half message.
    pub receipt: SendReceipt,
    /// What the local transaction said.
    pub state: TransactionState,
    /// Whether the broker has taken note of it. `Ok` for [`TransactionState::Unknown`], of which it is told nothing.
    pub ended: Result<(), RequestError>,
}

/// A transaction that was begun. Dropped without an end it is left to the checker.
#[derive(Debug)]
#[must_use = "a transaction that nobody ends is left to the checker"]
pub struct Transaction {
    producer: TransactionalProducer,
    message: Message,
    receipt: SendReceipt,
    /// The message's name: where it was stored.
    physical_offset: i64,
}

impl Transaction {
    /// Proof that the half message is stored.
    pub fn receipt(&self) -> &SendReceipt {
        &self.receipt
    }

    /// Lets consumers see the message. On `Ok` they will.
    ///
    /// An error leaves the end to the checker, unless it says that the transaction has ended otherwise before.
    pub async fn commit(self) -> Result<(), RequestError> {
        self.end(TransactionState::Commit).await
    }

    /// Nobody will see the message. Errors as for [`Transaction::commit`].
    pub async fn rollback(self) -> Result<(), RequestError> {
        self.end(TransactionState::Rollback).await
    }

    async fn end(self, state: TransactionState) -> Result<(), RequestError> {
        let unique_key = Some(self.receipt.unique_key.clone());
        let queue = &self.receipt.queue;
        let end = EndTransactionRequest {
            topic: Some(self.message.topic().to_owned()),
            producer_group: self.producer.group().to_owned(),
            tran_state_table_offset: self.receipt.queue_offset,
            commit_log_offset: self.physical_offset,
            commit_or_rollback: state.wire(),
            from_transaction_check: false,
            msg_id: unique_key.clone(),
            transaction_id: unique_key,
            broker_name: Some(queue.broker_name.clone()),
        };
        let request = RemotingCommand::request_with(RequestCode::END_TRANSACTION, &end);
        let ended = self.producer.client.ask_group(self.message.topic(), &queue.broker_name, request).await.map(drop);
        if ended.is_ok() {
            self.producer.client.trace_transaction_end(&TransactionEnd {
                group: self.producer.group(),
                topic: self.message.topic(),
                unique_key: &self.receipt.unique_key,
                tag: self.message.property(properties::TAGS),
                keys: self.message.property(properties::KEYS),
                offset_message_id: &self.receipt.offset_message_id,
                state,
                was_asked: false,
            });
        }
        ended
    }
}
