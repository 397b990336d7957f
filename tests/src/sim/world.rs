//! The simulated world: hosts on turmoil's network, and what can be done to them between two ticks.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use broker::broker::BrokerGroup;
use env::disk::simulated::Latency;
use env::net::simulated::break_connections;
use env::{Rng, witness};
use nameserver::{NameServer, NameServerConfig};
use raft_store::group::Role;

use super::clients::Caller;
use super::host::{self, Host, NAME_SERVER_PORT, Process};
use super::invariants::Invariants;
use super::plan::Plan;
use super::workload::Workload;

/// Longer than any run; turmoil ends one that takes longer.
const LONGEST: Duration = Duration::from_secs(3600);

/// Segments and connection requests that a host holds for programs that do not take them.
const TCP_CAPACITY: usize = 4096;

/// A tick of turmoil: whatever happens on one host within it happens before the others' tick.
pub const TICK_MS: u64 = 1;

/// The name of the NameServer's host.
const NAME_SERVER: &str = "nameserver";

/// See the top.
pub struct World {
    sim: turmoil::Sim<'static>,
    /// Hosts of brokers: the founders, and one more that stands by.
    pub hosts: Vec<Rc<Host>>,
    /// What the clients share.
    pub work: Rc<Workload>,
    /// What must hold.
    pub invariants: Rc<Invariants>,
    clients: Vec<String>,
    /// When to start a host's next process.
    restarts: Vec<Option<u64>>,
    /// Hosts without power answer nothing, and connections to them are noticed late.
    dark: Vec<bool>,
    /// Hosts that carry no member of the group, and no process.
    stand_by: Vec<bool>,
    /// What a disk takes that is well.
    disk: Latency,
    seed: u64,
}

impl World {
    /// A NameServer, the plan's brokers and one more; the brokers start, nothing else does.
    pub fn new(plan: &Plan) -> World {
        let mut builder = turmoil::Builder::new();
        builder
            .rng_seed(plan.seed)
            .simulation_duration(LONGEST)
            .tick_duration(Duration::from_millis(TICK_MS))
            .min_message_latency(Duration::ZERO)
            .max_message_latency(plan.latency)
            .tcp_capacity(TCP_CAPACITY);
        let mut sim = builder.build();
        let name_server = sim.lookup(NAME_SERVER);
        sim.host(NAME_SERVER, move || serve_names(name_server_seed(name_server)));
        let hosts: Vec<Rc<Host>> = (0..=plan.brokers)
            .map(|at| {
                let name = format!("broker-{at}");
                let ip = sim.lookup(name.as_str());
                Rc::new(Host::new(&name, ip, Rng::seeded(plan.seed ^ (at as u64 + 1) << 40).u64()))
            })
            .collect();
        let founders: Vec<String> = hosts[..plan.brokers].iter().map(|host| host.peer_address()).collect();
        let invariants = Rc::<Invariants>::default();
        let brokers = hosts.iter().map(|host| host.client_address()).collect();
        let work = Rc::new(Workload::new(brokers, name_server, plan));
        let mut world = World {
            sim,
            restarts: vec![None; hosts.len()],
            dark: vec![false; hosts.len()],
            stand_by: vec![false; hosts.len()],
            hosts,
            work,
            invariants,
            clients: Vec::new(),
            disk: plan.disk,
            seed: plan.seed,
        };
        for (at, host) in world.hosts.clone().into_iter().enumerate() {
            let (founders, invariants) = (founders.clone(), world.invariants.clone());
            let settings = host::Settings::of(plan);
            let name = host.name.clone();
            host.joins.set(at == plan.brokers);
            host.disk.set_latency(plan.disk);
            host.begin_process();
            world.sim.host(name, move || {
                let config = host::config(&settings, &host, &founders, name_server);
                host.clone().run(config, invariants.clone())
            });
        }
        world.dismiss(plan.brokers);
        world
    }

    /// Simulated time.
    pub fn now_ms(&self) -> u64 {
        self.sim.elapsed().as_millis() as u64
    }

    /// One tick: everything moves, then what is due is restarted.
    pub fn step(&mut self) {
        self.sim.step().expect("no host's software ends");
        let now = self.now_ms();
        for at in 0..self.hosts.len() {
            if self.restarts[at].is_some_and(|due| due <= now) {
                self.restart(at);
            }
        }
    }

