//! What a plan's nemeses need of this machine: disks of the brokers' own, clocks, small files.

use std::io;
use std::sync::Arc;

use super::nemesis::{Ground, Nemesis};
use super::{OwnNetwork, Plan};
use crate::clock;
use crate::cluster::Settings;
use crate::disk::Disk;
use crate::disk_fault::Speed;
use crate::history::edn::Edn;
use crate::history::recorder::Recorder;

/// What brokers are given.
#[derive(Debug)]
pub struct Outfit {
    /// Those of the plan that this machine can make.
    pub nemeses: Vec<Nemesis>,
    /// What each broker's files lie on,
    pub grounds: [Ground; 3],
    /// as far as it is the harness's.
    pub disks: [Option<Arc<Disk>>; 3],
    /// How fast the disks are when nobody uses them, if anybody wants to know.
    pub speeds: [Speed; 3],
}

impl Outfit {
    /// Makes disks; `first` draws who has what is special. Nemeses that cannot be made here are left out, recorded and told
    /// in `skipped`.
    pub fn make(
        plan: &Plan,
        recorder: &Recorder,
        network: &OwnNetwork,
        first: usize,
        skipped: &mut Vec<String>,
    ) -> io::Result<Outfit> {
        let mut nemeses = plan.nemeses.clone();
        if let Err(error) = network {
            eprintln!("on loopback: {error}");
            for nemesis in nemeses.extract_if(.., |nemesis| nemesis.is_of_the_network()) {
                skipped.push(skip(recorder, nemesis, error)?);
            }
        }
        if nemeses.contains(&Nemesis::ClockStep)
            && let Err(error) = clock::library()
        {
            skipped.push(skip(recorder, Nemesis::ClockStep, &error)?);
            nemeses.retain(|nemesis| *nemesis != Nemesis::ClockStep);
        }
        let mut disks: [Option<Arc<Disk>>; 3] = Default::default();
        let grounds = 'made: loop {
            let grounds = Ground::of_each(&nemeses, first);
            for (k, ground) in grounds.into_iter().enumerate() {
                match ground.make(&plan.dir, &format!("disk-{}", k + 1)) {
                    Ok(made) => disks[k] = made,
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        disks = Default::default();
                        // What wanted just that one goes.
                        for nemesis in nemeses.extract_if(.., |nemesis| ground.is_for(*nemesis)) {
                            skipped.push(skip(recorder, nemesis, &error)?);
                        }
                        continue 'made;
                    }
                    Err(error) => return Err(error),
                }
            }
            break grounds;
        };
        let mut speeds = [Speed::default(); 3];
        if nemeses.contains(&Nemesis::DiskSlow) {
            for (speed, disk) in speeds.iter_mut().zip(&disks) {
                if let Some(disk) = disk {
                    *speed = Speed::measure(disk)?;
                }
            }
        }
        Ok(Outfit { nemeses, grounds, disks, speeds })
    }

    /// How brokers are set up.
    pub fn settings(&self) -> Settings {
        let settings = Settings { clocks: self.nemeses.contains(&Nemesis::ClockStep), ..Settings::default() };
        if self.nemeses.iter().any(|nemesis| nemesis.wants_full_files()) {
            // The smallest, and read through within seconds.
            return Settings { segment_mib: 16, scrub_mib_per_s: 64, ..settings };
        }
        settings
    }
}

/// Records that a nemesis cannot be made on this machine. What to say of it.
pub fn skip(recorder: &Recorder, nemesis: Nemesis, why: &io::Error) -> io::Result<String> {
    let (name, why) = (nemesis.name(), why.to_string());
    recorder.nemesis(&format!("start-{name}"), Edn::Nil, vec![("skipped", why.as_str().into())])?;
    eprintln!("SKIPPED: {name}: {why}");
    Ok(format!("{name}: {why}"))
}
