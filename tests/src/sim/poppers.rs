//! Clients that pop: they acknowledge what they get, give it back, change how long they have it, or forget it.
//!
//! Everything goes over raw connections, each request once, so that it is known what was said. In the end one of them pops
//! until nothing is left: what nobody has acknowledged must come to it.

use std::time::Duration;

use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    AckMessageRequest, ChangeInvisibleTimeRequest, ChangeInvisibleTimeResponse, PopMessageRequest, PopMessageResponse,
};
use protocol::record::{RecordView, split};

use super::clients::{Caller, value_of};
use super::history::{Ack, End, Lease};
use super::workload::TOPIC;

/// Who pops.
pub const POP_GROUP: &str = "poppers";

/// No message is given up in a run: what is left in the end must come to whoever pops then.
pub const POP_RETRIES: i32 = 1_000_000;

/// Pops in a row that find nothing, a lease apart, after which nothing is left.
const IN_VAIN: u32 = 4;

impl Caller {
    /// Pops until the others are told to end.
    pub async fn pop(mut self) {
        while !self.work.stops.get() {
            for at in self.take().await {
                self.pause().await;
                match self.rng.below(8) {
                    // Forgotten: it crashed.
                    0 => {}
                    1 => {
                        self.change(at, 0).await;
                    }
                    2 => {
                        if let Some(renewed) = self.change(at, self.work.lease_ms).await {
                            self.acknowledge(renewed).await;
                        }
                    }
                    3 => {
                        // Too late, most of the time.
                        self.env.clock.sleep(Duration::from_millis(self.work.lease_ms + self.rng.below(500))).await;
                        self.acknowledge(at).await;
                    }
                    4 => {
                        self.acknowledge(at).await;
                        self.acknowledge(at).await;
                    }
                    _ => self.acknowledge(at).await,
                }
            }
            self.pause().await;
        }
    }

    /// Pops until nothing is left.
    pub async fn drain(mut self) {
        let mut in_vain = 0;
        while in_vain < IN_VAIN {
            let taken = self.take().await;
            if taken.is_empty() {
                in_vain += 1;
                self.env.clock.sleep(Duration::from_millis(self.work.lease_ms)).await;
            } else {
                in_vain = 0;
            }
            for at in taken {
                self.acknowledge(at).await;
            }
        }
        self.work.history.borrow_mut().is_drained = true;
    }

    /// Pops once; places of the leases in the history.
    async fn take(&mut self) -> Vec<usize> {
        let lease_ms = self.work.lease_ms;
        let header = PopMessageRequest {
            consumer_group: POP_GROUP.to_owned(),
            topic: TOPIC.to_owned(),
            queue_id: -1,
            max_msg_nums: 1 + self.rng.below(32) as i32,
            invisible_time: lease_ms as i64,
            poll_time: self.rng.below(200) as i64,
            born_time: self.env.clock.wall_ms(),
            ..PopMessageRequest::default()
        };
        let invoked = self.work.invoke(|_, invoked| invoked);
        let Ok(answer) = self.call(RemotingCommand::request_with(RequestCode::POP_MESSAGE, &header)).await else {
            return Vec::new();
        };
        let header: PopMessageResponse = answer.header().expect("a broker sends whole headers");
        let pop_ms = header.pop_time.expect("a pop that got something tells when");
        let mut taken = Vec::new();
        for record in split(&answer.body) {
            let record = record.expect("a broker sends whole records");
            let view = RecordView::parse(&record).expect("a broker sends whole records");
            let (queue, offset, value) = (view.queue_id() as u32, view.queue_offset() as u64, value_of(view.body()));
            let answered = self.work.ends(value);
            let ends_ms = pop_ms + lease_ms as i64;
            let lease = Lease { queue, offset, value, pop_ms, ends_ms, invoked, answered, acks: Vec::new() };
            let mut history = self.work.history.borrow_mut();
            history.leases.push(lease);
            taken.push(history.leases.len() - 1);
        }
        taken
    }

    async fn acknowledge(&mut self, at: usize) {
        let (queue, offset, extra_info) = self.named(at);
        let header = AckMessageRequest {
            consumer_group: POP_GROUP.to_owned(),
            topic: TOPIC.to_owned(),
            queue_id: queue as i32,
            extra_info,
            offset: offset as i64,
            ..AckMessageRequest::default()
        };
        let invoked = self.work.invoke(|_, invoked| invoked);
        let which = {
            let acks = &mut self.work.history.borrow_mut().leases[at].acks;
            acks.push(Ack { invoked, end: End::Info });
            acks.len() - 1
        };
        let end = match self.call(RemotingCommand::request_with(RequestCode::ACK_MESSAGE, &header)).await {
            Ok(_) => End::Ok((), self.work.ends(offset)),
            Err(lost) => lost.end(),
        };
        self.work.history.borrow_mut().leases[at].acks[which].end = end;
    }

    /// Lets a lease end at another time; the place in the history of the lease that it is then.
    async fn change(&mut self, at: usize, lease_ms: u64) -> Option<usize> {
        let (queue, offset, extra_info) = self.named(at);
        let header = ChangeInvisibleTimeRequest {
            consumer_group: POP_GROUP.to_owned(),
            topic: TOPIC.to_owned(),
            queue_id: queue as i32,
            extra_info,
            offset: offset as i64,
            invisible_time: lease_ms as i64,
            ..ChangeInvisibleTimeRequest::default()
        };
        let invoked = self.work.invoke(|_, invoked| invoked);
        // Unless somebody says more, it may end at any time from now on.
        let before = {
            let lease = &mut self.work.history.borrow_mut().leases[at];
            std::mem::replace(&mut lease.ends_ms, lease.pop_ms)
        };
        let answer = self.call(RemotingCommand::request_with(RequestCode::CHANGE_MESSAGE_INVISIBLETIME, &header)).await;
        let answer: ChangeInvisibleTimeResponse = answer.ok()?.header().expect("a broker sends whole headers");
        let answered = self.work.ends(offset);
        let mut history = self.work.history.borrow_mut();
        let old = &mut history.leases[at];
        old.ends_ms = before.min(answer.pop_time);
        let (pop_ms, ends_ms) = (answer.pop_time, answer.pop_time + lease_ms as i64);
        let renewed = Lease { pop_ms, ends_ms, invoked, answered, acks: Vec::new(), ..old.clone() };
        history.leases.push(renewed);
        Some(history.leases.len() - 1)
    }

    /// Queue, offset and what the lease is known by.
    fn named(&self, at: usize) -> (u32, u64, String) {
        let history = self.work.history.borrow();
        let Lease { queue, offset, pop_ms, ends_ms, .. } = &history.leases[at];
        (*queue, *offset, format!("{offset} {pop_ms} {} 0 0 b {queue} {offset}", ends_ms - pop_ms))
    }
}
