//! Check-back: a producer that does not say how a transaction has ended is asked, with CHECK_TRANSACTION_STATE 39, by the
//! leader; any live producer of the group will do.
//!
//! The message goes along as it is stored, under its real topic. What was handed to a producer's connection is counted, in the
//! log; nothing else is. A producer that is connected to another replica, because it has not heard of a new leader yet, is asked
//! there: the leader hands the question to that replica, which believes it by the key that only this leader has told it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::CheckTransactionStateRequest;
use protocol::message_id::MessageId;
use protocol::properties;
use protocol::record::{HeadPatch, RecordView};
use protocol::sys_flag::TransactionType;
use raft_store::entry::{CoreCommand, Operation, TransactionCheck};
use raft_store::fold::HalfRecord;
use raft_store::group::{Peer, Role};
use raft_store::position::NodeId;

use crate::broker::BrokerGroup;
use crate::dispatch::{Answer, Call};
use crate::due::{self, Office, later, until};
use crate::error::RequestError;
use crate::questions::{Questions, Verdict};
use crate::send::half_offset;
use crate::transaction::immunity_of;

/// Messages looked at in one step.
const AT_ONCE: usize = 256;

/// Producers tried for one question, as in RocketMQ.
const TRIES: usize = 3;

/// How long another replica may take to hand on a question.
const RELAY_LIMIT: Duration = Duration::from_secs(1);

/// How often a leader that knows of nothing to ask looks again.
const IDLE_INTERVAL: Duration = Duration::from_secs(10);

/// What could not be looked at or counted is looked at again after this.
const NEXT_TRY: Duration = Duration::from_secs(1);

/// By what a replica believes that its leader asks: the leader's own key.
const LEADER_KEY: &str = "raftmqLeaderKey";

/// Asks whenever something is due, until the office is lost.
pub(crate) async fn ask_in_office(mut office: Office<'_>) {
    let broker = office.broker;
    let mut questions =
        Questions::taken_over(broker.now(), broker.config.messages.transactions, broker.config.retention.time);
    loop {
        let now = broker.now();
        let next = questions.next(&broker.reader);
        if next.is_none_or(|at| now < at) {
            broker.questions_done_ms.store(now.0, Ordering::Release);
        }
        let wait = match next {
            None => IDLE_INTERVAL,
            Some(at) if now < at => until(at, now),
            Some(_) => match office.unless_lost(step(broker, &mut questions)).await {
                None => return,
                Some(Ok(())) => Duration::ZERO,
                Some(Err(error)) => {
                    tracing::debug!(group = %broker.broker_name(), %error, "questions to producers are put off");
                    due::NEXT_TRY
                }
            },
        };
        if office.is_lost_within(wait).await {
            return;
        }
    }
}

/// Who is not asked again in one step.
#[derive(Default)]
struct Absent {
    /// Groups that nobody is there of.
    groups: BTreeSet<String>,
    /// Replicas that did not answer: one that is away makes a step longer once, not once for each group.
    replicas: BTreeSet<NodeId>,
}

