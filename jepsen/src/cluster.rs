//! A NameServer and three brokers as processes of their own: on loopback, or each on a host of its own.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use env::net::free_loopback;

use crate::clock;

/// A program is given this long to do what it should do within a second or two.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// SIGKILL.
pub(crate) const KILLED: i32 = 9;

/// Between the end of a supervised broker and its next start, as in `config/systemd/`.
const RESTART: Duration = Duration::from_secs(2);

/// Names the present run of the machine, for whoever asks the kernel.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// When a replica acknowledges.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Flush {
    /// SYNC_FLUSH.
    #[default]
    Sync,
    /// ASYNC_FLUSH.
    Async,
}

/// How brokers are set up, beside what is the same in every run.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// When a replica acknowledges.
    pub flush: Flush,
    /// Each broker has a machine of its own, which can go down and come back: another boot.
    pub boots: bool,
    /// Size of a CommitLog file.
    pub segment_mib: u32,
    /// How fast full CommitLog files are read through.
    pub scrub_mib_per_s: u32,
    /// Each broker has a wall clock of its own, which can be set: it is preloaded with libfaketime.
    pub clocks: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings { flush: Flush::Sync, boots: false, segment_mib: 64, scrub_mib_per_s: 4, clocks: false }
    }
}

/// Between two flushes in a group that flushes by a timer.
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(500);

/// A broker that has ended by itself.
#[derive(Clone, Debug)]
pub struct Ended {
    /// How.
    pub status: ExitStatus,
    /// The reason that it gave, its last word on standard error.
    pub said: Option<String>,
}

/// Where one broker can be reached.
#[derive(Clone, Debug)]
pub struct BrokerAddresses {
    /// Clients.
    pub client: SocketAddr,
    /// Metrics and health.
    pub http: SocketAddr,
    /// The other brokers.
    pub peer: SocketAddr,
}

/// Where a process of the cluster runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Its address.
    pub address: Ipv4Addr,
    /// Put before a program to start it there.
    pub enter: Vec<String>,
}

impl Host {
    /// This machine, which all processes share.
    pub const LOOPBACK: Host = Host { address: Ipv4Addr::LOCALHOST, enter: Vec::new() };

    /// A broker alone on its host listens where brokers commonly do; on loopback, where it is free.
    fn broker_addresses(&self) -> io::Result<BrokerAddresses> {
        let on = |port| if *self == Host::LOOPBACK { free_loopback() } else { Ok((self.address, port).into()) };
        Ok(BrokerAddresses { client: on(10_911)?, http: on(5557)?, peer: on(10_912)? })
    }

    fn name_server_address(&self) -> io::Result<SocketAddr> {
        if *self == Host::LOOPBACK { free_loopback() } else { Ok((self.address, 9876).into()) }
    }

    fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut words = self.enter.iter().map(OsStr::new).chain([program.as_ref()]);
        let mut command = Command::new(words.next().expect("the program at least"));
        command.args(words);
        command
    }
}

/// The hosts of a cluster.
#[derive(Clone, Debug)]
pub struct Hosts {
    /// Of the brokers.
    pub brokers: [Host; 3],
    /// Of the NameServer. The harness must be there too.
    pub name_server: Host,
}

impl Hosts {
    /// All on this machine.
    pub const LOOPBACK: Hosts = Hosts { brokers: [Host::LOOPBACK; 3], name_server: Host::LOOPBACK };
}

/// A NameServer and three brokers of one group.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    name_server: SocketAddr,
    name_server_process: Option<Child>,
    settings: Settings,
    async_auto_recover: bool,
    join: bool,
    founders: String,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    host: Host,
    addresses: BrokerAddresses,
    data_dir: PathBuf,
    config: PathBuf,
    log: PathBuf,
    /// Where in it the present process, or the last one, began.
    log_from: u64,
    /// Shown to it as the kernel's, if it has a machine of its own.
    boot_id: PathBuf,
    /// Says how far its wall clock is off, if it has one of its own.
    clock: PathBuf,
    process: Option<Child>,
    ended_at: Option<Instant>,
}

impl Cluster {
    /// Writes the configuration and starts everything on loopback. `data_dirs` are the three brokers' data directories; logs
    /// and configuration go to `dir`.
    pub fn start(program: &Path, dir: &Path, data_dirs: &[PathBuf; 3], settings: Settings) -> io::Result<Cluster> {
        Cluster::start_on(&Hosts::LOOPBACK, program, dir, data_dirs, settings)
    }

