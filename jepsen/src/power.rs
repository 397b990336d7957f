//! Power failure of one machine, as far as its disk goes: ext4 on a loop file, and the file system's shutdown call.
//!
//! After the shutdown nothing more reaches the loop file, and what was only in the page cache is gone: data that was
//! not synced, and names whose directory was not. What the kernel had written back by itself stays, as on a real disk.
//! Needs root, `mkfs.ext4`, `mount`, and `xfs_io` (Debian: e2fsprogs, mount, xfsprogs).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

/// A mounted file system whose power can be cut.
#[derive(Debug)]
pub struct Disk {
    image: PathBuf,
    mount_point: PathBuf,
}

impl Disk {
    /// Makes and mounts a file system of `mib` MiB under `dir`, called `name`.
    pub fn create(dir: &Path, name: &str, mib: u64) -> io::Result<Disk> {
        let image = dir.join(format!("{name}.img"));
        let mount_point = dir.join(name);
        fs::create_dir_all(&mount_point)?;
        fs::File::create(&image)?.set_len(mib * 1024 * 1024)?;
        run("mkfs.ext4", &["-q", "-F", path(&image)?])?;
        let disk = Disk { image, mount_point };
        disk.mount()?;
        Ok(disk)
    }

    /// Where it is mounted.
    pub fn mount_point(&self) -> &Path {
        &self.mount_point
    }

    /// Cuts the power. Everything that tries to use the file system from now on gets an I/O error. Returns the canary's
    /// name: a file written just before and never synced, whose absence afterwards proves that the cut was one.
    pub fn cut(&self) -> io::Result<PathBuf> {
        let canary = self.mount_point.join("canary");
        fs::write(&canary, b"written, never synced")?;
        run("xfs_io", &["-x", "-c", "shutdown", path(&self.mount_point)?])?;
        Ok(canary)
    }

    /// Power is back: unmounts what is left and mounts the file system again. No process may use it any more.
    pub fn restore(&self, canary: &Path) -> io::Result<()> {
        run("umount", &[path(&self.mount_point)?])?;
        self.mount()?;
        if fs::metadata(canary).is_ok_and(|canary| canary.len() > 0) {
            return Err(io::Error::other("the unsynced canary survived: the power was not really cut"));
        }
        Ok(())
    }

    fn mount(&self) -> io::Result<()> {
        run("mount", &["-o", "loop", path(&self.image)?, path(&self.mount_point)?])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Left mounted it would outlive the test; the image itself is the caller's directory's to remove.
        if let Err(error) = path(&self.mount_point).and_then(|mount_point| run("umount", &["-l", mount_point])) {
            eprintln!("cannot unmount {}: {error}", self.mount_point.display());
        }
    }
}

fn path(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::other(format!("{} is not UTF-8", path.display())))
}

fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("{program}: {error}")))?;
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
