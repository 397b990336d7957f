//! The words on the wire and the record layout on disk: bytes <-> values; no IO, no clock.

pub mod code;
pub mod command;
pub mod ext_fields;
pub mod frame;
pub mod header;
mod header_binary;
mod header_json;
pub mod json;
pub mod language;