    /// The same on those hosts.
    pub fn start_on(
        hosts: &Hosts,
        program: &Path,
        dir: &Path,
        data_dirs: &[PathBuf; 3],
        settings: Settings,
    ) -> io::Result<Cluster> {
        fs::create_dir_all(dir)?;
        let name_server = hosts.name_server.name_server_address()?;
        let addresses: Vec<_> = hosts.brokers.iter().map(Host::broker_addresses).collect::<io::Result<_>>()?;
        let founders: Vec<_> = addresses.iter().map(|broker| format!("\"{}\"", broker.peer)).collect();
        let broker = |(k, ((addresses, data_dir), host)): (usize, ((BrokerAddresses, &PathBuf), &Host))| Broker {
            host: host.clone(),
            addresses,
            data_dir: data_dir.clone(),
            config: dir.join(format!("broker-{k}.toml")),
            log: dir.join(format!("broker-{k}.log")),
            log_from: 0,
            boot_id: dir.join(format!("broker-{k}.boot")),
            clock: dir.join(format!("broker-{k}.clock")),
            process: None,
            ended_at: None,
        };
        let brokers = (1..).zip(addresses.into_iter().zip(data_dirs).zip(&hosts.brokers)).map(broker).collect();
        let config = dir.join("nameserver.toml");
        let open = is_open(name_server);
        fs::write(&config, format!("listen = \"{name_server}\"\nallow_unauthenticated = {open}\n"))?;
        let mut cluster = Cluster {
            program: program.to_owned(),
            name_server,
            name_server_process: None,
            settings,
            async_auto_recover: false,
            join: false,
            founders: founders.join(", "),
            brokers,
        };
        let mut command = hosts.name_server.command(program);
        command.arg("nameserver").arg("-c").arg(&config);
        cluster.name_server_process = Some(spawn(command, &dir.join("nameserver.log"))?);
        cluster.write_configuration()?;
        for k in 0..3 {
            cluster.boot(k)?;
            cluster.set_clock(k, 0)?;
            cluster.start_broker(k)?;
        }
        for k in 0..3 {
            cluster.wait_ready(k)?;
        }
        Ok(cluster)
    }

    /// The NameServer's address.
    pub fn name_server(&self) -> SocketAddr {
        self.name_server
    }

    /// A broker's addresses.
    pub fn broker(&self, k: usize) -> &BrokerAddresses {
        &self.brokers[k].addresses
    }

    /// Process id of a running broker.
    pub fn broker_pid(&self, k: usize) -> u32 {
        self.brokers[k].process.as_ref().expect("it runs").id()
    }

    /// A broker's data directory.
    pub fn data_dir(&self, k: usize) -> &Path {
        &self.brokers[k].data_dir
    }

    /// Whether a group of which a majority may have forgotten something goes on by itself, from the next starts on.
    pub fn set_async_auto_recover(&mut self, async_auto_recover: bool) -> io::Result<()> {
        self.async_auto_recover = async_auto_recover;
        self.write_configuration()
    }

    /// Whether a broker on an empty directory waits to be made a member, from the next starts on.
    pub fn set_join(&mut self, join: bool) -> io::Result<()> {
        self.join = join;
        self.write_configuration()
    }

    fn write_configuration(&self) -> io::Result<()> {
        let Cluster { name_server, founders, async_auto_recover, join, settings, .. } = self;
        let flush = match settings.flush {
            Flush::Sync => "SYNC_FLUSH",
            Flush::Async => "ASYNC_FLUSH",
        };
        for Broker { addresses: BrokerAddresses { client, http, peer }, data_dir, config, .. } in &self.brokers {
            let open = is_open(*client);
            // What was acknowledged is read back to the end: a small disk must not make retention drop any of it.
            fs::write(
                config,
                format!(
                    "cluster = \"DefaultCluster\"\nnamesrv = [\"{name_server}\"]\nhttp = \"{http}\"\n\
                     allow_unauthenticated = {open}\n\n[[group]]\nbroker_name = \"broker-a\"\ndata_dir = {data_dir:?}\nlisten = \"{client}\"\nvip = false\n\
                     advertised_address = \"{client}\"\npeer_listen = \"{peer}\"\npeer_address = \"{peer}\"\n\
                     founders = [{founders}]\nsegment_mib = {}\nscrub_mib_per_s = {}\nflush = \"{flush}\"\nflush_interval_ms = {}\n\
                     async_auto_recover = {async_auto_recover}\njoin = {join}\n\
                     transaction_timeout_ms = 1000\ntransaction_check_interval_ms = 1000\ntransaction_check_max = 1000\n\
                     disk_max_used_percent = 100\ndisk_clean_forcibly_percent = 100\ndisk_warning_percent = 100\n",
                    settings.segment_mib,
                    settings.scrub_mib_per_s,
                    FLUSH_INTERVAL.as_millis(),
                ),
            )?;
        }
        Ok(())
    }

