//! The control of `jepsen run`: a history in the words of its workload passes, and the same one without an acknowledged
//! value in a final read does not. A harness that cannot fail proves nothing.

#![allow(clippy::disallowed_methods, clippy::disallowed_types)]

use std::fs;
use std::path::Path;
use std::time::Instant;

use jepsen::checker::Validity;
use jepsen::history::edn::Edn;
use jepsen::history::recorder::Recorder;
use jepsen::results;
use jepsen::run::NODES;
use jepsen::run::operations::{poll, polled, send, sent};

const TEST: &str =
    r#"{:nodes ["n1" "n2" "n3"], :require [:append :one-value :loss :visibility :equality :liveness :stats]}"#;

/// Three values acknowledged, a broker killed meanwhile, a poll, and what each replica shows at the end.
fn record(dir: &Path, shown: [&[(u64, u64)]; 3]) {
    let began = Instant::now();
    let now = Box::new(move || began.elapsed());
    let recorder = Recorder::create(&dir.join("history.edn"), now).unwrap();
    let mut client = recorder.client();
    for (offset, value) in (0_u64..).zip(100..103) {
        client.invoke("send", send(2, value), vec![]).unwrap();
        client.ok(sent(2, offset, value), vec![]).unwrap();
        if offset == 0 {
            recorder.nemesis("start-kill", Edn::map([("n2", "signal: 9 (SIGKILL)".into())]), vec![]).unwrap();
            recorder.nemesis("stop-kill", Edn::map([("n2", "S".into())]), vec![]).unwrap();
        }
    }
    client.invoke("poll", poll(), vec![]).unwrap();
    client.ok(polled(2, &[(0, 100), (1, 101)]), vec![]).unwrap();
    for hash in ["chain", "state-hash"] {
        client.invoke(hash, Edn::Nil, vec![]).unwrap();
        let told = NODES.map(|node| (node.into(), Edn::vector([Edn::from(9_u64), "c0ffee".into()])));
        client.ok(Edn::Map(told.to_vec()), vec![]).unwrap();
    }
    for (node, places) in NODES.into_iter().zip(shown) {
        client.invoke("final-read", poll(), vec![("node", node.into())]).unwrap();
        client.ok(polled(2, places), vec![]).unwrap();
    }
    fs::write(dir.join("test.edn"), TEST).unwrap();
}

/// The verdict, and the names of what went wrong.
fn judged(shown: [&[(u64, u64)]; 3]) -> (Validity, String) {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), shown);
    let results = results::check(dir.path()).unwrap();
    let anomalies = results.to_edn().get("anomaly-types").map(Edn::to_string);
    (results.validity(), anomalies.unwrap())
}

const ALL: &[(u64, u64)] = &[(0, 100), (1, 101), (2, 102)];

#[test]
fn a_sound_run_passes() {
    assert_eq!(judged([ALL; 3]), (Validity::Valid, "[]".to_owned()));
}

#[test]
fn an_acknowledged_value_that_no_replica_shows_is_a_lost_write() {
    assert_eq!(judged([&ALL[..2]; 3]), (Validity::Invalid, "[:lost-write]".to_owned()));
}

#[test]
fn one_replica_that_lacks_it_is_enough() {
    assert_eq!(judged([ALL, &ALL[..2], ALL]), (Validity::Invalid, "[:lost-on-replica]".to_owned()));
}

#[test]
fn a_replica_that_was_not_read_is_no_pass() {
    let dir = tempfile::tempdir().unwrap();
    record(dir.path(), [ALL; 3]);
    let history = fs::read_to_string(dir.path().join("history.edn")).unwrap();
    let read_of_n3 = history.rfind("{:index").map(|ok| history[..ok].rfind("{:index").unwrap()).unwrap();
    fs::write(dir.path().join("history.edn"), &history[..read_of_n3]).unwrap();
    assert_eq!(results::check(dir.path()).unwrap().validity(), Validity::Unknown);
}
