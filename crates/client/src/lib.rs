//! The Rust client library: producers and consumers for raftmq and for RocketMQ.
//!
//! A [`Client`] is one identity towards a cluster. Producers and consumers made from it share its connections, routes
//! and heartbeats:
//!
//! - [`Producer`]: `send` and its kin. Retries within one deadline, under one unique key, on another queue.
//! - [`TransactionalProducer`]: messages that are visible after a local transaction, or never.
//! - [`PushConsumer`]: a member of a consumer group; messages come to a handler, concurrently or in order, to one member
//!   each (clustering) or to all (broadcasting).
//! - [`Deliveries`]: the same as a stream, from which the program takes messages and acknowledges them one by one.
//! - [`IdempotentConsumer`]: a handler that consumes once what comes twice, as far as its [`SeenStore`] remembers.
//! - [`PopConsumer`]: messages under leases, one by one acknowledged; any number of tasks and programs share a topic.
//! - [`PullConsumer`]: the program chooses queues, asks for messages and stores offsets.
//! - [`admin`]: what tools ask NameServers and brokers.
//!
//! What becomes of each message can be followed: [`ClientBuilder::message_trace`] in RocketMQ's tools, [`TraceParent`] with
//! any tracing library.
//!
//! Errors say whether a retry is safe ([`SendError::is_retry_safe`], [`RequestError::is_retry_safe`]). Everything runs
//! on the caller's tokio runtime; clock, randomness, disk and sockets come from an [`env::Env`], the machine's own
//! unless the builder is given another.
//!
//! # Sending
//!
//! ```no_run
//! use client::{Client, Message};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
//! let producer = client.producer("shop").start()?;
//! let receipt = producer.send(Message::new("Orders", "one pear").with_tag("paid").with_key("order-7")).await?;
//! println!("stored in {:?} at {}", receipt.queue, receipt.queue_offset);
//! client.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # Sending with a local transaction
//!
//! ```no_run
//! use std::sync::Arc;
//! use client::{Client, Message, ReceivedMessage, TransactionState};
//!
//! # async fn look_into_the_database(_key: Option<&str>) -> Option<bool> { None }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
//! let checker = |message: Arc<ReceivedMessage>| async move {
//!     match look_into_the_database(message.keys().next()).await {
//!         Some(true) => TransactionState::Commit,
//!         Some(false) => TransactionState::Rollback,
//!         None => TransactionState::Unknown, // it is still going on
//!     }
//! };
//! let producer = client.transactional_producer("shop").topic("Orders").start(checker).await?;
//! let transaction = producer.begin(Message::new("Orders", "one pear").with_key("order-7")).await?;
//! // ... the local transaction; if the program dies here, the checker is asked ...
//! transaction.commit().await?;
//! # Ok(()) }
//! ```
//!
//! # Consuming
//!
//! ```no_run
//! use std::sync::Arc;
//! use client::{Client, ReceivedMessage};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let client = Client::builder().name_servers("127.0.0.1:9876").build()?;
//! let consumer = client
//!     .push_consumer("billing")
//!     .subscribe("Orders", "paid || refunded")
//!     .start(|message: Arc<ReceivedMessage>| async move {
//!         let order = std::str::from_utf8(message.body())?; // an error: the message comes again later
//!         println!("{order}");
//!         Ok(())
//!     })
//!     .await?;
//! // …
//! consumer.shutdown().await;
//! # Ok(()) }
//! ```
//!
//! # For those who know RocketMQ's classes
//!
//! | Java | here |
//! |---|---|
//! | `DefaultMQProducer` | [`Client::producer`], [`Producer`] |
//! | `send(msg)`, `send(msg, callback)` | [`Producer::send`], awaited or joined with others |
//! | `send(msg, selector, key)` | [`Producer::send_by_key`], or a sharding key |
//! | `send(List)` | [`Producer::send_all`] |
//! | `sendOneway` | [`Producer::send_one_way`] |
//! | `recallMessage` | [`Producer::recall`] |
//! | `request(msg, timeout)`, `MessageUtil.createReplyMessage` | [`Producer::request`], [`Producer::reply`] |
//! | `TransactionMQProducer`, `TransactionListener` | [`TransactionalProducer`], a [`TransactionChecker`] |
//! | `DefaultMQPushConsumer` | [`Client::push_consumer`], [`PushConsumer`] |
//! | `MessageListenerConcurrently`, `MessageListenerOrderly` | a [`Handler`] given to `start` or `start_orderly` |
//! | `RECONSUME_LATER`, `SUSPEND_CURRENT_QUEUE_A_MOMENT` | `Err(Retry)`, see [`Retry`] |
//! | `SimpleConsumer.receive`, `ack` | [`Deliveries::next`], [`Delivery::ack`] |
//! | `DefaultLitePullConsumer` with `assign` | [`PullConsumer`] |
//! | `enableMsgTrace`, `traceTopic` | [`ClientBuilder::message_trace`] |
//! | `DefaultMQPushConsumer` with `setClientRebalance(false)`, where the group pops | [`PopConsumer`] |
//! | `DefaultMQAdminExt` | [`admin`] |

pub mod admin;
mod builder;
mod callbacks;
mod compression;
mod consumer;
mod deliveries;
mod errors;
mod idempotence;
mod membership;
mod message;
mod network;
mod offsets;
mod pop_consumer;
mod producer;
mod pull;
mod pull_consumer;
mod request_reply;
mod retry;
mod routes;
mod trace;
mod trace_parent;
mod transaction;
mod unique_key;

pub use builder::{Client, ClientBuilder};
pub use consumer::{Handler, PushConsumer, PushConsumerBuilder, Retry, StartFrom};
pub use deliveries::{Deliveries, Delivery, Expired};
pub use errors::{ConfigError, InvalidMessage, RecallError, RequestError, RouteError, SendError, StartError};
#[cfg(feature = "sled")]
pub use idempotence::SledSeenStore;
pub use idempotence::{Claim, IdempotentConsumer, MemorySeenStore, Seen, SeenStore, StoreError};
pub use message::{Message, ReceivedMessage};
pub use pop_consumer::{PopConsumer, PoppedMessage};
pub use producer::{Durability, Producer, ProducerBuilder, SendReceipt, StartProducerError};
pub use protocol::allocate;
pub use protocol::body::MessageQueue;
pub use protocol::code::ResponseCode;
pub use protocol::names::TRACE_TOPIC;
pub use protocol::sys_flag::Compression;
pub use pull_consumer::PullConsumer;
pub use request_reply::{AskError, Reply};
pub use retry::AfterUnknown;
pub use trace_parent::{InvalidTraceParent, TraceParent};
pub use transaction::{
    Sent, Transaction, TransactionChecker, TransactionState, TransactionalProducer, TransactionalProducerBuilder,
};
