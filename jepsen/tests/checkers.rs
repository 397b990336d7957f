//! Checkers must keep up with runs: a million appends, with polls and a final read of three replicas, in well under a
//! minute. `cargo test --release -p jepsen --test checkers -- --nocapture` prints the time of each clause; a debug build
//! checks fewer.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fmt::Write;
use std::io::BufReader;
use std::time::{Duration, Instant};

use jepsen::checker::log::Log;
use jepsen::checker::{Bounds, CLAUSES, Evidence, Validity};
use jepsen::history::History;

const APPENDS: u64 = if cfg!(debug_assertions) { 50_000 } else { 1_000_000 };
const QUEUES: u64 = 8;
/// Appends in flight at once.
const CLIENTS: u64 = 64;
/// Appends between two polls of all queues, and places in one final read.
const BATCH: u64 = 1024;

/// Lines as the recorder writes them. Client `k` sends every value that is `k` modulo the number of clients; each value
/// stands at offset `value / QUEUES` of queue `value % QUEUES`. One append of 1,000 ends `:info`.
fn history() -> String {
    let mut text = String::with_capacity(APPENDS as usize * 400);
    let (mut index, mut processes) = (0_u64, (0..CLIENTS).collect::<Vec<u64>>());
    let mut next_process = CLIENTS + 2;
    let mut line = |kind: &str, process: u64, f: &str, value: &str, extra: &str| {
        let time = index * 4000;
        let _ = writeln!(
            text,
            "{{:index {index}, :type :{kind}, :process {process}, :time {time}, :f :{f}, :value {value}{extra}}}"
        );
        index += 1;
    };
    for first in (0..APPENDS).step_by(CLIENTS as usize) {
        let values = first..(first + CLIENTS).min(APPENDS);
        for value in values.clone() {
            let process = processes[(value % CLIENTS) as usize];
            line("invoke", process, "send", &format!("[[:send {} {value}]]", value % QUEUES), "");
        }
        for value in values {
            let (queue, offset) = (value % QUEUES, value / QUEUES);
            let process = &mut processes[(value % CLIENTS) as usize];
            if value % 1000 == 999 {
                line("info", *process, "send", &format!("[[:send {queue} {value}]]"), ", :error \"timed out\"");
                *process = next_process;
                next_process += 1;
            } else {
                line("ok", *process, "send", &format!("[[:send {queue} [{offset} {value}]]]"), "");
            }
        }
        if first % BATCH == 0 && first > 0 {
            let queues: Vec<String> = (0..QUEUES).map(|queue| shown(queue, first - BATCH, first)).collect();
            line("invoke", CLIENTS, "poll", "[[:poll]]", "");
            line("ok", CLIENTS, "poll", &format!("[[:poll {{{}}}]]", queues.join(", ")), "");
        }
    }
    for node in ["n1", "n2", "n3"] {
        for first in (0..APPENDS).step_by(BATCH as usize) {
            let queues: Vec<String> =
                (0..QUEUES).map(|queue| shown(queue, first, (first + BATCH).min(APPENDS))).collect();
            let node = format!(", :node \"{node}\"");
            line("invoke", CLIENTS + 1, "final-read", "[[:poll]]", &node);
            line("ok", CLIENTS + 1, "final-read", &format!("[[:poll {{{}}}]]", queues.join(", ")), &node);
        }
    }
    text
}

/// The places of a queue that hold the values of a range.
fn shown(queue: u64, from: u64, to: u64) -> String {
    let values = (from..to).filter(|value| value % QUEUES == queue);
    let places: Vec<String> = values.map(|value| format!("[{} {value}]", value / QUEUES)).collect();
    format!("{queue} [{}]", places.join(" "))
}

#[test]
fn a_long_history_is_checked_in_well_under_a_minute() {
    let text = history();
    let begun = Instant::now();
    let history = History::read(BufReader::new(text.as_bytes())).unwrap();
    println!("{:<12} {:>6} ms, {} MiB", "read", begun.elapsed().as_millis(), text.len() >> 20);
    let resolving = Instant::now();
    let log = Log::of(&history).unwrap();
    println!("{:<12} {:>6} ms, {} values read", "resolve", resolving.elapsed().as_millis(), log.reads.len());
    let evidence = Evidence { history: &history, log: &log, bounds: &Bounds::default() };
    for clause in CLAUSES {
        let checking = Instant::now();
        let Some(verdict) = (clause.check)(&evidence).unwrap() else { continue };
        println!("{:<12} {:>6} ms", clause.name, checking.elapsed().as_millis());
        assert_eq!(verdict.validity(), Validity::Valid, "{}: {}", clause.name, verdict.to_edn());
    }
    println!("{:<12} {:>6} ms", "all", begun.elapsed().as_millis());
    assert!(begun.elapsed() < Duration::from_secs(60));
}
