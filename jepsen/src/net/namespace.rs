//! A network namespace, held by nothing but a descriptor: when that is closed, and nobody is in it, it is gone, however the
//! harness ended.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::disk;

/// See the top.
#[derive(Debug)]
pub struct Namespace(File);

impl Namespace {
    /// A new one, with its loopback up. `Unsupported` if this process may not make one.
    pub fn create() -> io::Result<Namespace> {
        let unsupported =
            |why: &str| io::Error::new(io::ErrorKind::Unsupported, format!("no network of its own: {why}"));
        if !rustix::process::geteuid().is_root() {
            return Err(unsupported("it needs root"));
        }
        // A process that makes it, says so, and ends when its standard input does.
        let mut command = Command::new("unshare");
        command
            .args(["--net", "sh", "-c", "echo; cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut holder = command.spawn().map_err(|error| unsupported(&format!("unshare (util-linux): {error}")))?;
        let said = holder.stdout.as_mut().expect("it is piped").read(&mut [0])?;
        let opened = File::open(format!("/proc/{}/ns/net", holder.id()));
        let output = holder.wait_with_output()?;
        if said == 0 {
            return Err(unsupported(String::from_utf8_lossy(&output.stderr).trim()));
        }
        let namespace = Namespace(opened?);
        namespace.within(|| disk::run("ip", &["link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// Does something in the namespace, on a thread of its own. Threads and processes that this one starts are in it too.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        let entered = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
            work()
        };
        std::thread::scope(|scope| scope.spawn(entered).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What to put before a program and its arguments to start it in the namespace. It is killed when the thread that
    /// started it ends, also if that is by SIGKILL of the harness.
    pub fn enter(&self) -> Vec<String> {
        let namespace = format!("--net=/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd());
        ["setpriv", "--pdeathsig", "KILL", "nsenter", &namespace].map(str::to_owned).to_vec()
    }
}
