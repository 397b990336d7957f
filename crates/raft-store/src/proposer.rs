//! The proposer: one task that turns what waits into entries, in order, and the waiters that apply answers.
//!
//! - Natural batching, no timer: while entries are in flight, what arrives waits, and then goes together. A submission
//!   is never split over two entries.
//! - Group time is stamped here, in log order, as [`crate::group_time`] says. Bodies are encoded once, with their CRC.
//! - Every proposal is fenced with the leader's term. A leader serves only once its own `Lead` is applied; until then
//!   submissions wait, they do not fail.
//! - Three outcomes: placed (with what apply made of it), not leader (certainly not appended), unknown.
//! - What is held is what is admitted: a submission's bytes count until it is answered, or dropped because nobody waits
//!   for it any more. That is looked after in every office, so that a node without a quorum does not fill its memory.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use env::{Clock, Ticks};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use openraft::error::{ClientWriteError, ForwardReason, ForwardToLeader};
use openraft::impls::OneshotResponder;
use openraft::raft::ClientWriteResult;
use openraft::type_config::TypeConfigExt;
use openraft::{Instant, Raft};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::entry::{CoreCommand, Operation, encode_entry, encoded_bytes};
use crate::fold::{Outcome, Reader, Refusal, Tables};
use crate::group::Peer;
use crate::group_time::{GroupTime, Judgement, Others, Reading};
use crate::keys_in_flight::HeldKeys;
use crate::member::Office;
use crate::planted::{self, Bug};
use crate::position::{LogId, NodeId, Timestamp};
use crate::raft::machine::Machine;
use crate::raft::peer::client::Links;
use crate::raft::peer::vitals::HEARD_WITHIN;
use crate::raft::peer::vitals::clocks_of;
use crate::raft::tickets::Ended;
use crate::raft::types::{Body, Ticket, Types, leader_of};

/// An entry is filled up to this, unless one submission alone is longer.
const ENTRY_BYTES: usize = 256 << 10;

/// Entries proposed and not yet applied.
const IN_FLIGHT_MAX: usize = 8;

/// A new leader's lease, or its first entry, needs a round trip: asked again after this.
const NOT_YET_INTERVAL: Duration = Duration::from_millis(5);

/// A leader looks at the clocks this often.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Between two looks at when a majority has answered last.
const QUORUM_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A new leader waits for the clocks of a majority, which it has just reached, no longer than this.
const CLOCKS_LIMIT: Duration = Duration::from_secs(2);

/// Which clock group time follows here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupClock {
    /// Group time minus this node's monotonic clock, in milliseconds, while this node leads.
    pub followed: Option<i64>,
    /// It is not this node's wall clock that is followed.
    pub holds: bool,
    /// This node's wall clock against the voters' median, while it leads and knows.
    pub offset_ms: Option<i64>,
    /// Times that this node's wall clock was not followed.
    pub steps_refused: u64,
}

/// How much an origin may differ from the next one of the same clocks.
const ROUNDING_MS: i64 = 1;

impl GroupClock {
    /// The time of an entry that would be stamped now, or less: the clock may have been moved since it was looked at.
    ///
    /// As long as it was not, exactly that of the wall clock: what is delayed from now on must not be early by whoever's
    /// clock. Both clocks are read in whole milliseconds, so that their difference, which is all that is known of the
    /// moment when it was looked at, comes and goes by one.
    pub(crate) fn at(&self, now: Reading) -> Timestamp {
        let followed = self.followed.map(|followed| followed.saturating_add(now.monotonic));
        Timestamp(match followed {
            Some(followed) if self.holds => followed,
            Some(followed) => followed.saturating_add(ROUNDING_MS).min(now.wall),
            None => now.wall,
        })
    }
}

/// Why somebody else should lead, and who.
#[derive(Debug)]
pub enum Wish {
    /// This node's clock is off; theirs are good.
    Clock(Vec<NodeId>),
    /// This node's disk is stalled or too slow.
    Disk,
    /// This node's state is wrong; theirs is right. It stops when this is answered.
    State(Vec<NodeId>, oneshot::Sender<()>),
}