    /// The machine of a broker comes up: from its next start on it sees another boot.
    pub fn boot(&self, k: usize) -> io::Result<()> {
        fs::write(&self.brokers[k].boot_id, fs::read("/proc/sys/kernel/random/uuid")?)
    }

    /// Sets a broker's wall clock, if it has one of its own: so far from the machine's, and going with it.
    pub fn set_clock(&self, k: usize, offset_ms: i64) -> io::Result<()> {
        if self.settings.clocks { clock::set(&self.brokers[k].clock, offset_ms) } else { Ok(()) }
    }

    /// The file that says how far a broker's wall clock is off.
    pub fn clock_file(&self, k: usize) -> &Path {
        &self.brokers[k].clock
    }

    /// Starts a broker that does not run.
    pub fn start_broker(&mut self, k: usize) -> io::Result<()> {
        assert!(self.brokers[k].process.is_none(), "broker {k} runs already");
        let Broker { host, config, log, boot_id, clock, .. } = &self.brokers[k];
        let mut command = if self.settings.boots {
            // A mount namespace of its own, in which the kernel shows that boot. The other machines' disks are not seen in
            // it: they would stay mounted as long as this broker runs.
            let others = (0..3).filter(|other| *other != k).map(|other| &self.brokers[other].data_dir);
            let others = others.filter_map(|data_dir| data_dir.parent());
            let mut command = host.command("unshare");
            command.args(["--mount", "--propagation", "private", "sh", "-e", "-c"]).arg(format!(
                "mount --bind \"$0\" {BOOT_ID}; for _ in 1 2; do if mountpoint -q \"$1\"; then umount \"$1\"; fi; shift; \
                 done; exec \"$@\""
            ));
            command.arg(boot_id).args(others).arg(&self.program);
            command
        } else {
            host.command(&self.program)
        };
        command.arg("broker").arg("-c").arg(config);
        if self.settings.clocks {
            clock::preload(&mut command, clock)?;
        }
        let log_from = fs::metadata(log).map_or(0, |log| log.len());
        let process = spawn(command, log)?;
        let broker = &mut self.brokers[k];
        broker.log_from = log_from;
        (broker.process, broker.ended_at) = (Some(process), None);
        Ok(())
    }

    /// What a supervisor does now and then: starts a broker again that ended by itself some time ago. Tells if it has
    /// ended since the last look.
    pub fn supervise(&mut self, k: usize) -> io::Result<Option<Ended>> {
        let broker = &mut self.brokers[k];
        match &mut broker.process {
            Some(process) => {
                let Some(status) = process.try_wait()? else { return Ok(None) };
                (broker.process, broker.ended_at) = (None, Some(Instant::now()));
                let log = fs::read_to_string(&broker.log)?;
                let of_it = &log[broker.log_from as usize..];
                let said = of_it.lines().rev().find_map(|line| line.strip_prefix("raftmq: ")).map(str::to_owned);
                Ok(Some(Ended { status, said }))
            }
            None => {
                if broker.ended_at.is_none_or(|ended_at| ended_at.elapsed() >= RESTART) {
                    self.start_broker(k)?;
                }
                Ok(None)
            }
        }
    }

    /// Whether a broker's process runs.
    pub fn runs(&self, k: usize) -> bool {
        self.brokers[k].process.is_some()
    }

    /// How often a broker's log has said something, since its first start.
    pub fn said(&self, k: usize, what: &str) -> io::Result<usize> {
        Ok(fs::read_to_string(&self.brokers[k].log)?.matches(what).count())
    }

