//! A starved processor: a broker gets a twentieth of one.

use std::io;
use std::time::Duration;

use super::{AtWork, Evidence, LOOK, Run, Undo};
use crate::cgroup::Group;
use crate::history::edn::Edn;

/// In microseconds of every [`PERIOD_US`].
const QUOTA_US: u32 = 5_000;
const PERIOD_US: u32 = 100_000;

/// A broker under load that gets so little is held back within this.
const NOTICED: Duration = Duration::from_secs(5);

/// The evidence: the kernel has held the process back.
pub async fn starve(run: &mut Run, victim: usize) -> io::Result<(Evidence, AtWork)> {
    let mut group = Group::create("cpu", "cpu.cfs_quota_us")?;
    group.write("cpu.cfs_period_us", &PERIOD_US.to_string())?;
    group.write("cpu.cfs_quota_us", &QUOTA_US.to_string())?;
    group.hold(run.cluster.broker_pid(victim))?;
    let throttled = async {
        while throttled(&group.read("cpu.stat")?) == 0 {
            run.env.clock.sleep(LOOK).await;
        }
        io::Result::Ok(())
    };
    let in_time = run.env.clock.timeout(NOTICED, throttled).await;
    in_time.unwrap_or_else(|| Err(io::Error::other(format!("nobody was held back within {NOTICED:?}"))))?;
    let evidence = vec![(victim, told(&group)?)];
    Ok((evidence, AtWork::new(vec![victim], Undo::Starved(group))))
}

/// The whole machine is its again.
pub fn feed(victim: usize, mut group: Group) -> io::Result<Evidence> {
    let evidence = vec![(victim, told(&group)?)];
    group.remove()?;
    Ok(evidence)
}

fn told(group: &Group) -> io::Result<Edn> {
    let stat = group.read("cpu.stat")?;
    Ok(Edn::map([
        ("quota-us", u64::from(QUOTA_US).into()),
        ("of-us", u64::from(PERIOD_US).into()),
        ("times-throttled", throttled(&stat).into()),
    ]))
}

/// How often somebody was held back, by the kernel's count.
fn throttled(stat: &str) -> u64 {
    let count = stat.lines().find_map(|line| line.strip_prefix("nr_throttled "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernels_count() {
        assert_eq!(super::throttled("nr_periods 26\nnr_throttled 25\nthrottled_time 2400000\n"), 25);
        assert_eq!(super::throttled(""), 0);
    }
}
