//! A real cluster inside one process.