    /// A broker's metric, with a label if it has several.
    pub fn metric(&self, k: usize, name: &str, label: &str) -> io::Result<f64> {
        let (_, page) = get(self.brokers[k].addresses.http, "/metrics")?;
        let of_that_name = |line: &&str| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ', '_'])) && line.contains(label)
        };
        let line = page.lines().find(of_that_name);
        line.and_then(|line| line.rsplit(' ').next()?.parse().ok())
            .ok_or_else(|| io::Error::other(format!("broker {} has no metric {name} {label}", k + 1)))
    }

    /// Which broker leads, by what each says of itself; of several the one with the newest term.
    pub fn leader(&self) -> Option<usize> {
        let leads = |k: &usize| self.metric(*k, "raftmq_role", "\"leader\"").is_ok_and(|leads| leads > 0.0);
        let term = |k: &usize| self.metric(*k, "raftmq_term", "").unwrap_or_default();
        (0..3).filter(leads).max_by(|a, b| term(a).total_cmp(&term(b)))
    }

    /// SIGKILL of all `victims` at once. Tells how each ended; an error if one had ended by itself.
    pub fn kill_brokers(&mut self, victims: &[usize]) -> io::Result<Vec<ExitStatus>> {
        self.signal(victims, "KILL")?;
        let mut ends = Vec::new();
        for victim in victims {
            let status = self.brokers[*victim].process.take().expect("it runs").wait()?;
            if status.signal() != Some(KILLED) {
                let told = self.log_tail(*victim);
                return Err(io::Error::other(format!(
                    "broker {} was to be killed, but had ended: {status}; {told}",
                    victim + 1
                )));
            }
            ends.push(status);
        }
        Ok(ends)
    }

    /// Ends a broker that its disk may have ended just before.
    pub fn end_broker(&mut self, k: usize) -> io::Result<()> {
        self.signal(&[k], "KILL")?;
        self.brokers[k].process.take().expect("it runs").wait().map(drop)
    }

    /// SIGTERM: the broker ends in good order. An error if it does not, or fails in doing so.
    pub fn stop_broker(&mut self, k: usize) -> io::Result<ExitStatus> {
        self.signal(&[k], "TERM")?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let process = self.brokers[k].process.as_mut().expect("it runs");
            if let Some(status) = process.try_wait()? {
                self.brokers[k].process = None;
                return if status.success() {
                    Ok(status)
                } else {
                    Err(io::Error::other(format!("broker {} ended: {status}; {}", k + 1, self.log_tail(k))))
                };
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("broker {} does not stop; {}", k + 1, self.log_tail(k))));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// `raftmq admin`, about this cluster.
    pub fn admin(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("admin").arg("-n").arg(self.name_server.to_string()).args(arguments);
        command
    }

    /// SIGSTOP of all `victims` at once: they no longer run, and nobody is told.
    pub fn pause_brokers(&self, victims: &[usize]) -> io::Result<()> {
        self.signal(victims, "STOP")
    }

    /// SIGCONT of all `victims` at once: they go on where they were stopped.
    pub fn resume_brokers(&self, victims: &[usize]) -> io::Result<()> {
        self.signal(victims, "CONT")
    }

    /// One program for all, so that no victim has time to notice what happened to another.
    fn signal(&self, victims: &[usize], signal: &str) -> io::Result<()> {
        let pids = victims.iter().map(|victim| self.broker_pid(*victim).to_string());
        let status = Command::new("kill").arg(format!("-{signal}")).args(pids).status()?;
        if status.success() { Ok(()) } else { Err(io::Error::other(format!("kill -{signal}: {status}"))) }
    }

    /// Resolves when the broker says that it is ready: it has a leader and serves.
    pub fn wait_ready(&mut self, k: usize) -> io::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.brokers[k].process.as_mut().expect("it runs").try_wait()? {
                return Err(io::Error::other(format!("broker {} ended: {status}; {}", k + 1, self.log_tail(k))));
            }
            if self.is_ready(k) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("broker {} is not ready; {}", k + 1, self.log_tail(k))));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether the broker says that it is ready.
    pub fn is_ready(&self, k: usize) -> bool {
        get(self.brokers[k].addresses.http, "/health/ready").is_ok_and(|(status, _)| status == 200)
    }

    /// The end of a broker's log, for people.
    pub fn log_tail(&self, k: usize) -> String {
        let path = &self.brokers[k].log;
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.reverse();
        format!("{} ends with:\n{}", path.display(), lines.join("\n"))
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let brokers = self.brokers.iter_mut().filter_map(|broker| broker.process.as_mut());
        for process in brokers.chain(self.name_server_process.as_mut()) {
            // It may have ended by itself; all that matters is that none is left behind.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Whether others than this machine reach what listens there; an operator must have allowed it.
fn is_open(address: SocketAddr) -> bool {
    !address.ip().is_loopback()
}

fn spawn(mut command: Command, log: &Path) -> io::Result<Child> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    let program = command.get_program().to_owned();
    command
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))
}

/// Status and body of a page.
fn get(address: SocketAddr, page: &str) -> io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(format!("GET {page} HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok());
    status.map(|status| (status, answer)).ok_or_else(|| io::Error::other("no HTTP answer"))
}