/// Why operations have no outcome.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Certainly not appended: safe to send again, to `leader` if it is known.
    #[error("not the leader")]
    NotLeader {
        /// Who leads, as far as this node knows.
        leader: Option<Peer>,
    },
    /// It may or may not happen.
    #[error("leadership was lost, or time ran out, before the outcome was known")]
    Unknown,
    /// Certainly not appended: this stage is full. Send again later.
    #[error("busy: {stage}")]
    Busy {
        /// Which queue.
        stage: &'static str,
    },
    /// Certainly not appended: longer than an entry may be.
    #[error("{bytes} bytes in one submission, {limit} are allowed")]
    TooLarge {
        /// Encoded length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Certainly not appended: this node is stopping, or has stopped.
    #[error("stopped")]
    Stopped,
}

/// What a submission gets.
pub type Answer<R> = Result<Vec<Outcome<R>>, ProposeError>;

const QUEUED: u8 = 0;
const TAKEN: u8 = 1;
const CANCELLED: u8 = 2;

/// Whether a submission can still be withdrawn: taken by the proposer or cancelled by its caller, never both.
#[derive(Debug, Default)]
pub struct Claim(AtomicU8);

impl Claim {
    fn take(&self) -> bool {
        self.0.compare_exchange(QUEUED, TAKEN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn put_back(&self) {
        self.0.store(QUEUED, Ordering::Release);
    }

    /// True if it was still queued: then it is certainly not appended, and never will be.
    pub fn cancel(&self) -> bool {
        self.0.compare_exchange(QUEUED, CANCELLED, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

/// Bytes of submissions that are held; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    held: Arc<AtomicUsize>,
    bytes: usize,
}

impl Admitted {
    /// Admits `bytes` if no more than `limit` are held then. Alone, a submission always passes, however large.
    pub fn admit(held: &Arc<AtomicUsize>, bytes: usize, limit: usize) -> Option<Admitted> {
        let before = held.fetch_add(bytes, Ordering::AcqRel);
        let admitted = Admitted { held: held.clone(), bytes };
        (before == 0 || before + bytes <= limit).then_some(admitted)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// Operations that belong together, and who waits for them.
pub struct Submission<R> {
    /// Each has one outcome.
    pub operations: Vec<Operation>,
    /// Sum of [`encoded_bytes`].
    pub bytes: usize,
    /// These bytes count as long as they are held, whether or not somebody still waits.
    pub admitted: Admitted,
    /// Keys that nobody else may propose anything for meanwhile; this in their term only.
    pub held: Option<HeldKeys>,
    /// Withdrawn when the caller has stopped waiting.
    pub claim: Arc<Claim>,
    /// Where the outcomes go.
    pub answer: oneshot::Sender<Answer<R>>,
    /// Position among all submissions, given by the proposer when it arrives: what was refused goes back to its place.
    pub arrival: u64,
}

/// Submissions in flight, by the ticket of their entry.
pub struct Waiters<R> {
    by_ticket: Mutex<BTreeMap<Ticket, Vec<Submission<R>>>>,
    next: AtomicU64,
}

impl<R> Default for Waiters<R> {
    fn default() -> Waiters<R> {
        Waiters { by_ticket: Mutex::default(), next: AtomicU64::new(1) }
    }
}

impl<R> Waiters<R> {
    fn add(&self, submissions: Vec<Submission<R>>) -> Ticket {
        let ticket = Ticket(self.next.fetch_add(1, Ordering::Relaxed));
        self.by_ticket.lock().insert(ticket, submissions);
        ticket
    }

    fn take(&self, ticket: Ticket) -> Vec<Submission<R>> {
        self.by_ticket.lock().remove(&ticket).unwrap_or_default()
    }

    /// Entries in flight, or of unknown fate until something is applied in their place.
    pub fn len(&self) -> usize {
        self.by_ticket.lock().len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Apply says how the proposal of `ticket` ended; `outcomes` are asked for if it was applied.
    pub fn ended(&self, ticket: Ticket, ended: Ended, outcomes: impl FnOnce() -> Vec<Outcome<R>>) {
        let submissions = self.take(ticket);
        match ended {
            Ended::Superseded => answer_all(submissions, || ProposeError::NotLeader { leader: None }),
            Ended::Covered if planted::is(Bug::DiscardedIsNever) => {
                answer_all(submissions, || ProposeError::NotLeader { leader: None });
            }
            Ended::Covered => answer_all(submissions, || ProposeError::Unknown),
            Ended::Applied => {
                let outcomes = outcomes();
                let expected: usize = submissions.iter().map(|submission| submission.operations.len()).sum();
                if outcomes.len() != expected {
                    // Refused as a whole: our own encoding was wrong. One refusal stands for all.
                    for submission in submissions {
                        let _ = submission.answer.send(Ok(vec![Outcome::Refused(Refusal::Malformed)]));
                    }
                    return;
                }
                let mut outcomes = outcomes.into_iter();
                for submission in submissions {
                    let own = outcomes.by_ref().take(submission.operations.len()).collect();
                    // The caller may have stopped waiting.
                    let _ = submission.answer.send(Ok(own));
                }
            }
        }
    }

    /// The group has ended: whatever is still here is unknown.
    pub fn end(&self) {
        let left = std::mem::take(&mut *self.by_ticket.lock());
        left.into_values().for_each(|submissions| answer_all(submissions, || ProposeError::Unknown));
    }
}

fn answer_all<R>(submissions: impl IntoIterator<Item = Submission<R>>, error: impl Fn() -> ProposeError) {
    for submission in submissions {
        let _ = submission.answer.send(Err(error()));
    }
}

/// A leader's time, and the other voters' clocks as they were looked at last.
struct OfficeTime {
    time: GroupTime,
    others: Others,
    /// Steps refused in earlier offices.
    refused_before: u64,
}

impl OfficeTime {
    fn stamp(&mut self, clock: &Clock) -> Timestamp {
        self.time.stamp(Reading::of(clock), &self.others)
    }
}

/// How far leadership is on its way to another node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HandingOver {
    /// It is not.
    No,
    /// Submissions wait until what is in flight is everywhere.
    Waiting,
    /// The successor was told. openraft takes nothing more in this term, whether or not somebody else leads the next one:
    /// submissions wait for that, and this node is not ready.
    Triggered {
        /// This node's last.
        term: u64,
    },
}

/// Whether the node that leads serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Serving {
    /// It does not lead, has not taken its office yet, or is handing it over.
    No,
    /// Its `Lead` is applied.
    Yes {
        /// Its term.
        term: u64,
    },
    /// Not any more, or not yet again: somebody else may have been elected meanwhile.
    Isolated {
        /// Its term.
        term: u64,
    },
}

/// Who leads, by openraft's word. The successor of a leader that is handing over may never lead.
pub(crate) fn leader_told(forward: ForwardToLeader<Types>) -> Option<Peer> {
    let leads = forward.reason != ForwardReason::LeadershipTransfer;
    let leader = forward.leader_id.zip(forward.leader_node.as_ref()).filter(|_| leads);
    leader.map(|(id, node)| Peer::new(id, node))
}

/// The proposer's task.
pub struct Proposer<T: Tables> {
    /// Stamps.
    pub clock: Clock,
    /// Where entries go.
    pub raft: Raft<Types, Machine<T>>,
    /// What is applied.
    pub reader: Reader<T>,
    /// Who waits.
    pub waiters: Arc<Waiters<T::Reply>>,
    /// What arrives.
    pub queue: mpsc::UnboundedReceiver<Submission<T::Reply>>,
    /// Who leads.
    pub office: watch::Receiver<Office>,
    /// Whether this node serves.
    pub serving: watch::Sender<Serving>,
    /// A leader whom no majority has answered for this long serves no more.
    pub quorum_limit: Duration,
    /// Whether leadership is being handed over.
    pub handing: watch::Receiver<HandingOver>,
    /// Submissions seen so far.
    pub arrivals: u64,
    /// When to look for submissions that nobody waits for.
    pub sweeps: Ticks,
    /// The other voters' clocks.
    pub links: Arc<Links>,
    /// Which clock is followed.
    pub group_clock: watch::Sender<GroupClock>,
    /// Where it goes when somebody else should lead.
    pub wishes: mpsc::UnboundedSender<Wish>,
}

type InFlight = (Ticket, Option<ClientWriteResult<Types>>);

impl<T: Tables> Proposer<T> {
    /// Runs until every sender of the queue is gone.
    pub async fn run(mut self) {
        let mut waiting = VecDeque::new();
        loop {
            let office = self.office.borrow_and_update().clone();
            let goes_on = match office {
                Office::Leading { term } => self.lead(term, &mut waiting).await,
                Office::Following { leader: Some(leader), .. } => {
                    let leader = Some(leader);
                    answer_all(waiting.drain(..), || ProposeError::NotLeader { leader: leader.clone() });
                    self.wait(&mut waiting).await
                }
                // Somebody will lead soon: wait, the callers have deadlines.
                Office::Following { leader: None, .. } => self.wait(&mut waiting).await,
                Office::Stopped => false,
            };
            if !goes_on {
                break;
            }
        }
        self.serving.send_replace(Serving::No);
        self.queue.close();
        while let Some(submission) = self.queue.recv().await {
            waiting.push_back(submission);
        }
        answer_all(waiting, || ProposeError::Stopped);
    }

    /// What goes on in every office: takes in what arrives, and drops what nobody waits for any more. Resolves after one
    /// of both; false when nothing will ever arrive. Cancel-safe.
    async fn collect(&mut self, waiting: &mut VecDeque<Submission<T::Reply>>) -> bool {
        tokio::select! { biased;
            () = self.sweeps.next() => {
                waiting.retain(|submission| !submission.answer.is_closed());
                // What one burst took.
                waiting.shrink_to(2 * waiting.len());
                true
            }
            submission = self.queue.recv() => match submission {
                Some(submission) => {
                    self.arrived(submission, waiting);
                    true
                }
                None => false,
            },
        }
    }

    fn arrived(&mut self, mut submission: Submission<T::Reply>, waiting: &mut VecDeque<Submission<T::Reply>>) {
        self.arrivals += 1;
        submission.arrival = self.arrivals;
        waiting.push_back(submission);
    }

    /// Until the office changes or something arrives. False at the end.
    async fn wait(&mut self, waiting: &mut VecDeque<Submission<T::Reply>>) -> bool {
        let mut office = self.office.clone();
        tokio::select! { biased;
            changed = office.changed() => changed.is_ok(),
            goes_on = self.collect(waiting) => goes_on,
        }
    }

    /// Holds the office of `term` until it is lost. False at the end.
    async fn lead(&mut self, term: u64, waiting: &mut VecDeque<Submission<T::Reply>>) -> bool {
        let mut office = self.office.clone();
        let lost = async move {
            loop {
                if office.changed().await.is_err() {
                    return false;
                }
                if !matches!(&*office.borrow_and_update(), Office::Leading { term: now } if *now == term) {
                    return true;
                }
            }
        };
        let mut lost = std::pin::pin!(lost);
        let mut taking = std::pin::pin!(self.take_office(term));
        let took_office = loop {
            tokio::select! { biased;
                goes_on = &mut lost => return goes_on,
                took_office = &mut taking => break took_office,
                goes_on = self.collect(waiting) => if !goes_on {
                    return false;
                },
            }
        };
        let Some(mut time) = took_office else { return false };
        // Before anybody asks what time it is.
        self.look_at_clocks(&mut time);
        self.serving.send_replace(Serving::Yes { term });
        let goes_on = self.serve(term, &mut time, waiting, lost).await;
        self.serving.send_replace(Serving::No);
        self.group_clock.send_modify(|clock| {
            *clock = GroupClock { steps_refused: clock.steps_refused, ..GroupClock::default() };
        });
        goes_on
    }

    /// Proposes this term's `Lead` and waits until it is applied. `None` at the end.
    ///
    /// It is stamped only when everything before this term is applied: group time goes on from there. And when the
    /// clocks of a majority are known: their hellos have just come.
    fn take_office(&self, term: u64) -> impl Future<Output = Option<OfficeTime>> + Send + 'static {
        let (clock, raft, reader) = (self.clock.clone(), self.raft.clone(), self.reader.clone());
        let (links, refused_before) = (self.links.clone(), self.group_clock.borrow().steps_refused);
        async move {
            let mut applied = reader.watch_applied();
            let is_served = |applied: &Option<LogId>| applied.is_some_and(|applied| applied.term >= term);
            applied.wait_for(|applied| is_served(applied) || planted::is(Bug::ServeBeforeLead)).await.ok()?;
            let mut heard = links.heard().watch();
            let majority = async {
                while !clocks_of(&raft, links.heard(), &clock).1.is_majority() && heard.changed().await.is_ok() {}
            };
            let _ = clock.timeout(CLOCKS_LIMIT, majority).await;
            let (_, others) = clocks_of(&raft, links.heard(), &clock);
            let mut time = OfficeTime { time: GroupTime::after(reader.now()), others, refused_before };
            if planted::is(Bug::KeysOfOtherTermsForgotten) {
                reader.forget_recent_keys();
            }
            loop {
                let stamp = time.stamp(&clock);
                let body = body_of(encode_entry(stamp, &[Operation::Core(CoreCommand::Lead)]), None);
                let answer = propose(&raft, term, body).await;
                if planted::is(Bug::ServeBeforeLead) {
                    return Some(time);
                }
                match answer.await {
                    Some(Ok(_)) => return Some(time),
                    // A fresh leader has no lease yet; one that is none any more is told so by its office.
                    Some(Err(_)) => clock.sleep(NOT_YET_INTERVAL).await,
                    None => return None,
                }
            }
        }
    }

    /// Proposes what arrives until the office is lost. False at the end.
    async fn serve(
        &mut self,
        term: u64,
        time: &mut OfficeTime,
        waiting: &mut VecDeque<Submission<T::Reply>>,
        mut lost: std::pin::Pin<&mut impl Future<Output = bool>>,
    ) -> bool {
        let mut in_flight: FuturesUnordered<futures::future::BoxFuture<'static, InFlight>> = FuturesUnordered::new();
        // Not before then: openraft has just said that it takes nothing.
        let mut not_yet = false;
        let mut retries = self.clock.ticks(NOT_YET_INTERVAL);
        let mut looks = self.clock.ticks(LOOK_INTERVAL);
        let mut quorum_looks = self.clock.ticks(QUORUM_LOOK_INTERVAL);
        let mut handing = self.handing.clone();
        let mut is_isolated = false;
        loop {
            let handing_over = *handing.borrow_and_update();
            // What was triggered in an earlier term has ended with that.
            let (serving, takes) = match handing_over {
                HandingOver::Triggered { term: last } if last == term => (Serving::No, false),
                _ if is_isolated => (Serving::Isolated { term }, false),
                HandingOver::Waiting => (Serving::Yes { term }, false),
                HandingOver::No | HandingOver::Triggered { .. } => (Serving::Yes { term }, true),
            };
            self.serves(serving);
            if serving == (Serving::Isolated { term }) {
                answer_all(waiting.drain(..), || ProposeError::NotLeader { leader: None });
            }
            if takes && !not_yet {
                self.send_waiting(term, time, waiting, &mut in_flight).await;
            }
            tokio::select! { biased;
                goes_on = &mut lost => {
                    self.abandon(in_flight);
                    return goes_on;
                }
                Some((ticket, answer)) = in_flight.next() => {
                    not_yet |= self.answered(ticket, answer, waiting);
                }
                goes_on = self.collect(waiting) => if !goes_on {
                    self.abandon(in_flight);
                    return false;
                },
                _ = handing.changed() => {}
                () = looks.next() => self.look_at_clocks(time),
                () = quorum_looks.next() => is_isolated = self.is_isolated(),
                () = retries.next(), if not_yet => not_yet = false,
            }
        }
    }

    fn serves(&self, now: Serving) {
        self.serving.send_if_modified(|before| {
            if matches!((*before, now), (Serving::Yes { .. }, Serving::Isolated { .. })) {
                tracing::warn!("no majority answers this leader: it serves no more until one does");
            }
            std::mem::replace(before, now) != now
        });
    }

    /// Whether no majority has answered this leader for so long that somebody else may lead. Voters that answer what needs
    /// no disk are there, and it leads them: requests wait for their disks.
    #[allow(clippy::disallowed_methods)] // openraft says when a majority answered in tokio's instants.
    fn is_isolated(&self) -> bool {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        if metrics.last_quorum_acked.is_none_or(|acked| acked.elapsed() <= self.quorum_limit) {
            return false;
        }
        let voters: Vec<NodeId> = metrics.membership_config.membership().voter_ids().collect();
        let (now, limit) = (self.clock.monotonic(), self.quorum_limit.max(HEARD_WITHIN));
        let is_there = |voter: &&NodeId| **voter == metrics.id || self.links.heard().answers(**voter, now, limit);
        voters.iter().filter(is_there).count() <= voters.len() / 2
    }

    /// Which clocks there are, which is followed, and whether this node should lead with its own.
    fn look_at_clocks(&self, time: &mut OfficeTime) {
        let (now, others) = clocks_of(&self.raft, self.links.heard(), &self.clock);
        let Judgement { offset_ms, successors } = time.time.judge(now, &others);
        time.others = others;
        let (followed, holds) = (time.time.followed(), time.time.holds());
        let steps_refused = time.refused_before + time.time.refused();
        let before = self.group_clock.send_replace(GroupClock { followed, holds, offset_ms, steps_refused });
        if before.steps_refused < steps_refused {
            tracing::error!(?offset_ms, "this machine's clock was moved, or is wrong; it is not followed");
        }
        if !successors.is_empty() {
            tracing::warn!(?offset_ms, "this machine's clock is off; handing over to a voter whose clock is not");
            // A member that is ending has no wishes.
            let _ = self.wishes.send(Wish::Clock(successors));
        }
    }

    /// Fills entries from what waits, as many as may be in flight.
    async fn send_waiting(
        &mut self,
        term: u64,
        time: &mut OfficeTime,
        waiting: &mut VecDeque<Submission<T::Reply>>,
        in_flight: &mut FuturesUnordered<futures::future::BoxFuture<'static, InFlight>>,
    ) {
        while in_flight.len() < IN_FLIGHT_MAX {
            while let Ok(submission) = self.queue.try_recv() {
                self.arrived(submission, waiting);
            }
            let mut submissions = fill(waiting, term);
            if submissions.is_empty() {
                return;
            }
            let stamp = time.stamp(&self.clock);
            let operations = match submissions.as_mut_slice() {
                [only] => encode_entry(stamp, &only.operations),
                several => {
                    let all: Vec<Operation> =
                        several.iter().flat_map(|submission| submission.operations.iter().cloned()).collect();
                    encode_entry(stamp, &all)
                }
            };
            let ticket = self.waiters.add(submissions);
            let answer = propose(&self.raft, term, body_of(operations, Some(ticket))).await;
            in_flight.push(Box::pin(async move { (ticket, answer.await) }));
        }
    }

    /// openraft's answer. Gives true if the submissions wait again because openraft takes nothing at the moment.
    fn answered(
        &self,
        ticket: Ticket,
        answer: Option<ClientWriteResult<Types>>,
        waiting: &mut VecDeque<Submission<T::Reply>>,
    ) -> bool {
        match answer {
            // Apply has answered the waiters.
            Some(Ok(_)) => false,
            // Certainly not appended. If nobody else leads, this node may again in a moment.
            Some(Err(ClientWriteError::ForwardToLeader(forward))) => {
                let submissions = self.waiters.take(ticket);
                match leader_told(forward) {
                    Some(leader) if leader.id != *self.raft.node_id() => {
                        answer_all(submissions, || ProposeError::NotLeader { leader: Some(leader.clone()) });
                        false
                    }
                    _ => {
                        for submission in submissions {
                            submission.claim.put_back();
                            waiting.push_front(submission);
                        }
                        waiting.make_contiguous().sort_by_key(|submission| submission.arrival);
                        true
                    }
                }
            }
            Some(Err(_)) if planted::is(Bug::DiscardedIsNever) => {
                answer_all(self.waiters.take(ticket), || ProposeError::NotLeader { leader: None });
                false
            }
            // Truncated here, which decides nothing: apply will.
            Some(Err(_)) => false,
            // Raft has stopped. Appended or not, nobody here can say any more.
            None => {
                answer_all(self.waiters.take(ticket), || ProposeError::Unknown);
                false
            }
        }
    }

    /// The office is lost. What was appended is decided by apply; openraft's answers are awaited beside, for those
    /// that were not.
    fn abandon(&self, in_flight: FuturesUnordered<futures::future::BoxFuture<'static, InFlight>>) {
        if in_flight.is_empty() {
            return;
        }
        let waiters = self.waiters.clone();
        drop(Types::spawn(async move {
            let mut in_flight = in_flight;
            while let Some((ticket, answer)) = in_flight.next().await {
                match answer {
                    Some(Err(ClientWriteError::ForwardToLeader(forward))) => {
                        let leader = leader_told(forward);
                        answer_all(waiters.take(ticket), || ProposeError::NotLeader { leader: leader.clone() });
                    }
                    Some(Err(_)) if planted::is(Bug::DiscardedIsNever) => {
                        answer_all(waiters.take(ticket), || ProposeError::NotLeader { leader: None });
                    }
                    Some(_) => {}
                    None => answer_all(waiters.take(ticket), || ProposeError::Unknown),
                }
            }
        }));
    }
}

/// Sends one entry into openraft, in order; the future it gives ends with openraft's answer, `None` if Raft has
/// stopped.
async fn propose<T: Tables>(
    raft: &Raft<Types, Machine<T>>,
    term: u64,
    body: Body,
) -> impl Future<Output = Option<ClientWriteResult<Types>>> + Send + use<T> {
    let (responder, answer) = OneshotResponder::new_pair();
    let sent = raft.write(body).responder(responder).with_leader(leader_of(term)).await;
    async move {
        sent.ok()?;
        answer.await.ok()
    }
}

/// Takes submissions for one entry of `term` from the front, leaving out the withdrawn. One that was decided on in another
/// term is refused: what it was decided by may not hold any more.
fn fill<R>(waiting: &mut VecDeque<Submission<R>>, term: u64) -> Vec<Submission<R>> {
    let mut taken: Vec<Submission<R>> = Vec::new();
    let mut bytes = 0;
    while let Some(next) = waiting.front() {
        if !taken.is_empty() && bytes + next.bytes > ENTRY_BYTES {
            break;
        }
        let next = waiting.pop_front().expect("there is a front");
        if next.answer.is_closed() || !next.claim.take() {
            continue;
        }
        if next.held.as_ref().is_some_and(|held| held.term != term) {
            let _ = next.answer.send(Err(ProposeError::NotLeader { leader: None }));
            continue;
        }
        bytes += next.bytes;
        taken.push(next);
    }
    taken
}

fn body_of(bytes: Bytes, ticket: Option<Ticket>) -> Body {
    let crc = crc32c::crc32c(&bytes);
    Body { bytes, crc, ticket }
}

/// Bytes that `operations` take in an entry, its head included.
pub fn submission_bytes(operations: &[Operation]) -> usize {
    operations.iter().map(encoded_bytes).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn submission(bytes: usize) -> (Submission<()>, oneshot::Receiver<Answer<()>>) {
        let (answer, answered) = oneshot::channel();
        let operations = vec![Operation::Core(CoreCommand::Checkpoint)];
        let admitted = Admitted::admit(&Arc::default(), bytes, usize::MAX).expect("there is no limit");
        (Submission { operations, bytes, admitted, held: None, claim: Arc::default(), answer, arrival: 0 }, answered)
    }

    #[test]
    fn an_entry_is_filled_up_to_its_size_and_a_submission_is_never_split() {
        let mut kept = Vec::new();
        let mut waiting = VecDeque::new();
        for bytes in [100 << 10, 100 << 10, 100 << 10, 2 << 20, 1] {
            let (submission, answered) = submission(bytes);
            kept.push(answered);
            waiting.push_back(submission);
        }
        let sizes: Vec<Vec<usize>> = std::iter::from_fn(|| {
            let taken = fill(&mut waiting, 1);
            (!taken.is_empty()).then(|| taken.iter().map(|submission| submission.bytes).collect())
        })
        .collect();
        assert_eq!(sizes, [vec![100 << 10, 100 << 10], vec![100 << 10], vec![2 << 20], vec![1]]);
    }

    #[test]
    fn what_time_it_is_is_never_later_than_what_is_stamped_next() {
        let at = |followed, holds, wall| {
            let clock = GroupClock { followed, holds, ..GroupClock::default() };
            clock.at(Reading { wall, monotonic: 10 }).0
        };
        assert_eq!(at(None, false, 500), 500, "nothing is known of the group's");
        assert_eq!(at(Some(490), false, 500), 500);
        assert_eq!([at(Some(491), false, 500), at(Some(489), false, 500)], [500, 500], "both are rounded");
        assert_eq!(at(Some(490), false, 9500), 501, "a step that nobody has looked at");
        assert_eq!(at(Some(490), false, -9500), -9500, "nor at this one");
        assert_eq!(at(Some(490), true, 9500), 500);
        assert_eq!(at(Some(490), true, 3), 500);
    }

    #[test]
    fn a_submission_that_holds_keys_is_proposed_in_their_term_or_refused() {
        use futures::FutureExt;

        let keys = Arc::<crate::keys_in_flight::KeysInFlight>::default();
        let hold = |key, term| {
            let mut held = keys.hold(vec![key]).now_or_never().expect("nobody holds it");
            held.term = term;
            let (submission, answered) = submission(1);
            (Submission { held: Some(held), ..submission }, answered)
        };
        let ((earlier, refused), (now, _kept)) = (hold(1, 4), hold(2, 5));
        let mut waiting = VecDeque::from([earlier, now]);
        let taken = fill(&mut waiting, 5);
        assert_eq!(taken.len(), 1);
        let refused = refused.now_or_never().expect("answered at once").expect("answered");
        assert_eq!(refused, Err(ProposeError::NotLeader { leader: None }));
        assert!(keys.hold(vec![1]).now_or_never().is_some(), "certainly not appended: the next may");
        assert!(keys.hold(vec![2]).now_or_never().is_none(), "in flight");
        drop(taken);
        assert!(keys.hold(vec![2]).now_or_never().is_some());
    }

    #[test]
    fn a_withdrawn_submission_is_not_proposed_and_a_taken_one_is_not_withdrawn() {
        let (first, _kept) = submission(1);
        let (second, _also_kept) = submission(1);
        let (withdrawn, taken) = (first.claim.clone(), second.claim.clone());
        assert!(withdrawn.cancel());
        let mut waiting = VecDeque::from([first, second]);
        assert_eq!(fill(&mut waiting, 1).len(), 1);
        assert!(!taken.cancel());
    }
}
