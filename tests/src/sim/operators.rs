//! Clients that do what operators do: make topics, replace members, hand leadership over, and read all of a replica.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use client::admin::Admin;
use protocol::body::SubscriptionGroupConfig;
use protocol::code::ResponseCode;
use protocol::header::CreateTopicRequest;
use protocol::names::dlq_topic;

use super::clients::{Caller, shown};
use super::dead_letters::GIVING_GROUP;
use super::history::{End, Held};
use super::poppers::{POP_GROUP, POP_RETRIES};
use super::workload::{DELAYED_TOPIC, GROUP, QUEUES, TOPIC, place};

impl Caller {
    /// Makes topics and group; returns when that is done.
    pub async fn prepare(mut self) {
        let admin = self.admin();
        let topic = |topic: &str, queues: u32| CreateTopicRequest {
            topic: topic.to_owned(),
            default_topic: Some("TBW102".to_owned()),
            read_queue_nums: queues as i32,
            write_queue_nums: queues as i32,
            perm: 6,
            topic_filter_type: Some("SINGLE_TAG".to_owned()),
            ..CreateTopicRequest::default()
        };
        let group = SubscriptionGroupConfig { group_name: GROUP.to_owned(), ..SubscriptionGroupConfig::default() };
        let givers = SubscriptionGroupConfig::new(GIVING_GROUP);
        let poppers =
            SubscriptionGroupConfig { retry_max_times: POP_RETRIES, ..SubscriptionGroupConfig::new(POP_GROUP) };
        loop {
            let broker = self.broker();
            if admin.put_topic(&broker, &topic(TOPIC, QUEUES)).await.is_ok()
                && admin.put_topic(&broker, &topic(DELAYED_TOPIC, 1)).await.is_ok()
                && admin.put_group(&broker, &group).await.is_ok()
                && (self.work.givers == 0 || admin.put_group(&broker, &givers).await.is_ok())
                && (self.work.poppers == 0 || admin.put_group(&broker, &poppers).await.is_ok())
            {
                return;
            }
            self.try_next();
            self.pause().await;
        }
    }

    /// Puts the member on `to` in the place of `old`, as an operator does: the new one is named, catches up, and gets the
    /// vote of the other in one change. Returns when that is done. A leader that was deposed may have named it, and nobody
    /// else knows: then the answer is to wipe it, which is told through `wipes`.
    pub async fn replace(mut self, to: String, old: u64, wipes: Rc<Cell<bool>>) {
        let admin = self.admin();
        loop {
            let broker = self.broker();
            match admin.add_learner(&broker, &to).await {
                Ok(added) => {
                    if admin.change_voters(&broker, Some(added.node_id), Some(old)).await.is_ok() {
                        return;
                    }
                    lead_elsewhere(&admin, &broker, old).await;
                }
                Err(refused) if refused.to_string().contains("wipe its data directory") => wipes.set(true),
                Err(_) => {}
            }
            self.try_next();
            self.env.clock.sleep(Duration::from_millis(50)).await;
        }
    }

    /// Reads every queue of every replica from where it begins to its end.
    pub async fn audit(self, replicas: Vec<usize>) {
        let admin = self.admin();
        let are_given_up = self.work.history.borrow().given_up.iter().any(|given| matches!(given.end, End::Ok(..)));
        for at in replicas {
            let address = self.work.brokers[at].to_string();
            let mut queues = Vec::new();
            for queue in 0..=QUEUES {
                let (topic, queue_id) = place(queue);
                queues.push(self.all_values(&admin, &address, topic, queue_id).await);
            }
            if are_given_up {
                let dead_letters = self.all_values(&admin, &address, &dlq_topic(GIVING_GROUP), 0).await;
                self.work.history.borrow_mut().dead_letters.insert(address.clone(), dead_letters);
            }
            self.work.history.borrow_mut().replicas.insert(address, queues);
        }
    }

    async fn all_values(&self, admin: &Admin, replica: &str, topic: &str, queue_id: i32) -> Held {
        let (mut held, mut next) = (Held::default(), 0);
        loop {
            let Ok(pulled) = admin.pull(replica, GROUP, topic, queue_id, next, 128).await else {
                self.pause().await;
                continue;
            };
            next = pulled.bounds.next_begin_offset;
            let is_let_go = pulled.code == ResponseCode::PULL_RETRY_IMMEDIATELY && pulled.records.is_empty();
            if pulled.code == ResponseCode::PULL_OFFSET_MOVED || is_let_go {
                // Retention goes on meanwhile; and what was delayed may be let go while its place in the queue is there.
                held = Held { first: next as u64, values: Vec::new() };
                continue;
            }
            for (offset, value) in pulled.records.iter().map(|record| shown(record)) {
                if offset != held.end() {
                    held = Held { first: offset, values: Vec::new() };
                }
                held.values.push(value);
            }
            if !pulled.records.is_empty() && next != held.end() as i64 {
                // The last places are there, and what was delayed and lies there is not any more: the answer to a question for just
                // these says so. If they are left out for another reason, they are asked for in vain.
                next = held.end() as i64;
                continue;
            }
            if next >= pulled.bounds.max_offset {
                return held;
            }
        }
    }

    /// Asks for a new leader, once; counts it if that is done.
    pub async fn transfer(self, from: SocketAddr, to: u64, done: Rc<Cell<u64>>) {
        if self.admin().transfer_leader(&from.to_string(), to).await.is_ok() {
            done.set(done.get() + 1);
        }
    }
}

/// If `old` leads, somebody else is to: who leads cannot leave.
async fn lead_elsewhere(admin: &Admin, broker: &str, old: u64) {
    let Ok(status) = admin.replica_status(broker).await else { return };
    let leads = status.members.iter().find(|member| member.node_id == old && status.leader == Some(old));
    let other = status.members.iter().find(|member| member.node_id != old && member.voter);
    if let (Some(leads), Some(other)) = (leads, other) {
        // Refused or late: the operator looks again.
        let _ = admin.transfer_leader(&leads.client_address, other.node_id).await;
    }
}
