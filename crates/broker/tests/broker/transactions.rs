//! Transactions as clients see them: invisible until they are committed, ended once, asked about when nobody ends them, and
//! all of it the same at the next leader.

use std::time::Duration;

use broker::config::{MessagePolicy, TransactionPolicy};
use env::Env;
use protocol::body::{HeartbeatData, ProducerData, TransactionList, WaitingTransaction};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    CheckTransactionStateRequest, EndTransactionRequest, ListTransactionsRequest, ResumeCheckHalfMessageRequest,
    SendMessageResponse, UnregisterClientRequest, ViewMessageRequest,
};
use protocol::message_id::MessageId;
use protocol::record::RecordView;
use protocol::sys_flag::TransactionType;
use raft_store::fold::HalfState;

use crate::three::Three;
use crate::world::*;

const COMMIT: i32 = 8;
const ROLLBACK: i32 = 12;

/// Asked soon, and soon again.
const IMPATIENT: TransactionPolicy =
    TransactionPolicy { timeout: Duration::from_millis(200), check_interval: Duration::from_millis(200), check_max: 3 };

fn impatient(policy: &MessagePolicy) -> MessagePolicy {
    MessagePolicy { transactions: IMPATIENT, ..policy.clone() }
}

impl Wire {
    /// Sends a half message to queue 0; its name from then on.
    async fn half(&self, topic: &str, body: &str, properties: &[(&str, &str)]) -> SendMessageResponse {
        self.sent(topic, body, &[&[("TRAN_MSG", "true"), ("PGROUP", "pg")], properties].concat()).await
    }

    async fn end(&self, half: &SendMessageResponse, how: i32) -> RemotingCommand {
        self.call(end_request(half, how)).await
    }

    async fn produce_as(&self, group: &str) {
        let body = HeartbeatData {
            client_id: "p1".to_owned(),
            producer_data_set: vec![ProducerData { group_name: group.to_owned() }],
            ..HeartbeatData::default()
        };
        let answer = self.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&body)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
    }

    /// The questions that came so far.
    fn questions(&self) -> Vec<RemotingCommand> {
        let heard = self.heard.requests.lock();
        heard.iter().filter(|one| one.request_code() == RequestCode::CHECK_TRANSACTION_STATE).cloned().collect()
    }
}

fn offset_of(half: &SendMessageResponse) -> i64 {
    let id: MessageId = half.msg_id.as_deref().expect("an id").parse().expect("an id");
    id.physical_offset
}

fn end_request(half: &SendMessageResponse, how: i32) -> RemotingCommand {
    let header = EndTransactionRequest {
        producer_group: "pg".to_owned(),
        tran_state_table_offset: half.queue_offset.expect("an offset"),
        commit_log_offset: offset_of(half),
        commit_or_rollback: how,
        msg_id: half.transaction_id.clone(),
        ..EndTransactionRequest::default()
    };
    RemotingCommand::request_with(RequestCode::END_TRANSACTION, &header)
}

