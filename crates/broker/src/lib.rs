//! Requests in, operations proposed, messages read.
