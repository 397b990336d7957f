//! A broker's host: its disk, its wall clock, and the process that runs on it, one after the other.
//!
//! The process is the product's broker on a simulated disk, clock and network. It ends by a fault, or by itself when
//! going on could lose something; who runs the simulation starts the next one, as a supervisor does.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use broker::broker::{Broker, BrokerGroup};
use broker::config::{
    BrokerConfig, Flush, GroupConfig, Limits, MessagePolicy, RaftTiming, Retention, TransactionPolicy,
};
use env::disk::simulated::{Met, SimDisk};
use env::{Clock, Env, Executor, Net, Rng};
use tokio::runtime::Handle;

use super::invariants::Invariants;
use super::plan::Plan;

/// The port for clients.
pub const CLIENT_PORT: u16 = 10911;
/// The port for the other replicas.
pub const PEER_PORT: u16 = 10912;
/// The NameServer's port.
pub const NAME_SERVER_PORT: u16 = 9876;
/// The broker group.
pub const BROKER_NAME: &str = "broker-a";
/// Where a replica's data lies.
pub const DATA: &str = "/data";

/// The smallest that a broker takes.
const SEGMENT_BYTES: u64 = 16 << 20;

/// What the process on a host is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Process {
    /// There is none.
    Down,
    /// It starts, which may mean waiting for others.
    Starting,
    /// It is open.
    Running,
    /// It ended by itself, and says why.
    Ended(String),
}

/// One host. Lives as long as the simulation; its processes do not.
pub struct Host {
    /// Its name in the simulated network.
    pub name: String,
    /// Its address.
    pub ip: IpAddr,
    /// Its disk.
    pub disk: SimDisk,
    seed: u64,
    /// Processes so far.
    processes: Cell<u64>,
    /// How far its wall clock is off.
    clock_off_ms: Cell<i64>,
    clock: RefCell<Option<Clock>>,
    /// The next process joins a group that exists.
    pub joins: Cell<bool>,
    process: RefCell<Process>,
    group: RefCell<Option<Arc<BrokerGroup>>>,
    /// What calls of the disk had met when the process had opened.
    met_when_open: Cell<Met>,
    /// The runtime of its process, in whose time that lives.
    runtime: RefCell<Option<Handle>>,
}

impl Host {
    /// A host with an empty disk and no process.
    pub fn new(name: &str, ip: IpAddr, seed: u64) -> Host {
        Host {
            name: name.to_owned(),
            ip,
            disk: SimDisk::new(Rng::seeded(seed)),
            seed,
            processes: Cell::new(0),
            clock_off_ms: Cell::new(0),
            clock: RefCell::default(),
            joins: Cell::new(false),
            process: RefCell::new(Process::Down),
            group: RefCell::default(),
            met_when_open: Cell::default(),
            runtime: RefCell::default(),
        }
    }

    /// Where clients connect.
    pub fn client_address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, CLIENT_PORT)
    }

    /// Where the other replicas connect.
    pub fn peer_address(&self) -> String {
        SocketAddr::new(self.ip, PEER_PORT).to_string()
    }

    /// What the process on it is.
    pub fn process(&self) -> Process {
        self.process.borrow().clone()
    }

    /// The replica, while its process runs.
    pub fn group(&self) -> Option<Arc<BrokerGroup>> {
        self.group.borrow().clone()
    }

    /// How many processes there were.
    pub fn processes(&self) -> u64 {
        self.processes.get()
    }

    /// What calls of the disk had met when the process that runs had opened.
    pub fn met_when_open(&self) -> Met {
        self.met_when_open.get()
    }

    /// Whether the caller runs in this host's process.
    pub fn is_current(&self) -> bool {
        let current = Handle::try_current().ok().map(|runtime| runtime.id());
        current.is_some() && current == self.runtime.borrow().as_ref().map(Handle::id)
    }

    /// Forgets the process: to be called before its runtime is dropped.
    pub fn forget_process(&self) {
        self.group.take();
        self.clock.take();
        self.runtime.take();
        *self.process.borrow_mut() = Process::Down;
    }

    /// A process is about to begin.
    pub fn begin_process(&self) {
        *self.process.borrow_mut() = Process::Starting;
    }

    /// Moves the wall clock, now and for later processes.
    pub fn step_clock(&self, by_ms: i64) {
        self.clock_off_ms.set(self.clock_off_ms.get() + by_ms);
        if let Some(clock) = &*self.clock.borrow() {
            clock.step_wall(by_ms);
        }
    }

    /// From now on, and until the process ends, the wall clock gains `ppm` microseconds a second.
    pub fn drift_clock(&self, ppm: i64) {
        if let (Some(clock), Some(runtime)) = (&*self.clock.borrow(), &*self.runtime.borrow()) {
            // Outside of it the clock would read the machine's time.
            let _entered = runtime.enter();
            clock.drift_wall(ppm);
        }
    }

    /// How far the wall clock was moved.
    pub fn clock_off_ms(&self) -> i64 {
        self.clock_off_ms.get()
    }

    /// Runs a process until somebody ends it.
    pub async fn run(self: Rc<Host>, config: BrokerConfig, invariants: Rc<Invariants>) -> turmoil::Result {
        let number = self.processes.get() + 1;
        self.processes.set(number);
        *self.runtime.borrow_mut() = Some(Handle::current());
        let env = environment(self.seed ^ number << 32, self.disk.mount());
        env.clock.step_wall(self.clock_off_ms.get());
        *self.clock.borrow_mut() = Some(env.clock.clone());
        let ended = match Broker::start(env, config).await {
            Err(error) => error.to_string(),
            Ok(broker) => {
                let group = broker.groups()[0].clone();
                *self.group.borrow_mut() = Some(group.clone());
                self.met_when_open.set(self.disk.met());
                *self.process.borrow_mut() = Process::Running;
                tokio::task::spawn_local(invariants.watch(self.name.clone(), group));
                broker.failed().await
            }
        };
        tracing::info!(host = self.name, ended, "the process ended by itself");
        *self.process.borrow_mut() = Process::Ended(ended);
        // A real process would be gone; this one's last packets leave with the host's next end.
        std::future::pending().await
    }
}

