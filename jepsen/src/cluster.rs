//! A NameServer and three brokers as processes of their own, on loopback.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A program is given this long to do what it should do within a second or two.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Where one broker can be reached.
#[derive(Clone, Debug)]
pub struct BrokerAddresses {
    /// Clients.
    pub client: SocketAddr,
    /// Metrics and health.
    pub http: SocketAddr,
    peer: SocketAddr,
}

/// A NameServer and three brokers of one group.
#[derive(Debug)]
pub struct Cluster {
    program: PathBuf,
    dir: PathBuf,
    name_server: SocketAddr,
    name_server_process: Option<Child>,
    brokers: Vec<Broker>,
}

#[derive(Debug)]
struct Broker {
    addresses: BrokerAddresses,
    config: PathBuf,
    process: Option<Child>,
}

impl Cluster {
    /// Writes the configuration and starts everything. `data_dirs` are the three brokers' data directories; logs and
    /// configuration go to `dir`.
    pub fn start(program: &Path, dir: &Path, data_dirs: &[PathBuf; 3]) -> io::Result<Cluster> {
        fs::create_dir_all(dir)?;
        let name_server = free_address()?;
        let addresses: Vec<_> = (0..3)
            .map(|_| Ok(BrokerAddresses { client: free_address()?, http: free_address()?, peer: free_address()? }))
            .collect::<io::Result<_>>()?;
        let founders: Vec<_> = addresses.iter().map(|broker| format!("\"{}\"", broker.peer)).collect();
        let founders = founders.join(", ");
        let mut brokers = Vec::new();
        for (k, (addresses, data_dir)) in addresses.into_iter().zip(data_dirs).enumerate() {
            let config = dir.join(format!("broker-{}.toml", k + 1));
            let BrokerAddresses { client, http, peer } = &addresses;
            // What was acknowledged is read back to the end: a small disk must not make retention drop any of it.
            fs::write(
                &config,
                format!(
                    "cluster = \"DefaultCluster\"\nnamesrv = [\"{name_server}\"]\nhttp = \"{http}\"\n\n[[group]]\n\
                     broker_name = \"broker-a\"\ndata_dir = {data_dir:?}\nlisten = \"{client}\"\nvip = false\n\
                     advertised_address = \"{client}\"\npeer_listen = \"{peer}\"\npeer_address = \"{peer}\"\n\
                     founders = [{founders}]\nsegment_mib = 64\n\
                     disk_max_used_percent = 100\ndisk_clean_forcibly_percent = 100\ndisk_warning_percent = 100\n"
                ),
            )?;
            brokers.push(Broker { addresses, config, process: None });
        }
        let config = dir.join("nameserver.toml");
        fs::write(&config, format!("listen = \"{name_server}\"\n"))?;
        let mut cluster = Cluster {
            program: program.to_owned(),
            dir: dir.to_owned(),
            name_server,
            name_server_process: None,
            brokers,
        };
        cluster.name_server_process = Some(cluster.spawn("nameserver", &config, "nameserver.log")?);
        for k in 0..3 {
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

    /// Starts a broker that does not run.
    pub fn start_broker(&mut self, k: usize) -> io::Result<()> {
        assert!(self.brokers[k].process.is_none(), "broker {k} runs already");
        let process = self.spawn("broker", &self.brokers[k].config, &format!("broker-{}.log", k + 1))?;
        self.brokers[k].process = Some(process);
        Ok(())
    }

    /// SIGKILL of all `victims` at once.
    pub fn kill_brokers(&mut self, victims: &[usize]) -> io::Result<()> {
        self.signal(victims, "KILL")?;
        for victim in victims {
            self.brokers[*victim].process.take().expect("it runs").wait()?;
        }
        Ok(())
    }

    /// SIGSTOP of all `victims` at once: they no longer run, and nobody is told.
    pub fn pause_brokers(&self, victims: &[usize]) -> io::Result<()> {
        self.signal(victims, "STOP")
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
            if health(self.brokers[k].addresses.http).is_ok_and(|status| status == 200) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("broker {} is not ready; {}", k + 1, self.log_tail(k))));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn log_tail(&self, k: usize) -> String {
        let path = self.dir.join(format!("broker-{}.log", k + 1));
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut lines: Vec<_> = text.lines().rev().take(20).collect();
        lines.reverse();
        format!("{} ends with:\n{}", path.display(), lines.join("\n"))
    }

    fn spawn(&self, role: &str, config: &Path, log: &str) -> io::Result<Child> {
        let log = fs::OpenOptions::new().create(true).append(true).open(self.dir.join(log))?;
        Command::new(&self.program)
            .arg(role)
            .arg("-c")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.program.display())))
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

/// A loopback address that nobody listens on now.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(("127.0.0.1", 0))?.local_addr()
}

/// Status of `GET /health/ready`.
fn health(address: SocketAddr) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    stream.write_all(b"GET /health/ready HTTP/1.1\r\nhost: broker\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    answer.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| io::Error::other("no HTTP answer"))
}