/// Asks about what is due.
async fn step(broker: &BrokerGroup, questions: &mut Questions) -> Result<(), RequestError> {
    let now = broker.now();
    let due = questions.take_due(now, AT_ONCE, &broker.reader, |group| broker.has_producer(group));
    let (mut checks, mut absent) = (Vec::new(), Absent::default());
    for half in due {
        match broker.look_at(questions, &half, &mut absent).await {
            Ok(Some(check)) => checks.push((half.key, check)),
            Ok(None) => {}
            Err(error) => {
                tracing::warn!(group = %broker.broker_name(), at = %half.place, %error, "a half message cannot be read");
                questions.put_off(half.key, later(now, NEXT_TRY));
            }
        }
    }
    if checks.is_empty() {
        return Ok(());
    }
    let commands = checks.iter().map(|(half, check)| CoreCommand::CheckTransaction { half: *half, check: *check });
    let counted = broker.raft.propose(commands.map(Operation::Core).collect()).await;
    if let Err(error) = counted {
        // Asked once more than is counted, at worst.
        checks.iter().for_each(|(half, _)| questions.put_off(*half, later(now, NEXT_TRY)));
        return Err(error.into());
    }
    for (_, check) in checks {
        let counter = match check {
            TransactionCheck::Asked => &broker.transactions.asked,
            TransactionCheck::Discard => &broker.transactions.discarded,
            TransactionCheck::Resume => continue,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// Handles CHECK_TRANSACTION_STATE, which a leader hands on to a replica that may know a producer of the group.
pub async fn relay(broker: &Arc<BrokerGroup>, call: &Call) -> Answer {
    let key = call.request.ext.text(LEADER_KEY).unwrap_or_default();
    let leader = match &*broker.role.borrow() {
        Role::Follower { leader: Some(leader), .. } => Some(leader.id),
        _ => None,
    };
    let expected = leader.and_then(|leader| broker.raft.forward_key_of(leader));
    if !expected.is_some_and(|expected| expected.is(key)) {
        let remark = "only the leader of this broker group asks that".to_owned();
        return Err(RequestError::Forbidden { remark, whose: None });
    }
    let header: CheckTransactionStateRequest = call.request.header()?;
    let group = RecordView::parse(&call.request.body)?.property(properties::PGROUP).unwrap_or_default().to_owned();
    let question = RemotingCommand::request_with(RequestCode::CHECK_TRANSACTION_STATE, &header);
    if broker.ask_here(&group, &question.with_body(call.request.body.clone())) {
        return Ok(call.request.reply(ResponseCode::SUCCESS));
    }
    Err(RequestError::NotFound(format!("no producer of the group {group} is connected here")))
}

impl BrokerGroup {
    fn has_producer(&self, group: &str) -> bool {
        self.clients.lock().producer_group(group).is_some()
    }

    /// Looks at one message that is due; what is to be written about it.
    async fn look_at(
        &self,
        questions: &mut Questions,
        half: &HalfRecord,
        absent: &mut Absent,
    ) -> Result<Option<TransactionCheck>, RequestError> {
        let stored = self.reader.record(half.place, half.size).await?;
        let record = RecordView::parse(&stored)?;
        let group = record.property(properties::PGROUP).unwrap_or_default();
        let now = self.now();
        match questions.verdict(half, immunity_of(&record), now) {
            Verdict::NotBefore(time) => questions.put_off(half.key, time),
            Verdict::Discard => {
                let (broker, at, topic) = (self.broker_name(), half.key, record.topic());
                tracing::warn!(
                    group = broker,
                    producer_group = group,
                    topic,
                    %at,
                    "no producer says how a transaction has ended; nobody is asked any more: raftmq admin transactionList"
                );
                return Ok(Some(TransactionCheck::Discard));
            }
            Verdict::Ask
                if !absent.groups.contains(group) && self.ask(group, half, &stored, &mut absent.replicas).await? =>
            {
                questions.found(group, now);
                return Ok(Some(TransactionCheck::Asked));
            }
            Verdict::Ask => {
                absent.groups.insert(group.to_owned());
                questions.park(group, half);
            }
        }
        Ok(None)
    }

    /// Asks any producer of the group, wherever it is connected, but for `silent` replicas. Whether somebody was asked.
    async fn ask(
        &self,
        group: &str,
        half: &HalfRecord,
        stored: &Bytes,
        silent: &mut BTreeSet<NodeId>,
    ) -> Result<bool, RequestError> {
        let question = self.question(half, stored)?;
        if self.ask_here(group, &question) {
            return Ok(true);
        }
        for member in self.other_members() {
            if silent.contains(&member.id) {
                continue;
            }
            match self.ask_at(&member, &question).await {
                Some(true) => return Ok(true),
                Some(false) => {}
                None => drop(silent.insert(member.id)),
            }
        }
        Ok(false)
    }

    /// CHECK_TRANSACTION_STATE with the message as RocketMQ shows it: under its real topic, as if it were no half message.
    fn question(&self, half: &HalfRecord, stored: &Bytes) -> Result<RemotingCommand, RequestError> {
        let record = RecordView::parse(stored)?;
        let (store_host, physical_offset) = (self.config.advertised_address, half.key.0 as i64);
        let unique_key = record.property(properties::UNIQ_KEY).map(str::to_owned);
        let header = CheckTransactionStateRequest {
            topic: Some(record.topic().to_owned()),
            tran_state_table_offset: half_offset(half.key).0 as i64,
            commit_log_offset: physical_offset,
            msg_id: unique_key.clone(),
            transaction_id: unique_key,
            offset_msg_id: Some(MessageId { store_host, physical_offset }.to_string()),
            broker_name: Some(self.broker_name().to_owned()),
        };
        let mut body = BytesMut::from(&stored[..]);
        let patch = HeadPatch {
            queue_offset: half_offset(half.key).0 as i64,
            physical_offset,
            sys_flag: Some(record.sys_flag().with_transaction(TransactionType::None)),
            store_timestamp: Some(half.stored_at.0),
            ..HeadPatch::default()
        };
        patch.apply(&mut body)?;
        Ok(RemotingCommand::request_with(RequestCode::CHECK_TRANSACTION_STATE, &header).with_body(body.freeze()))
    }

    /// Asks a producer that is connected to this replica, one after the other in turn. Whether it was handed to one.
    fn ask_here(&self, group: &str, question: &RemotingCommand) -> bool {
        let producers: Vec<_> = {
            let clients = self.clients.lock();
            clients.producer_group(group).map(|members| members.keys().copied().collect()).unwrap_or_default()
        };
        let first = self.transactions.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = (0..producers.len().min(TRIES)).map(|k| producers[first.wrapping_add(k) % producers.len()]);
        for id in in_turn {
            let connection = self.connections.lock().get(&id).cloned();
            if connection.is_some_and(|connection| connection.one_way(question.clone()).is_ok()) {
                return true;
            }
        }
        false
    }

    /// Lets another replica ask. Whether it has; `None` if it does not answer.
    async fn ask_at(&self, member: &Peer, question: &RemotingCommand) -> Option<bool> {
        let question = question.clone().with_field(LEADER_KEY, self.raft.forward_key().to_text());
        let answer = self.reached(member).await?.call(question, RELAY_LIMIT).await.ok()?;
        Some(answer.is_success())
    }
}
