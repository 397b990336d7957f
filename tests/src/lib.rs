//! Scenarios over the whole product: simulated world, end-to-end over processes, interop with other clients.

pub mod raw;
pub mod read;
pub mod sim;
pub mod wait;
