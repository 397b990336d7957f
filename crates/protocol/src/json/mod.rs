//! JSON as RocketMQ's peers speak it: read as leniently as fastjson, written exactly as Java writes it.
//!
//! - [`from_slice`] reads any serde type. Numbers, booleans and texts convert into each other, `null` and unknown
//!   members count as absent, an object may be a map's key. Give body structs `#[serde(default)]`.
//! - [`to_vec`] writes: `None` left out, integer keys quoted, struct keys as objects. [`to_vec_legacy`] leaves integer
//!   keys unquoted as fastjson does for old clients.

pub(crate) mod lexer;
mod read;
pub(crate) mod write;

pub use lexer::{JsonError, MAX_DEPTH};
pub use read::from_slice;
pub use write::{to_vec, to_vec_legacy};

/// [`to_vec`] as a command's body.
pub fn to_bytes<T: serde::Serialize + ?Sized>(value: &T) -> bytes::Bytes {
    to_vec(value).into()
}