/// What a producer says when it is asked.
fn answer_to(question: &RemotingCommand, how: i32) -> RemotingCommand {
    let asked: CheckTransactionStateRequest = question.header().expect("a question");
    let header = EndTransactionRequest {
        producer_group: "pg".to_owned(),
        tran_state_table_offset: asked.tran_state_table_offset,
        commit_log_offset: asked.commit_log_offset,
        commit_or_rollback: how,
        from_transaction_check: true,
        msg_id: asked.msg_id,
        ..EndTransactionRequest::default()
    };
    RemotingCommand::request_with(RequestCode::END_TRANSACTION, &header).one_way()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_half_message_is_nowhere_until_it_is_committed_and_its_first_end_counts() {
    let dir = tempfile::tempdir().expect("a directory");
    let config = broker_config(group_config(dir.path()), vec![]);
    let broker = start(config.clone()).await;
    let wire = Wire::to(&broker.groups()[0]);
    let half = wire.half("T", "half", &[("KEYS", "k")]).await;
    let (dropped, silent) = (wire.half("T", "dropped", &[]).await, wire.half("T", "silent", &[]).await);
    assert_eq!((half.queue_id, half.queue_offset), (Some(0), Some(offset_of(&half))));
    wire.sent("T", "plain", &[]).await;
    assert_eq!(wire.pull(pull_request("T", 0)).await.bodies(), ["plain"], "the others have no place");
    let sent_back = wire.send_back("g", offset_of(&half), 1).await;
    assert_eq!(sent_back.code, 29, "nobody can have consumed it: {}", sent_back.remark_text());

    let foreign = EndTransactionRequest {
        producer_group: "other".to_owned(),
        ..end_request(&half, COMMIT).header().expect("a header")
    };
    assert_eq!(wire.call(RemotingCommand::request_with(RequestCode::END_TRANSACTION, &foreign)).await.code, 1);
    assert_eq!(wire.end(&half, 0).await.code, 0, "it does not know");
    assert_eq!(wire.end(&half, 7).await.code, 29);
    assert_eq!(wire.max_offset("T").await, 1, "nothing has ended yet");

    assert_eq!(wire.end(&half, COMMIT).await.code, 0);
    assert_eq!(wire.end(&half, COMMIT).await.code, 0, "again");
    let late = wire.end(&half, ROLLBACK).await;
    assert_eq!((late.code, late.remark_text()), (1, "the transaction was committed before"));
    assert_eq!(wire.end(&dropped, ROLLBACK).await.code, 0);
    assert_eq!(wire.end(&dropped, ROLLBACK).await.code, 0, "again");
    let late = wire.end(&dropped, COMMIT).await;
    assert_eq!(late.code, 1);
    assert!(late.remark_text().starts_with("the transaction has ended before"), "{}", late.remark_text());
    let of_plain = wire.sent("T", "plain too", &[]).await;
    let never = SendMessageResponse { queue_offset: Some(offset_of(&of_plain)), ..of_plain };
    assert_eq!(wire.end(&never, COMMIT).await.code, 1, "it was no half message");

    let pulled = wire.pull(pull_request("T", 0)).await;
    assert_eq!(pulled.bodies(), ["plain", "half", "plain too"]);
    let seen = &pulled.messages[1];
    let record = RecordView::parse(&seen.record).expect("a record");
    assert_eq!((seen.queue_offset, seen.physical_offset), (1, offset_of(&half)), "it lies where it lay");
    assert_eq!(record.sys_flag().transaction(), TransactionType::Commit);
    assert_eq!(record.prepared_transaction_offset(), offset_of(&half));
    for (name, value) in [("TRAN_MSG", "true"), ("PGROUP", "pg"), ("REAL_TOPIC", "T"), ("REAL_QID", "0"), ("KEYS", "k")]
    {
        assert_eq!(seen.property(name).as_deref(), Some(value), "{name}");
    }
    assert_eq!(seen.property("__transactionId__"), half.transaction_id);
    let view = ViewMessageRequest { offset: offset_of(&half), ..ViewMessageRequest::default() };
    let viewed = wire.call(RemotingCommand::request_with(RequestCode::VIEW_MESSAGE_BY_ID, &view)).await;
    assert_eq!(messages(&viewed.body)[0], *seen);
    assert_eq!(wire.send_back("g", offset_of(&half), 1).await.code, 0);
    until("its retry is there", async || wire.pull(pull_request("%RETRY%g", 0)).await.code == 0).await;
    let retry = wire.pull(pull_request("%RETRY%g", 0)).await;
    let record = RecordView::parse(&retry.messages[0].record).expect("a record");
    assert_eq!((record.sys_flag().transaction(), record.reconsume_times()), (TransactionType::None, 1));

    // Another life of the broker: what was ended stays so, what was not can still be.
    broker.stop().await.expect("it stops");
    let broker = start(config).await;
    let wire = Wire::to(&broker.groups()[0]);
    assert_eq!((wire.end(&half, COMMIT).await.code, wire.end(&dropped, COMMIT).await.code), (0, 1));
    assert_eq!(wire.end(&silent, COMMIT).await.code, 0);
    assert_eq!(wire.pull(pull_request("T", 0)).await.bodies(), ["plain", "half", "plain too", "silent"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_producer_is_asked_until_it_answers_or_was_asked_often_enough() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = group_config(dir.path());
    config.messages = impatient(&config.messages);
    let broker = start(broker_config(config, vec![])).await;
    let (wire, reader) = (Wire::to(&broker.groups()[0]), broker.groups()[0].raft().reader());
    let half = wire.half("T", "half", &[]).await;
    let left_alone = wire.half("T", "left alone", &[("CHECK_IMMUNITY_TIME_IN_SECONDS", "3600")]).await;
    // Longer than all questions together would take: nobody is there, so none of them counts.
    Env::real().clock.sleep(IMPATIENT.timeout + IMPATIENT.check_interval * IMPATIENT.check_max).await;
    wire.produce_as("pg").await;
    until("it is asked", async || !wire.questions().is_empty()).await;
    let question = wire.questions().remove(0);
    assert!(question.is_one_way());
    let asked: CheckTransactionStateRequest = question.header().expect("a header");
    assert_eq!(asked.topic.as_deref(), Some("T"));
    assert_eq!((asked.commit_log_offset, Some(asked.tran_state_table_offset)), (offset_of(&half), half.queue_offset));
    assert_eq!((&asked.msg_id, &asked.transaction_id), (&half.transaction_id, &half.transaction_id));
    assert_eq!((asked.offset_msg_id.as_ref(), asked.broker_name.as_deref()), (half.msg_id.as_ref(), Some(BROKER)));
    let body = &messages(&question.body)[0];
    assert_eq!((body.body.as_str(), body.topic.as_str(), body.physical_offset), ("half", "T", offset_of(&half)));
    assert_eq!(body.property("PGROUP").as_deref(), Some("pg"));
    let record = RecordView::parse(&body.record).expect("a record");
    assert_eq!(record.sys_flag().transaction(), TransactionType::None);

    // It does not know, and does not know, and then it is asked no more.
    until("it is asked again", async || wire.questions().len() == 3).await;
    until("it is given up", async || reader.halves(HalfState::Discarded, None, 9).len() == 1).await;
    assert_eq!(wire.questions().len(), 3);
    assert!(wire.questions().iter().all(|question| {
        question.header::<CheckTransactionStateRequest>().expect("a header").commit_log_offset == offset_of(&half)
    }));
    assert_eq!(wire.end(&left_alone, ROLLBACK).await.code, 0);
    // An operator sees it, and lets it be asked about again.
    let listed = async |state: &str| -> Vec<WaitingTransaction> {
        let header =
            ListTransactionsRequest { state: state.to_owned(), max_num: 9, ..ListTransactionsRequest::default() };
        let answer = wire.call(RemotingCommand::request_with(RequestCode::LIST_TRANSACTIONS, &header)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        answer.json::<TransactionList>().expect("a list").transactions
    };
    let given_up = listed("discarded").await;
    assert_eq!((given_up.len(), given_up[0].asked, given_up[0].topic.as_str()), (1, 3, "T"));
    assert_eq!(Some(&given_up[0].offset_msg_id), half.msg_id.as_ref());
    assert_eq!((given_up[0].producer_group.as_str(), &given_up[0].unique_key), ("pg", &half.transaction_id));
    let resume = || {
        let msg_id = given_up[0].offset_msg_id.clone();
        let header = ResumeCheckHalfMessageRequest { topic: Some("T".to_owned()), msg_id };
        RemotingCommand::request_with(RequestCode::RESUME_CHECK_HALF_MESSAGE, &header)
    };
    assert_eq!(wire.call(resume()).await.code, 0);
    assert_eq!(wire.call(resume()).await.code, 22, "it is asked about already");
    assert!(listed("discarded").await.is_empty());
    until("it is asked about again", async || wire.questions().len() > 3).await;
    // Its producer may still end it, given up or not.
    until("it is given up again", async || listed("discarded").await.len() == 1).await;
    assert_eq!(wire.questions().len(), 6);
    assert_eq!(wire.call(end_request(&half, COMMIT)).await.code, 0);
    assert_eq!(wire.pull(pull_request("T", 0)).await.bodies(), ["half"]);
}

/// Of three producers of a group any may be asked, and one that has left is not.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_live_producer_of_the_group_is_asked_also_at_a_follower() {
    let three =
        Three::start_with(vec![Env::real(); 3], vec![], |group| group.messages = impatient(&group.messages)).await;
    let leader = three.leader().await;
    let follower = (leader + 1) % 3;
    until("the follower knows", async || three.group(follower).status().is_ready).await;
    let [at_leader, gone, elsewhere] = [leader, leader, follower].map(|at| Wire::to(three.group(at)));
    gone.produce_as("pg").await;
    let header = UnregisterClientRequest {
        client_id: "p1".to_owned(),
        producer_group: Some("pg".to_owned()),
        ..UnregisterClientRequest::default()
    };
    gone.call(RemotingCommand::request_with(RequestCode::UNREGISTER_CLIENT, &header)).await;
    elsewhere.produce_as("pg").await;
    let half = at_leader.half("T", "half", &[]).await;
    until("it is asked", async || !elsewhere.questions().is_empty()).await;
    assert!(gone.questions().is_empty());
    let question = elsewhere.questions().remove(0);
    assert!(question.ext.get("raftmqLeaderKey").is_none(), "a client is told no keys");
    // Nobody else can have a replica ask its clients.
    let forged = RemotingCommand { opaque: 0, ..question.clone() }.with_field("raftmqLeaderKey", "0");
    let forged = RemotingCommand { flag: 0, ..forged };
    assert_eq!(elsewhere.call(forged).await.code, 16);

    at_leader.produce_as("pg").await;
    let other = at_leader.half("T", "other", &[]).await;
    let asked_about = |wire: &Wire, half: &SendMessageResponse| {
        let offset = |question: &RemotingCommand| {
            question.header::<CheckTransactionStateRequest>().map(|asked| asked.commit_log_offset)
        };
        wire.questions().iter().any(|question| offset(question) == Ok(offset_of(half)))
    };
    until("the one here is asked", async || asked_about(&at_leader, &other)).await;
    let connection = elsewhere.client.connection(&elsewhere.address).await.expect("a connection");
    connection.one_way(answer_to(&question, COMMIT)).expect("it is sent");
    until("it is committed", async || at_leader.pull(pull_request("T", 0)).await.bodies() == ["half"]).await;
    assert_eq!(at_leader.end(&half, COMMIT).await.code, 0);
    assert_eq!(at_leader.end(&other, ROLLBACK).await.code, 0);
}

/// The leader dies between the half messages and their ends: the next one ends them, asks about them, and counts on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_leader_ends_transactions_and_asks_about_them() {
    const EACH: usize = 20;
    let three =
        Three::start_with(vec![Env::real(); 3], vec![], |group| group.messages = impatient(&group.messages)).await;
    let leader = three.leader().await;
    let wire = Wire::to(three.group(leader));
    let mut halves = Vec::new();
    for k in 0..4 * EACH {
        halves.push(
            wire.half(
                "T",
                &k.to_string(),
                &[("CHECK_IMMUNITY_TIME_IN_SECONDS", if k < 3 * EACH { "3600" } else { "0" })],
            )
            .await,
        );
    }
    let [committed, rolled_back, raced, silent] = [0, 1, 2, 3].map(|k| &halves[k * EACH..(k + 1) * EACH]);
    for half in committed.iter().take(EACH / 2) {
        assert_eq!(wire.end(half, COMMIT).await.code, 0);
    }
    three.brokers[leader].kill().await;
    until("somebody else leads", async || (0..3).any(|at| at != leader && three.group(at).leads())).await;
    let next = (0..3).find(|at| *at != leader && three.group(*at).leads()).expect("it leads");
    let wire = Wire::to(three.group(next));
    wire.produce_as("pg").await;
    // Again, and for the first time.
    for half in committed {
        assert_eq!(wire.end(half, COMMIT).await.code, 0);
    }
    for half in rolled_back {
        assert_eq!(wire.end(half, ROLLBACK).await.code, 0);
        assert_eq!(wire.end(half, COMMIT).await.code, 1);
    }
    // Both at once, several times: one of them has won, and the others are told so.
    let mut won = Vec::new();
    for half in raced {
        let ends = [COMMIT, ROLLBACK, ROLLBACK, COMMIT].map(|how| wire.end(half, how));
        let codes: Vec<i32> = futures::future::join_all(ends).await.iter().map(|answer| answer.code).collect();
        assert!(matches!(codes[..], [0, 1, 1, 0] | [1, 0, 1, 1] | [1, 1, 0, 1]), "{codes:?}");
        won.push(codes[0] == 0);
    }
    until("all the silent ones are asked about", async || wire.questions().len() >= EACH).await;
    let connection = wire.client.connection(&wire.address).await.expect("a connection");
    for question in wire.questions() {
        connection.one_way(answer_to(&question, COMMIT)).expect("it is sent");
    }
    let visible = 2 * EACH + won.iter().filter(|won| **won).count();
    until("all are there", async || wire.max_offset("T").await == visible as i64).await;
    let mut seen = Vec::new();
    while seen.len() < visible {
        seen.extend(wire.pull(pull_request("T", seen.len() as i64)).await.messages);
    }
    let mut offsets: Vec<i64> = seen.iter().map(|message| message.physical_offset).collect();
    offsets.sort_unstable();
    let raced = raced.iter().zip(won).filter(|(_, won)| *won).map(|(half, _)| half);
    let mut expected: Vec<i64> = committed.iter().chain(raced).chain(silent).map(offset_of).collect();
    expected.sort_unstable();
    assert_eq!(offsets, expected, "every committed one once, and none of the others");
}

/// Too many that wait are refused, by a code that clients take for "later".
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_wait_than_the_limit_allows() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut config = group_config(dir.path());
    config.limits.scheduled_messages = 2;
    let broker = start(broker_config(config, vec![])).await;
    let wire = Wire::to(&broker.groups()[0]);
    let first = wire.half("T", "1", &[]).await;
    wire.half("T", "2", &[]).await;
    let third = || send_request("T", &[("TRAN_MSG", "true")]);
    let refused = wire.send(third(), "3").await;
    assert_eq!(refused.code, 2, "{}", refused.remark_text());
    assert!(refused.remark_text().contains("scheduled_messages"), "{}", refused.remark_text());
    assert_eq!(wire.end(&first, COMMIT).await.code, 0);
    assert_eq!(wire.send(third(), "3").await.code, 0);
}
