//! A broker's wall clock: it jumps, or runs at another rate. The monotonic clock stays what it is.

use std::io;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use env::Rng;
use protocol::body::KvTable;
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use remoting::{Client, Limits, NoRequests};

use super::{AtWork, Evidence, Run, Undo};
use crate::clock;
use crate::history::edn::Edn;

/// What a clock shows may differ by so much from what was set: a broker tells whole seconds, and both need time to answer.
const TOLERANCE_MS: i64 = 2_000;

/// Steps are longer than that, so that they can be told from none, and no longer than a minute.
const STEP_MS: (u64, u64) = (4_000, 60_000);

/// What the clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Course {
    /// It jumps by so much, and goes on from there.
    Step {
        /// Forward, if positive.
        ms: i64,
    },
    /// It runs at so much of the right rate.
    Rate {
        /// 200 is twice as fast.
        percent: i64,
    },
}

impl Course {
    /// Draws one.
    pub fn draw(rng: &Rng) -> Course {
        let ms = (STEP_MS.0 + rng.below(STEP_MS.1 - STEP_MS.0)) as i64;
        match rng.below(6) {
            0 | 1 => Course::Step { ms },
            2 | 3 => Course::Step { ms: -ms },
            4 => Course::Rate { percent: 200 },
            _ => Course::Rate { percent: 50 },
        }
    }

    /// How far the clock is off, so long after the beginning.
    pub fn offset_ms(self, after: Duration) -> i64 {
        match self {
            Course::Step { ms } => ms,
            Course::Rate { percent } => after.as_millis() as i64 * (percent - 100) / 100,
        }
    }
}

/// A clock that is wrong.
#[derive(Debug)]
pub struct Wrong {
    victim: usize,
    course: Course,
    since: Duration,
}

impl Wrong {
    /// The clock is set anew each time that somebody looks after it: often enough for a rate.
    pub fn go_on(&self, run: &Run) -> io::Result<i64> {
        let offset_ms = self.course.offset_ms(run.env.clock.monotonic() - self.since);
        run.cluster.set_clock(self.victim, offset_ms)?;
        Ok(offset_ms)
    }
}

/// The evidence: what the broker and a probe with the same clock say that it is.
pub async fn bend(run: &mut Run, victim: usize, rng: &Rng) -> io::Result<(Evidence, AtWork)> {
    let course = Course::draw(rng);
    let wrong = Wrong { victim, course, since: run.env.clock.monotonic() };
    let offset_ms = wrong.go_on(run)?;
    let told = match course {
        Course::Step { ms } => ("step-ms", Edn::Int(ms)),
        Course::Rate { percent } => ("rate-percent", Edn::Int(percent)),
    };
    let evidence = vec![(victim, shown(run, victim, offset_ms, told).await?)];
    Ok((evidence, AtWork::new(vec![victim], Undo::Clock(wrong))))
}

/// The clock is right again.
pub async fn set_right(run: &mut Run, wrong: Wrong) -> io::Result<Evidence> {
    let victim = wrong.victim;
    let offset_ms = wrong.go_on(run)?;
    let before = shown(run, victim, offset_ms, ("offset-ms", offset_ms.into())).await?;
    run.cluster.set_clock(victim, 0)?;
    let after = shown(run, victim, 0, ("offset-ms", 0_u64.into())).await?;
    Ok(vec![(victim, Edn::vector([before, after]))])
}

/// What the clock shows, from the inside and to a probe; an error if it is not what was set.
async fn shown(run: &Run, victim: usize, set_ms: i64, told: (&'static str, Edn)) -> io::Result<Edn> {
    let mut probe = Command::new("date");
    clock::preload(&mut probe, run.cluster.clock_file(victim))?;
    let said = probe.arg("+%s%3N").output()?;
    let said = String::from_utf8_lossy(&said.stdout).trim().parse::<i64>().map_err(io::Error::other)?;
    let probe_ms = said - run.env.clock.wall_ms();
    let mut entries = vec![told, ("probe-off-ms", probe_ms.into())];
    let mut wrong = (probe_ms - set_ms).abs() > TOLERANCE_MS;
    if let Some(broker) = wall_of(run, victim).await? {
        let broker_ms = broker - run.env.clock.wall_ms();
        wrong |= (broker_ms - set_ms).abs() > TOLERANCE_MS;
        entries.push(("broker-off-ms", broker_ms.into()));
    }
    let shown = Edn::map(entries);
    if wrong {
        Err(io::Error::other(format!("the clock was set to {set_ms} ms off, but shows {shown}")))
    } else {
        Ok(shown)
    }
}

/// A broker's wall clock by its own words, to a second. `None` if it does not tell: it was set back to before its start.
async fn wall_of(run: &Run, victim: usize) -> io::Result<Option<i64>> {
    let client = Client::new(&run.env, Limits::default(), Arc::new(NoRequests));
    let request = RemotingCommand::request(RequestCode::GET_BROKER_RUNTIME_INFO);
    let address = run.replicas[victim].to_string();
    let answer = client.call(&address, request, Duration::from_secs(2)).await.map_err(io::Error::other)?;
    let table: KvTable = protocol::json::from_slice(&answer.body).map_err(io::Error::other)?;
    let of = |key: &str| table.table.get(key).map(String::as_str).unwrap_or_default();
    let wall = of("bootTimestamp").parse().ok().zip(seconds(of("runtime")));
    let (started_ms, seconds): (i64, u64) =
        wall.ok_or_else(|| io::Error::other(format!("{address} does not tell how long it has run: {table:?}")))?;
    Ok((seconds > 0).then_some(started_ms + seconds as i64 * 1000))
}

/// `[ 0 days, 1 hours, 2 minutes, 3 seconds ]`
fn seconds(runtime: &str) -> Option<u64> {
    let numbers: Vec<u64> = runtime.split(' ').filter_map(|word| word.parse().ok()).collect();
    match numbers[..] {
        [days, hours, minutes, seconds] => Some(((days * 24 + hours) * 60 + minutes) * 60 + seconds),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_course_is_a_function_of_the_time() {
        let after = Duration::from_millis(3_000);
        assert_eq!(Course::Step { ms: -5_000 }.offset_ms(after), -5_000);
        assert_eq!(Course::Rate { percent: 200 }.offset_ms(after), 3_000);
        assert_eq!(Course::Rate { percent: 50 }.offset_ms(after), -1_500);
    }

    #[test]
    fn clocks_go_both_ways_and_both_rates_and_never_more_than_a_minute() {
        let rng = Rng::seeded(1);
        let drawn: Vec<_> = (0..60).map(|_| Course::draw(&rng)).collect();
        for wanted in [Course::Rate { percent: 200 }, Course::Rate { percent: 50 }] {
            assert!(drawn.contains(&wanted));
        }
        let steps: Vec<i64> = drawn
            .iter()
            .filter_map(|course| match course {
                Course::Step { ms } => Some(*ms),
                Course::Rate { .. } => None,
            })
            .collect();
        assert!(steps.iter().all(|ms| (4_000..60_000).contains(&ms.abs())), "{steps:?}");
        assert!(steps.iter().any(|ms| *ms > 0) && steps.iter().any(|ms| *ms < 0));
    }

    #[test]
    fn how_long_a_broker_has_run() {
        assert_eq!(seconds("[ 1 days, 1 hours, 2 minutes, 3 seconds ]"), Some(90_123));
        assert_eq!(seconds("a while"), None);
    }
}
