//! Delayed messages as clients see them: recalled before their time or visible at it, one of the two, whoever leads.

use std::time::Duration;

use env::Env;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{RecallMessageRequest, RecallMessageResponse, SendMessageResponse};
use protocol::recall_handle::RecallHandle;

use crate::three::Three;
use crate::world::*;

/// Later than any test here lasts.
const MUCH_LATER: (&str, &str) = ("TIMER_DELAY_MS", "3600000");

fn recall_request(topic: &str, handle: &str) -> RemotingCommand {
    let header = RecallMessageRequest {
        producer_group: Some("pg".to_owned()),
        topic: topic.to_owned(),
        recall_handle: handle.to_owned(),
        broker_name: None,
    };
    RemotingCommand::request_with(RequestCode::RECALL_MESSAGE, &header)
}

fn handle_of(sent: &SendMessageResponse) -> RecallHandle {
    sent.recall_handle.as_deref().expect("a handle").parse().expect("a handle")
}

impl Wire {
    /// The code, and what is said about it.
    async fn recall(&self, topic: &str, handle: &RecallHandle) -> (i32, String) {
        let answer = self.call(recall_request(topic, &handle.to_string())).await;
        let said = match answer.code {
            0 => answer.header::<RecallMessageResponse>().expect("a header").msg_id,
            _ => answer.remark_text().to_owned(),
        };
        (answer.code, said)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_delayed_message_is_recalled_before_its_time_and_not_after_it() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![]);
    let broker = start(config.clone()).await;
    let wire = Wire::to(&broker.groups()[0]);
    let recalled = wire.sent("T", "recalled", &[MUCH_LATER]).await;
    let (by_level, soon) = (wire.sent("T", "level", &[("DELAY", "3")]).await, ("TIMER_DELAY_MS", "50"));
    let (fired, stays) = (wire.sent("T", "fired", &[soon]).await, wire.sent("T", "stays", &[MUCH_LATER]).await);
    let plain = wire.sent("T", "plain", &[]).await;
    assert_eq!(plain.recall_handle, None, "it is there");

    let handle = handle_of(&recalled);
    assert_eq!((handle.topic.as_str(), handle.broker_name.as_str()), ("T", BROKER));
    let unique_key = recalled.transaction_id.clone().expect("a key");
    assert_eq!(handle.unique_key, unique_key);
    for again in 0..3 {
        assert_eq!(wire.recall("T", &handle).await, (0, unique_key.clone()), "time {again}");
    }
    assert_eq!(wire.recall("T", &handle_of(&by_level)).await.0, 0, "levels are recalled as well");
    until("it fires", async || wire.max_offset("T").await == 2).await;
    let (code, said) = wire.recall("T", &handle_of(&fired)).await;
    assert_eq!(code, 604);
    assert!(said.starts_with("recall failed, timestamp invalid: it has been visible since"), "{said}");

    // What names nothing that waits, and what names something else.
    let other = handle_of(&stays);
    let at_plain = RecallHandle {
        physical_offset: handle_of(&fired).physical_offset + 1,
        unique_key: plain.transaction_id.clone().expect("a key"),
        ..other.clone()
    };
    let wrong = [
        RecallHandle { unique_key: unique_key.clone(), ..other.clone() },
        RecallHandle { physical_offset: other.physical_offset - 1, ..other.clone() },
        RecallHandle { physical_offset: -1, ..other.clone() },
        RecallHandle { physical_offset: i64::MAX, ..other.clone() },
        RecallHandle { broker_name: "broker-u".to_owned(), ..other.clone() },
        RecallHandle { topic: "U".to_owned(), ..other.clone() },
        at_plain,
    ];
    for wrong in wrong {
        assert_eq!(wire.recall("T", &wrong).await.0, 604, "{wrong:?}");
    }
    assert_eq!(wire.call(recall_request("T", "nonsense")).await.code, 604);
    assert_eq!(wire.recall("Nowhere", &other).await.0, 17);
    assert_eq!(broker.groups()[0].raft().reader().pending().scheduled, 1, "what was not recalled waits");

    // Another life of the broker.
    broker.stop().await.expect("it stops");
    let broker = start(config).await;
    let wire = Wire::to(&broker.groups()[0]);
    assert_eq!(wire.recall("T", &handle).await, (0, unique_key));
    assert_eq!(wire.recall("T", &handle_of(&fired)).await.0, 604);
    assert_eq!(wire.recall("T", &other).await.0, 0);
    assert_eq!(broker.groups()[0].raft().reader().pending().scheduled, 0);
    let pulled = wire.pull(pull_request("T", 0)).await;
    let mut bodies = pulled.bodies();
    bodies.sort_unstable();
    assert_eq!(bodies, ["fired", "plain"]);
}

/// Recalls race with the messages' time and go on at the next leader: every message is recalled or visible, and none is both.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_recalled_across_a_killed_leader_is_never_seen_and_the_rest_is_once() {
    const EACH: usize = 40;
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let wires: Vec<Wire> = (0..3).map(|at| Wire::to(three.group(at))).collect();
    until("a follower knows", async || three.group((leader + 1) % 3).status().is_ready).await;
    let wire = &wires[(leader + 1) % 3];
    let mut early = Vec::new();
    for k in 0..EACH {
        early.push(handle_of(&wire.sent("T", &k.to_string(), &[MUCH_LATER]).await));
    }
    for (k, handle) in early.iter().enumerate() {
        if k == EACH / 2 {
            three.brokers[leader].kill().await;
        }
        let recall = async || wire.try_call(recall_request("T", &handle.to_string())).await;
        until("it is recalled", async || matches!(recall().await, Ok(answer) if answer.code == 0)).await;
    }
    // The others when they are due, some a little before and some a little after.
    let clock = Env::real().clock;
    let due_ms = clock.wall_ms() + 3_000;
    let due = due_ms.to_string();
    let mut racing = Vec::new();
    for k in 0..EACH {
        racing.push(handle_of(&wire.sent("T", &k.to_string(), &[("TIMER_DELIVER_MS", &due)]).await));
    }
    let mut recalled = 0;
    for (k, handle) in racing.iter().enumerate() {
        let at = due_ms - 40 + 2 * k as i64;
        clock.sleep(Duration::from_millis(u64::try_from(at - clock.wall_ms()).unwrap_or(0))).await;
        let (code, said) = wire.recall("T", handle).await;
        assert!(code == 0 || code == 604, "{code} {said}");
        recalled += usize::from(code == 0);
        assert_eq!(wire.recall("T", handle).await.0, code, "what was said once is said again");
    }
    let visible = EACH - recalled;
    assert!(visible > 0, "those that are due are not recalled");
    until("the rest is there", async || wire.max_offset("T").await == visible as i64).await;
    let next = (0..3).find(|at| *at != leader && three.group(*at).leads()).expect("it leads");
    assert_eq!(three.group(next).raft().reader().pending().scheduled, 0);
}
