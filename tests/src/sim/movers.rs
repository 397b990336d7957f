//! Clients that take back what was sent or said: delayed messages are recalled, and groups are moved while consumers go on
//! storing offsets.

use std::time::Duration;

use client::admin::protocol::body::SubscriptionGroupConfig;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    CloneGroupOffsetRequest, OffsetResponse, QueryConsumerOffsetRequest, RecallMessageRequest, ResetOffsetRequest,
    UpdateConsumerOffsetRequest,
};

use super::clients::{Caller, Lost};
use super::history::{Delayed, End, Move, Moved, Recall};
use super::workload::{DELAYED_TOPIC, TOPIC, now_ms};

/// Reads behind a move, with offsets stored in between.
const READS: usize = 6;

impl Caller {
    /// Schedules messages, and recalls some before they are due, some when they are, and some never.
    pub async fn recall(mut self) {
        while !self.work.stops.get() {
            let value = self.work.value();
            let delay_ms = 300 + self.rng.below(1500);
            let due_ms = now_ms() + delay_ms;
            let at = {
                let mut history = self.work.history.borrow_mut();
                history.delayed.push(Delayed { value, due_ms, end: End::Info, recall: Recall::NotAsked });
                history.delayed.len() - 1
            };
            let sent = self.sent(DELAYED_TOPIC, 0, value, Some(delay_ms)).await;
            let (end, handle) = match sent {
                Ok(placed) => (End::Ok((), self.work.ends(value)), placed.recall_handle),
                Err(lost) => (lost.end(), None),
            };
            self.work.history.borrow_mut().delayed[at].end = end;
            if let Some(handle) = handle.filter(|_| self.rng.chance(2, 3)) {
                self.env.clock.sleep(Duration::from_millis(self.rng.below(delay_ms + delay_ms / 4))).await;
                self.work.history.borrow_mut().delayed[at].recall = Recall::Unknown;
                let recall = self.recall_one(&handle).await;
                self.work.ends(value);
                self.work.history.borrow_mut().delayed[at].recall = recall;
            }
            self.pause().await;
        }
    }

    /// Asks until it is known; a recall may be repeated.
    async fn recall_one(&mut self, handle: &str) -> Recall {
        let header = RecallMessageRequest {
            topic: DELAYED_TOPIC.to_owned(),
            recall_handle: handle.to_owned(),
            ..RecallMessageRequest::default()
        };
        while !self.work.stops.get() {
            match self.call(RemotingCommand::request_with(RequestCode::RECALL_MESSAGE, &header)).await {
                Ok(_) => return Recall::Done,
                Err(Lost::Told(ResponseCode::ILLEGAL_OPERATION)) => return Recall::TooLate,
                Err(_) => self.pause().await,
            }
        }
        Recall::Unknown
    }

    /// Moves groups, each once, while a consumer that knows nothing of it goes on storing offsets, one way and two ways: what
    /// is read from the answer on is where the group was moved to.
    pub async fn move_groups(mut self) {
        for how in [Moved::Reset, Moved::Cloned].into_iter().cycle() {
            if self.work.stops.get() {
                return;
            }
            // A group of its own each time: a move whose outcome is not known may come about at any later time.
            let group = format!("moved-{}", self.work.value());
            if self.move_group(&group, how).await.is_none() {
                self.pause().await;
            }
        }
    }

    /// `None` if it came to nothing.
    async fn move_group(&mut self, group: &str, how: Moved) -> Option<()> {
        let consumed = 1_000 + self.rng.below(1_000);
        self.found_group(group, consumed).await?;
        let to = match how {
            Moved::Reset => {
                let reset = ResetOffsetRequest {
                    topic: TOPIC.to_owned(),
                    group: group.to_owned(),
                    timestamp: -1,
                    is_force: true,
                    queue_id: Some(0),
                    offset: Some(0),
                };
                let request = RemotingCommand::request_with(RequestCode::INVOKE_BROKER_TO_RESET_OFFSET, &reset);
                self.call(request).await.ok()?;
                0
            }
            Moved::Cloned => {
                let (src_group, to) = (format!("before-{group}"), consumed / 2);
                self.found_group(&src_group, to).await?;
                let clone = CloneGroupOffsetRequest {
                    src_group,
                    dest_group: group.to_owned(),
                    topic: Some(TOPIC.to_owned()),
                    offline: false,
                };
                self.call(RemotingCommand::request_with(RequestCode::CLONE_GROUP_OFFSET, &clone)).await.ok()?;
                to
            }
        };
        for k in 1..=READS as u64 {
            let late = update_of(group, consumed + k);
            match k % 2 {
                0 => drop(self.call(late).await),
                _ => drop(self.another().one_way(&self.broker(), late).await),
            }
            self.pause().await;
            if let Ok(read) = self.offset_of(group).await {
                self.work.ends(read);
                self.work.history.borrow_mut().moves.push(Move { group: group.to_owned(), how, to, read });
            }
        }
        Some(())
    }

    /// A group that has consumed so far.
    async fn found_group(&mut self, group: &str, consumed: u64) -> Option<()> {
        let config = SubscriptionGroupConfig { group_name: group.to_owned(), ..SubscriptionGroupConfig::default() };
        let request = RemotingCommand::request(RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP).with_json(&config);
        self.call(request).await.ok()?;
        self.call(update_of(group, consumed)).await.ok()?;
        Some(())
    }

    async fn offset_of(&mut self, group: &str) -> Result<u64, Lost> {
        let header = QueryConsumerOffsetRequest {
            consumer_group: group.to_owned(),
            topic: TOPIC.to_owned(),
            ..QueryConsumerOffsetRequest::default()
        };
        let answer = self.call(RemotingCommand::request_with(RequestCode::QUERY_CONSUMER_OFFSET, &header)).await?;
        answer.header::<OffsetResponse>().map(|answer| answer.offset as u64).map_err(|_| Lost::Unknown)
    }
}

fn update_of(group: &str, offset: u64) -> RemotingCommand {
    let header = UpdateConsumerOffsetRequest {
        consumer_group: group.to_owned(),
        topic: TOPIC.to_owned(),
        queue_id: 0,
        commit_offset: offset as i64,
        broker_name: None,
    };
    RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &header)
}
