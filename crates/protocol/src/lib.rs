//! The words on the wire and the record layout on disk: bytes <-> values; no IO, no clock, no async runtime.
//!
//! # The wire
//!
//! - [`frame`]: [`frame::decode`] takes the next [`frame::Frame`] off a buffer. `Ok(None)`: not complete yet. `Err`: close
//!   the connection. [`frame::Frame::Undecodable`]: cut out whole, but its header makes no sense; send
//!   [`frame::Undecodable::answer`] if there is one, and read on. [`frame::encode`] writes a whole frame,
//!   [`frame::encode_head`] all but the body, for bodies made of several pieces. [`frame::FrameLimits`] bound both.
//! - [`command`]: [`command::RemotingCommand`], request or response. `RemotingCommand::request(code)`,
//!   `request.reply(code)`, `.with_header(&typed)`, `.with_json(&body)`, `.with_body(bytes)`, `.one_way()`; on the other
//!   side `.header::<H>()?`, `.json::<T>()?`.
//! - [`code`]: [`code::RequestCode`] and [`code::ResponseCode`], constants with RocketMQ's names; unknown numbers pass.
//! - [`ext_fields`]: [`ext_fields::ExtFields`], the header's map. `get` is the text as sent, `text` takes empty as absent.
//! - [`header`]: typed headers, one struct per request or response, [`header::CommandHeader`]. Sends have two forms:
//!   [`header::SendMessageRequest::of`] reads the one its code uses.
//! - [`body`]: JSON bodies, one struct per Java class; [`json`] reads them as leniently as fastjson and writes them as
//!   Java does. Two bodies are not JSON: [`body::RegisterBrokerBody::decode`] and [`body::parse_config_text`].
//! - [`language`]: the sender's language.
//!
//! # Messages
//!
//! - [`record`]: the stored message. [`record::NewRecord`] encodes, [`record::RecordView`] reads in place,
//!   [`record::HeadPatch`] fills in what only the reader knows, [`record::split`] takes a pull's body apart.
//! - [`batch`]: the inner messages of a batch send. [`properties`]: the property string and the names in it.
//! - [`message_id`]: [`message_id::MessageId`] (where it lies) and [`message_id::UniqueKey`] (who made it).
//!   [`recall_handle`]: [`recall_handle::RecallHandle`], a delayed message until it is visible.
//! - [`sys_flag`]: [`sys_flag::SysFlag`], [`sys_flag::TransactionType`], [`sys_flag::PullSysFlag`].
//! - [`tag`]: Java's string hash, and tag expressions. [`sql92`]: expressions over properties. [`names`]: legal, reserved and derived names of topics and groups.
//!   [`permission`]: [`permission::Permission`]. [`allocate`]: who consumes which queue.
//!
//! # Promises
//!
//! No bytes make a decoder panic, recurse without bound, or allocate beyond a fixed multiple of their number; each
//! decoder has a fuzz target. Reading is lenient, writing exact: what the clients in the field send is in the tests.

pub mod allocate;
pub mod batch;
pub mod body;
pub mod code;
pub mod command;
pub mod ext_fields;
pub mod frame;
pub mod header;
mod header_binary;
mod header_json;
pub mod json;
pub mod language;
pub mod message_id;
pub mod names;
pub mod permission;
pub mod properties;
pub mod recall_handle;
pub mod record;
pub mod sql92;
pub mod sys_flag;
pub mod tag;