    /// Looks at every replica that runs.
    pub fn look(&self) {
        for host in &self.hosts {
            if let Some(group) = host.group() {
                self.invariants.look(&host.name, host.processes(), &group);
            }
        }
        if let Some(group) = self.newest_leader()
            && let Some(what) = self.work.lacks_acknowledged(&group)
        {
            self.invariants.violated("who leads has all that was acknowledged", what);
        }
    }

    /// Who leads and serves in the newest term. Others may not know yet that they do not lead any more.
    fn newest_leader(&self) -> Option<Arc<BrokerGroup>> {
        let newest = self.invariants.newest_term();
        self.hosts
            .iter()
            .filter_map(|host| host.group())
            .find(|group| matches!(*group.raft().role().borrow(), Role::Leader { term, ready: true } if term >= newest))
    }

    /// Starts a client that does `what`; resolved by turmoil's host of that name.
    pub fn client<F>(&mut self, name: &str, what: impl FnOnce(Caller) -> F + 'static) -> String
    where
        F: Future<Output = ()> + 'static,
    {
        let name = format!("{name}-{}", self.clients.len());
        let (work, seed) = (self.work.clone(), Rng::seeded(self.seed ^ (self.clients.len() as u64 + 1) << 20).u64());
        self.sim.client(name.as_str(), async move {
            what(Caller::new(&work, seed)).await;
            Ok(())
        });
        self.clients.push(name.clone());
        name
    }

    /// Whether a client has done what it was to do.
    pub fn is_done(&mut self, client: &str) -> bool {
        !self.sim.is_host_running(client)
    }

    /// Every client.
    pub fn clients(&self) -> &[String] {
        &self.clients
    }

    /// The host whose replica leads and serves.
    pub fn leader(&self) -> Option<usize> {
        self.hosts.iter().position(|host| host.group().is_some_and(|group| group.leads()))
    }

    /// Hosts whose process runs.
    pub fn running(&self) -> Vec<usize> {
        (0..self.hosts.len()).filter(|at| self.hosts[*at].process() == Process::Running).collect()
    }

    /// Hosts that carry a member of the group, whether or not its process runs.
    pub fn members(&self) -> impl Iterator<Item = usize> {
        (0..self.hosts.len()).filter(|at| !self.stand_by[*at])
    }

    /// Whether a replica holds what it has acknowledged.
    pub fn is_whole(&self, at: usize) -> bool {
        self.hosts[at].group().is_some_and(|group| !group.raft().status().on_probation)
    }

    fn end_process(&mut self, at: usize) {
        self.hosts[at].forget_process();
        self.sim.crash(self.hosts[at].name.as_str());
    }

    /// The process on a host ends as by SIGKILL; the kernel closes its connections.
    pub fn kill(&mut self, at: usize) {
        self.end_process(at);
        self.hosts[at].disk.process_kill();
        self.restarts[at] = None;
    }

    /// The process ends, and the host stands by.
    pub fn dismiss(&mut self, at: usize) {
        self.kill(at);
        self.stand_by[at] = true;
    }

    /// A host that stands by, if there is one.
    pub fn standing_by(&self) -> Option<usize> {
        self.stand_by.iter().position(|stands_by| *stands_by)
    }

    /// Starts a new member, on an empty disk, on a host that stands by.
    pub fn call(&mut self, at: usize) {
        assert!(self.stand_by[at], "{} has a member", self.hosts[at].name);
        self.stand_by[at] = false;
        self.renew_disk(at);
        self.hosts[at].joins.set(true);
        self.restart_at(at, self.now_ms() + 1);
    }

    /// Power fails: what was not synced survives by chance, and nobody is told. Whether some units survived and some did
    /// not.
    pub fn crash(&mut self, at: usize, rng: &Rng) -> bool {
        self.darken(at);
        let kept = self.hosts[at].disk.crash(rng);
        kept.contains(&true) && kept.contains(&false)
    }

    /// Power has failed as the disk already knows.
    pub fn darken(&mut self, at: usize) {
        self.dark[at] = true;
        let others = self.others(at);
        for other in others {
            self.sim.partition(self.hosts[at].name.as_str(), other.as_str());
        }
        self.end_process(at);
        self.restarts[at] = None;
    }

    fn others(&self, at: usize) -> Vec<String> {
        let brokers = self.hosts.iter().map(|host| host.name.clone());
        let all = brokers.chain(self.clients.iter().cloned()).chain([NAME_SERVER.to_owned()]);
        all.filter(|name| *name != self.hosts[at].name).collect()
    }

    /// Starts the next process on a host at `due_ms`.
    pub fn restart_at(&mut self, at: usize, due_ms: u64) {
        self.restarts[at] = Some(due_ms);
    }

    /// Whether the next process on a host is still to start.
    pub fn restarts(&self, at: usize) -> bool {
        self.restarts[at].is_some()
    }

    fn restart(&mut self, at: usize) {
        self.restarts[at] = None;
        if std::mem::take(&mut self.dark[at]) {
            for other in self.others(at) {
                if !self.is_dark(&other) {
                    self.heal_link(&self.hosts[at].name.clone(), &other);
                }
            }
        }
        self.hosts[at].begin_process();
        self.sim.bounce(self.hosts[at].name.as_str());
    }

    fn is_dark(&self, name: &str) -> bool {
        self.hosts.iter().zip(&self.dark).any(|(host, dark)| *dark && host.name == name)
    }

    /// Packets from `a` to `b` are lost, and the other way round unless `one_way`.
    pub fn cut(&self, a: usize, b: usize, one_way: bool) {
        let (a, b) = (self.hosts[a].name.as_str(), self.hosts[b].name.as_str());
        if one_way { self.sim.partition_oneway(a, b) } else { self.sim.partition(a, b) }
    }

    /// Packets between the two are held back.
    pub fn hold(&self, a: usize, b: usize) {
        self.sim.hold(self.hosts[a].name.as_str(), self.hosts[b].name.as_str());
    }

    /// Held packets arrive, all at once.
    pub fn release(&self, a: usize, b: usize) {
        if !self.dark[a] && !self.dark[b] {
            self.sim.release(self.hosts[a].name.as_str(), self.hosts[b].name.as_str());
        }
    }

    /// Packets pass again; connections that lost some are broken.
    pub fn heal(&self, a: usize, b: usize) {
        if !self.dark[a] && !self.dark[b] {
            self.heal_link(&self.hosts[a].name, &self.hosts[b].name);
        }
    }

    fn heal_link(&self, a: &str, b: &str) {
        self.sim.repair(a, b);
        break_connections(self.sim.lookup(a), self.sim.lookup(b));
    }

    /// An empty disk without any fault takes the place of the one that is there.
    pub fn renew_disk(&self, at: usize) {
        self.hosts[at].disk.wipe();
        self.hosts[at].disk.heal();
        self.speed_up(at);
    }

    /// A disk is as fast as it was.
    pub fn speed_up(&self, at: usize) {
        self.hosts[at].disk.set_latency(self.disk);
    }

    /// How long packets between the two take at most.
    pub fn set_latency(&self, a: usize, b: usize, latency: Duration) {
        self.sim.set_link_max_message_latency(self.hosts[a].name.as_str(), self.hosts[b].name.as_str(), latency);
    }

    /// Makes every link and disk whole, and starts whoever is down.
    pub fn heal_all(&mut self, latency: Duration) {
        let now = self.now_ms();
        for a in 0..self.hosts.len() {
            self.hosts[a].disk.heal();
            self.hosts[a].disk.set_latency(self.disk);
            self.hosts[a].drift_clock(0);
            for b in 0..a {
                self.release(a, b);
                self.heal(a, b);
                self.set_latency(a, b, latency);
            }
            let is_down = self.hosts[a].process() == Process::Down;
            if is_down && !self.stand_by[a] && self.restarts[a].is_none() {
                self.restart_at(a, now + 1);
            }
        }
    }

    /// The hash of all that was seen, and of how much.
    pub fn witness(&self) -> (u64, u64) {
        witness::so_far()
    }
}

/// The NameServer's own stream of random numbers.
fn name_server_seed(ip: IpAddr) -> u64 {
    match ip {
        IpAddr::V4(ip) => u64::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip) as u64,
    }
}

async fn serve_names(seed: u64) -> turmoil::Result {
    let env = host::environment(seed, env::disk::simulated::SimDisk::new(Rng::seeded(seed)));
    let listen = std::net::SocketAddr::from(([0, 0, 0, 0], NAME_SERVER_PORT));
    let config = NameServerConfig { listen, allow_unauthenticated: true, ..NameServerConfig::default() };
    let _serving = NameServer::start(env, config).await?;
    std::future::pending().await
}

/// A disk on which every call takes long.
pub fn slow(rng: &Rng) -> Latency {
    let ms = |bound: u64| Duration::from_millis(rng.below(bound));
    Latency { read: ms(5), write: ms(20), sync: Duration::from_millis(20 + rng.below(400)) }
}
