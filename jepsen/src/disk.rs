//! The disk of one machine: a file system of a broker's own, ext4 or btrfs, on a loop file or on compressed memory (zram),
//! whose power can be cut. What else can happen to it is in [`crate::disk_fault`].
//!
//! Power goes with the file system's shutdown call. After it nothing more reaches the medium, and what was only in the
//! page cache is gone: data that was not synced, and names whose directory was not. What the kernel had written back by
//! itself stays, as on a real disk. Needs root, `mkfs.ext4`, `mount`, and `xfs_io` (Debian: e2fsprogs, mount, xfsprogs);
//! bad blocks need `mkfs.btrfs` (btrfs-progs).

use std::fs;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How long the kernel may take to let go of a medium.
const RELEASE: Duration = Duration::from_secs(10);

/// What holds the bytes.
#[derive(Debug)]
pub enum Medium {
    /// A sparse file behind a loop device that comes and goes with the mount.
    File(PathBuf),
    /// A zram device, by its number: `mem_limit` makes it refuse what it is given.
    Memory(u32),
}

/// Which file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Ext4,
    /// With checksums of all data: a block that was changed below it cannot be read.
    Btrfs,
}

/// A mounted file system.
#[derive(Debug)]
pub struct Disk {
    kind: Kind,
    medium: Medium,
    mount_point: PathBuf,
}

impl Disk {
    /// Makes and mounts a file system of `mib` MiB on a file under `dir`, called `name`.
    pub fn create(dir: &Path, name: &str, mib: u64) -> io::Result<Disk> {
        Disk::on_file(Kind::Ext4, dir, name, mib)
    }

    /// The same with a file system that keeps checksums of all data, so that its blocks can go bad: a btrfs.
    pub fn create_with_checksums(dir: &Path, name: &str, mib: u64) -> io::Result<Disk> {
        Disk::on_file(Kind::Btrfs, dir, name, mib)
    }

    fn on_file(kind: Kind, dir: &Path, name: &str, mib: u64) -> io::Result<Disk> {
        fs::create_dir_all(dir)?;
        let image = dir.join(format!("{name}.img"));
        fs::File::create(&image)?.set_len(mib * 1024 * 1024)?;
        let disk = Disk { kind, medium: Medium::File(image), mount_point: dir.join(name) };
        disk.make_file_system()?;
        Ok(disk)
    }

    /// The same on a zram device. `Unsupported` if the kernel has none.
    pub fn create_in_memory(dir: &Path, name: &str, mib: u64) -> io::Result<Disk> {
        let number = fs::read_to_string("/sys/class/zram-control/hot_add")
            .map_err(|error| io::Error::new(io::ErrorKind::Unsupported, format!("no zram: {error}")))?;
        let number = number.trim().parse().map_err(io::Error::other)?;
        // From here on it is removed again, whatever fails.
        let disk = Disk { kind: Kind::Ext4, medium: Medium::Memory(number), mount_point: dir.join(name) };
        fs::write(disk.zram("disksize").expect("it is one"), (mib * 1024 * 1024).to_string())?;
        disk.make_file_system()?;
        Ok(disk)
    }

    fn make_file_system(&self) -> io::Result<()> {
        fs::create_dir_all(&self.mount_point)?;
        let source = self.source();
        match self.kind {
            // No blocks are kept back for root, as which brokers run here: full is full.
            Kind::Ext4 => run("mkfs.ext4", &["-q", "-F", "-m", "0", path(&source)?])?,
            Kind::Btrfs => run("mkfs.btrfs", &["-q", "-f", "-m", "single", "-d", "single", path(&source)?])?,
        }
        self.mount()
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// What it lies on.
    pub fn medium(&self) -> &Medium {
        &self.medium
    }

    /// What is mounted: the image, or the device.
    fn source(&self) -> PathBuf {
        match &self.medium {
            Medium::File(image) => image.clone(),
            Medium::Memory(number) => PathBuf::from(format!("/dev/zram{number}")),
        }
    }

    /// A control file of the zram device, if it is one.
    pub fn zram(&self, name: &str) -> Option<PathBuf> {
        match &self.medium {
            Medium::File(_) => None,
            Medium::Memory(number) => Some(PathBuf::from(format!("/sys/block/zram{number}/{name}"))),
        }
    }

    /// The mounted device's number, as `major:minor`.
    pub fn device_number(&self) -> io::Result<String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let mount_point = path(&self.mount_point)?;
        let mut of_ours = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let line = of_ours.find(|fields| fields.get(4) == Some(&mount_point));
        line.map(|fields| fields[2].to_owned()).ok_or_else(|| io::Error::other(format!("{mount_point} is not mounted")))
    }