/// What a simulated program is given; its wall clock shows simulated time.
pub fn environment(seed: u64, disk: SimDisk) -> Env {
    let clock = Clock::simulated();
    clock.step_wall(turmoil::sim_elapsed().map_or(0, |elapsed| elapsed.as_millis() as i64));
    Env { clock, rng: Rng::seeded(seed), disk: Arc::new(disk), net: Net::turmoil(), executor: Executor::Tasks }
}

/// What all brokers of a run are told.
#[derive(Clone, Debug)]
pub struct Settings {
    raft: RaftTiming,
    flush: Flush,
    retention: Retention,
    lease: Duration,
    window: Duration,
}

impl Settings {
    /// As the plan says.
    pub fn of(plan: &Plan) -> Settings {
        let retention = match plan.keeps {
            None => Retention::default(),
            Some(kept) => Retention {
                bytes: Some(kept.bytes),
                // A checkpoint every tenth of it. No hour is that at which it counts.
                time: 10 * kept.checkpoints,
                hours: Vec::new(),
                look_interval: Duration::from_millis(100),
                ..Retention::default()
            },
        };
        Settings {
            raft: RaftTiming { heartbeat: plan.heartbeat, election: plan.election },
            flush: plan.flush,
            retention,
            lease: plan.lease,
            // As long nothing is let go.
            window: if plan.lets_go() {
                Duration::from_millis(100)
            } else {
                MessagePolicy::default().idempotent_window
            },
        }
    }
}

/// What the broker on `host` is told.
pub fn config(settings: &Settings, host: &Host, founders: &[String], name_server: IpAddr) -> BrokerConfig {
    let any = |port| SocketAddr::from(([0, 0, 0, 0], port));
    let group = GroupConfig {
        broker_name: BROKER_NAME.to_owned(),
        data_dir: DATA.into(),
        listen: any(CLIENT_PORT),
        vip: false,
        advertised_address: host.client_address(),
        peer_listen: any(PEER_PORT),
        peer_address: host.peer_address(),
        founders: founders.to_vec(),
        join: host.joins.get(),
        flush: settings.flush,
        segment_bytes: SEGMENT_BYTES,
        catch_up_bytes_per_s: 0,
        scrub_bytes_per_s: 4 << 20,
        messages: MessagePolicy {
            delay_levels: vec![Duration::from_secs(1)],
            queue_lock: settings.lease,
            idempotent_window: settings.window,
            transactions: TransactionPolicy {
                timeout: Duration::from_millis(300),
                check_interval: Duration::from_millis(300),
                // A run is short: whoever is asked knows in the end.
                check_max: u32::MAX,
            },
            ..MessagePolicy::default()
        },
        retention: settings.retention.clone(),
        limits: Limits::default(),
        raft: settings.raft,
    };
    BrokerConfig {
        cluster: "simulated".to_owned(),
        name_servers: vec![SocketAddr::new(name_server, NAME_SERVER_PORT).to_string()],
        http: None,
        allow_unauthenticated: true,
        groups: vec![group],
    }
}
