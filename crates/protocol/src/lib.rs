//! The words on the wire and the record layout on disk: bytes <-> values; no IO, no clock.

pub mod batch;
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
pub mod record;
pub mod sys_flag;
pub mod tag;