    /// Cuts the power. Everything that tries to use the file system from now on gets an I/O error. Returns the canary's
    /// name: a file written just before and never synced, whose absence afterwards proves that the cut was one.
    pub fn cut(&self) -> io::Result<PathBuf> {
        let canary = self.mount_point.join("canary");
        fs::write(&canary, b"written, never synced")?;
        self.shut_down()?;
        Ok(canary)
    }

    /// The file system's shutdown call, its journal not flushed.
    pub fn shut_down(&self) -> io::Result<()> {
        run("xfs_io", &["-x", "-c", "shutdown", path(&self.mount_point)?])
    }

    /// Power is back: unmounts what is left and mounts the file system again. No process may use it any more.
    pub fn restore(&self, canary: &Path) -> io::Result<()> {
        self.unmount()?;
        self.mount()?;
        if fs::metadata(canary).is_ok_and(|canary| canary.len() > 0) {
            return Err(io::Error::other("the unsynced canary survived: the power was not really cut"));
        }
        Ok(())
    }

    /// What an operator does after I/O errors: unmount, `e2fsck -p`, mount. No process may use it.
    pub fn check_and_remount(&self) -> io::Result<()> {
        self.unmount()?;
        let source = self.source();
        let status = Command::new("e2fsck").args(["-p", path(&source)?]).output()?.status;
        // 1: there was something to correct, and it is corrected.
        if !matches!(status.code(), Some(0 | 1)) {
            return Err(io::Error::other(format!("e2fsck -p {}: {status}", source.display())));
        }
        self.mount()
    }

    fn mount(&self) -> io::Result<()> {
        let (source, mount_point) = (self.source(), path(&self.mount_point)?);
        match &self.medium {
            Medium::File(_) => run("mount", &["-o", "loop", path(&source)?, mount_point]),
            Medium::Memory(_) => run("mount", &[path(&source)?, mount_point]),
        }
    }

    /// Unmounts, and waits until nothing holds the medium: the last process's namespace may end a little after it.
    fn unmount(&self) -> io::Result<()> {
        run("umount", &[path(&self.mount_point)?])?;
        let deadline = Instant::now() + RELEASE;
        while let Some(holder) = self.holder()? {
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{} is still in use: {holder}", self.source().display())));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Who holds the medium, if anybody does.
    fn holder(&self) -> io::Result<Option<String>> {
        match &self.medium {
            Medium::File(image) => {
                let loops = Command::new("losetup").args(["-j", path(image)?]).output()?;
                let is_free = loops.status.success() && loops.stdout.is_empty();
                Ok((!is_free).then(|| String::from_utf8_lossy(&loops.stdout).into_owned()))
            }
            // A block device is opened like that by one at a time, a mount counts as one.
            Medium::Memory(_) => match rustix::fs::open(self.source(), OFlags::RDONLY | OFlags::EXCL, Mode::empty()) {
                Ok(_) => Ok(None),
                Err(Errno::BUSY) => Ok(Some("it is mounted somewhere".to_owned())),
                Err(error) => Err(error.into()),
            },
        }
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Left mounted it would outlive the test; an image itself is the caller's directory's to remove.
        if self.device_number().is_ok()
            && let Err(error) = path(&self.mount_point).and_then(|mount_point| run("umount", &["-l", mount_point]))
        {
            eprintln!("cannot unmount {}: {error}", self.mount_point.display());
        }
        if let Medium::Memory(number) = self.medium {
            let deadline = Instant::now() + RELEASE;
            while let Err(error) = fs::write("/sys/class/zram-control/hot_remove", number.to_string()) {
                if Instant::now() > deadline {
                    eprintln!("cannot remove /dev/zram{number}: {error}");
                    return;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// Makes what this process mounts its own business: it begins again, as the same process, in a mount namespace that ends with
/// it and with the processes that it starts, and all their mounts with that. Then even SIGKILL leaves no mount behind.
/// Returns in that namespace, or where there cannot be one: then nothing can be mounted either.
pub fn keep_mounts_private() -> io::Result<()> {
    const BEGUN_AGAIN: &str = "JEPSEN_MOUNTS_OF";
    let process = std::process::id().to_string();
    let begun_again = std::env::var_os(BEGUN_AGAIN).is_some_and(|of| of == *process);
    let private = ["--mount", "--propagation", "private"];
    if begun_again || run("unshare", &[&private[..], &["true"]].concat()).is_err() {
        return Ok(());
    }
    let mut again = Command::new("unshare");
    again.args(private).arg(std::env::current_exe()?).args(std::env::args_os().skip(1)).env(BEGUN_AGAIN, process);
    Err(again.exec())
}

/// A path as an argument of a program.
pub fn path(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

/// Runs a program to its end; an error if there is none, or it fails. `Unsupported` if it is not installed.
pub fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program).args(arguments).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => io::Error::new(io::ErrorKind::Unsupported, format!("{program} is not installed")),
        kind => io::Error::new(kind, format!("{program}: {error}")),
    })?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "{program} {}: {} {}",
        arguments.join(" "),
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    )))
}
