//! What the clients of a run share: what they ask and are answered, whom they may ask, and when to end.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};

use broker::broker::BrokerGroup;
use env::witness::{self, Seen};
use raft_store::position::QueueId;

use super::history::{Append, Copies, End, History, Moment};
use super::plan::Plan;

/// Appends and pulls go here.
pub const TOPIC: &str = "appends";
/// Its queues.
pub const QUEUES: u32 = 3;
/// Delayed messages and those of transactions go here, to one queue: what becomes visible after it was stored.
pub const DELAYED_TOPIC: &str = "delayed";
/// Whose offsets are the registers, and whose locks are taken.
pub const GROUP: &str = "readers";

/// What the clients share.
#[derive(Debug)]
pub struct Workload {
    /// What they ask and are answered.
    pub history: RefCell<History>,
    /// Every host that may serve.
    pub brokers: Vec<SocketAddr>,
    /// The NameServer.
    pub name_server: IpAddr,
    /// Longest pause between two requests.
    pub pause_ms: u64,
    /// How long a queue lock holds.
    pub lease_ms: u64,
    /// What brokers make of a message that is sent again.
    pub copies: Copies,
    /// How many clients pop.
    pub poppers: usize,
    /// How many clients give messages up.
    pub givers: usize,
    /// Set to let the clients end.
    pub stops: Cell<bool>,
    /// Set when no transaction waits any more: nobody needs to be there to be asked.
    pub is_settled: Cell<bool>,
    next_value: Cell<u64>,
    /// Of each queue, behind the last append that was acknowledged.
    acknowledged_ends: RefCell<Vec<u64>>,
}

impl Workload {
    /// A workload that nobody has begun.
    pub fn new(brokers: Vec<SocketAddr>, name_server: IpAddr, plan: &Plan) -> Workload {
        let (pause_ms, lease_ms) = (plan.pause_ms, plan.lease.as_millis() as u64);
        Workload {
            history: RefCell::default(),
            brokers,
            name_server,
            pause_ms,
            lease_ms,
            // Where retention lets go what was sent a moment ago, nobody remembers it.
            copies: if plan.lets_go() { Copies::Any } else { Copies::Recognised },
            poppers: plan.poppers,
            givers: plan.givers,
            stops: Cell::new(false),
            is_settled: Cell::new(false),
            next_value: Cell::new(1),
            acknowledged_ends: RefCell::new(vec![0; QUEUES as usize]),
        }
    }

    /// A value that was never given before; later ones are larger.
    pub fn value(&self) -> u64 {
        let value = self.next_value.get();
        self.next_value.set(value + 1);
        value
    }

    /// Something is asked for.
    pub fn invoke<T>(&self, add: impl FnOnce(&mut History, u64) -> T) -> T {
        let mut history = self.history.borrow_mut();
        let moment = history.moment();
        add(&mut history, moment)
    }

    /// An append that was asked for.
    pub fn append(&self, queue: u32, value: u64, copies: Copies) -> usize {
        self.invoke(|history, invoked| {
            history.appends.push(Append { queue, value, copies, invoked, end: End::Info });
            history.appends.len() - 1
        })
    }

    /// It was acknowledged.
    pub fn appended(&self, at: usize, offset: u64) {
        let ended = self.ends(offset);
        let appends = &mut self.history.borrow_mut().appends;
        let mut append = appends[at].clone();
        append.end = End::Ok(offset, ended);
        let end = &mut self.acknowledged_ends.borrow_mut()[append.queue as usize];
        match appends[at].end {
            // Its copies have answers of their own.
            End::Ok(..) => appends.push(append),
            End::Fail | End::Info => appends[at] = append,
        }
        *end = (*end).max(offset + 1);
    }

    /// A queue that holds less than was acknowledged on this replica, which leads and serves.
    pub fn lacks_acknowledged(&self, group: &BrokerGroup) -> Option<String> {
        let reader = group.raft().reader();
        let topic = reader.tables().topics().get(TOPIC).map(|topic| topic.id());
        (0..).zip(&*self.acknowledged_ends.borrow()).find_map(|(queue, end)| {
            let held = topic.and_then(|topic| reader.queue(QueueId { topic, queue }));
            let held = held.map_or(0, |held| held.bounds().end.0);
            (held < *end).then(|| format!("queue {queue} ends at {held}, offset {} was acknowledged", end - 1))
        })
    }

    /// The moment at which an operation ends, which the witness sees.
    pub fn ends(&self, result: u64) -> Moment {
        let moment = self.history.borrow_mut().moment();
        witness::note(Seen::Event, moment, &result.to_le_bytes());
        moment
    }
}

/// Topic and queue of one of a replica's queues; the last is that of the delayed messages.
pub fn place(queue: u32) -> (&'static str, i32) {
    if queue < QUEUES { (TOPIC, queue as i32) } else { (DELAYED_TOPIC, 0) }
}

/// Simulated time, by no host's clock.
pub fn now_ms() -> u64 {
    turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as u64)
}
