//! Disks: full, slow, failing, frozen. What strikes and how it shows is [`crate::disk_fault`]'s.
//!
//! Not every file system can have every fault: power failures want ext4, failing syncs want one on zram, bad blocks a btrfs.
//! A run that asks for several has different disks under different brokers, and strikes those that can be struck.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::{AtWork, Evidence, NODES, Nemesis, Run, Undo, damage, process, watch};
use crate::cluster::PATIENCE;
use crate::disk::Disk;
use crate::disk_fault::{DiskFault, Struck, full_segments};
use crate::history::edn::Edn;

/// Size of a broker's file system, if it has one of its own.
const MIB: u64 = 4096;

/// Between two looks for a full file.
const AGAIN: Duration = Duration::from_millis(500);

/// What a broker's files lie on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// The harness's directory, which nothing can happen to.
    Directory,
    /// An ext4 on a loop file.
    Ext4,
    /// An ext4 on zram.
    Memory,
    /// A btrfs on a loop file.
    Checksums,
}

impl Ground {
    /// What each broker needs so that all `nemeses` can strike somebody. `first` draws who has what is special.
    pub fn of_each(nemeses: &[Nemesis], first: usize) -> [Ground; 3] {
        if !nemeses.iter().any(|nemesis| !Ground::Directory.can(*nemesis)) {
            return [Ground::Directory; 3];
        }
        let mut grounds = [Ground::Ext4; 3];
        if nemeses.contains(&Nemesis::DiskErrorSync) {
            grounds[first % 3] = Ground::Memory;
        }
        if nemeses.contains(&Nemesis::DiskErrorRead) {
            grounds[(first + 1) % 3] = Ground::Checksums;
        }
        grounds
    }

    /// Whether that nemesis can strike a broker on it.
    pub fn can(self, nemesis: Nemesis) -> bool {
        match nemesis {
            Nemesis::Power | Nemesis::DiskFull | Nemesis::DiskErrorWrite => {
                matches!(self, Ground::Ext4 | Ground::Memory)
            }
            Nemesis::DiskErrorSync => self == Ground::Memory,
            Nemesis::DiskErrorRead => self == Ground::Checksums,
            Nemesis::DiskFrozen => self != Ground::Directory,
            // A hundredth of memory's speed is an ordinary disk's, and a btrfs hides its device's number.
            Nemesis::DiskSlow => self == Ground::Ext4,
            _ => true,
        }
    }

    /// Whether it is there for that nemesis: without it nobody would need it.
    pub fn is_for(self, nemesis: Nemesis) -> bool {
        match self {
            Ground::Directory => false,
            Ground::Ext4 => !Ground::Directory.can(nemesis),
            Ground::Memory => nemesis == Nemesis::DiskErrorSync,
            Ground::Checksums => nemesis == Nemesis::DiskErrorRead,
        }
    }

    /// Makes it; `None` if there is nothing to make. `Unsupported` if this machine cannot.
    pub fn make(self, dir: &Path, name: &str) -> io::Result<Option<Arc<Disk>>> {
        if self != Ground::Directory && !rustix::process::geteuid().is_root() {
            return Err(io::Error::new(io::ErrorKind::Unsupported, "file systems of its own need root"));
        }
        let disk = match self {
            Ground::Directory => return Ok(None),
            Ground::Ext4 => Disk::create(dir, name, MIB),
            Ground::Memory => Disk::create_in_memory(dir, name, MIB),
            Ground::Checksums => Disk::create_with_checksums(dir, name, MIB),
        };
        disk.map(|disk| Some(Arc::new(disk)))
    }
}

/// The disk of one broker goes bad. The evidence: what a probe of the harness's own sees of it.
pub fn strike(run: &mut Run, fault: DiskFault, victim: usize) -> io::Result<(Evidence, AtWork)> {
    let disk = run.outfit.disks[victim].clone().expect("it has one of its own");
    let (pid, data_dir) = (run.cluster.broker_pid(victim), run.cluster.data_dir(victim));
    let struck = fault.strike(&disk, run.outfit.speeds[victim], pid, data_dir)?;
    let evidence = vec![(victim, Edn::map([("probe", struck.evidence().into())]))];
    Ok((evidence, AtWork::new(vec![victim], Undo::Disk(struck))))
}

/// The disk is good again. What had ended by itself is started by whatever supervises it.
pub fn heal(run: &mut Run, victim: usize, struck: Struck, ends: &[String]) -> io::Result<Evidence> {
    if struck.needs_a_mount() && run.cluster.runs(victim) {
        // An operator unmounts: nobody may use it then.
        run.cluster.end_broker(victim)?;
    }
    struck.heal()?;
    let mut told = vec![("ended-by-itself", ends.len().into())];
    told.extend(ends.first().map(|reason| ("with", reason.as_str().into())));
    Ok(vec![(victim, Edn::map(told))])
}

/// Blocks of a full CommitLog file go bad while the broker is down, so that what cannot be read is in nobody's memory. The
/// evidence: a probe's reads.
pub async fn spoil(run: &mut Run, victim: usize) -> io::Result<(Evidence, AtWork)> {
    let deadline = run.env.clock.monotonic() + PATIENCE;
    while full_segments(run.cluster.data_dir(victim))?.is_empty() {
        if run.env.clock.monotonic() > deadline {
            return Err(io::Error::other(format!("no CommitLog file of {} gets full", NODES[victim])));
        }
        watch(run, None, AGAIN).await?;
    }
    let mut evidence = process::end(run, &[victim])?;
    let disk = run.outfit.disks[victim].clone().expect("it has one of its own");
    let struck = DiskFault::ErrorRead.strike(&disk, run.outfit.speeds[victim], 0, run.cluster.data_dir(victim))?;
    if let [(_, Edn::Map(entries))] = &mut *evidence {
        entries.push((Edn::keyword("probe"), struck.evidence().into()));
    }
    let said = run.cluster.said(victim, damage::IS_WHOLE)?;
    Ok((evidence, AtWork::new(vec![victim], Undo::BadBlocks { struck, said })))
}

/// The broker is started on them, must find them, and mend them.
pub async fn mend(run: &mut Run, victim: usize, struck: Struck, said: usize) -> io::Result<Evidence> {
    run.cluster.start_broker(victim)?;
    let told = damage::until_whole(run, victim, said, &mut || Ok(struck.is_mended().is_ok())).await?;
    Ok(vec![(victim, told)])
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn whatever_is_asked_for_can_strike_somebody() {
        for first in 0..3 {
            let all = Nemesis::value_variants();
            for asked in all.iter().map(std::slice::from_ref).chain([all]) {
                let grounds = Ground::of_each(asked, first);
                for nemesis in asked {
                    assert!(grounds.iter().any(|ground| ground.can(*nemesis)), "{nemesis:?} on {grounds:?}");
                }
            }
        }
    }

    #[test]
    fn what_needs_no_disk_gets_none() {
        assert_eq!(Ground::of_each(&[Nemesis::Kill, Nemesis::BitFlip], 1), [Ground::Directory; 3]);
        assert_eq!(Ground::of_each(&[Nemesis::Power], 1), [Ground::Ext4; 3]);
        assert_eq!(
            Ground::of_each(&[Nemesis::DiskErrorSync, Nemesis::DiskErrorRead], 2),
            [Ground::Checksums, Ground::Ext4, Ground::Memory]
        );
    }
}
