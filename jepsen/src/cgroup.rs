//! A control group (v1) of the harness's own, in which one process at a time is held back.
//!
//! However a run ends, the process is let go and the group removed: a group cannot be removed while somebody is in it, and
//! what is left behind would hold back whoever comes next.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;

/// Where controllers are mounted.
const ROOT: &str = "/sys/fs/cgroup";

/// See the top.
#[derive(Debug)]
pub struct Group {
    controller: PathBuf,
    group: PathBuf,
    held: Option<u32>,
}

impl Group {
    /// A group of `controller`, which must have the control file `knob`. `Unsupported` if there is none.
    pub fn create(controller: &str, knob: &str) -> io::Result<Group> {
        let controller = Path::new(ROOT).join(controller);
        let group = controller.join(format!("raftmq-jepsen-{}", std::process::id()));
        let unsupported = |why| io::Error::new(io::ErrorKind::Unsupported, why);
        if !controller.exists() {
            return Err(unsupported(format!("no {} of cgroup v1", controller.display())));
        }
        fs::create_dir_all(&group).map_err(|error| unsupported(format!("{}: {error}", group.display())))?;
        let made = Group { controller, group, held: None };
        if made.group.join(knob).exists() {
            return Ok(made);
        }
        Err(unsupported(format!("no {knob} in {}", made.group.display())))
    }

    /// Writes a control file.
    pub fn write(&self, file: &str, what: &str) -> io::Result<()> {
        fs::write(self.group.join(file), what)
    }

    /// Reads one.
    pub fn read(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.group.join(file))
    }

    /// Takes a process in that ends before the group does.
    pub fn hold_for_a_while(&self, pid: u32) -> io::Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Takes a process in, until it is let go.
    pub fn hold(&mut self, pid: u32) -> io::Result<()> {
        self.hold_for_a_while(pid)?;
        self.held = Some(pid);
        Ok(())
    }

    /// Lets the process go, if it is still there, and removes the group.
    pub fn remove(&mut self) -> io::Result<()> {
        if let Some(pid) = self.held.take() {
            match fs::write(self.controller.join("cgroup.procs"), pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => {}
                moved => moved?,
            }
        }
        match fs::remove_dir(&self.group) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("cannot remove {}: {error}", self.group.display());
        }
    }
}
