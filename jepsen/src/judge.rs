//! The judge of clauses 1, 2 and 3: what was acknowledged against what each replica shows.
//!
//! It remembers the whole run. [`Judge::check`] reads only what a replica has not shown yet; [`check_all`] asks for
//! everything again. Both judge all of it: every acknowledged append stands at its place on each replica, no two replicas
//! show different values at one place, and no value stands at two.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use env::Env;
use remoting::{Client, Limits, NoRequests};

use crate::append::{self, Append, QUEUES};

/// What a replica has shown: the values of each queue, by offset.
type Shown = Vec<Vec<u64>>;

/// What a power failure of all replicas took, where they flush by a timer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lost {
    /// Acknowledged appends.
    pub count: usize,
    /// How long before the cut the oldest of them was acknowledged.
    pub oldest: Duration,
}

/// When all machines went down, and how much that may have taken.
#[derive(Clone, Copy, Debug)]
pub struct Outage {
    /// From here on nothing was written any more.
    pub cut: Duration,
    /// The first of them was started again.
    pub back: Duration,
    /// What was acknowledged so long before the cut must be there.
    pub bound: Duration,
}

/// See the top.
#[derive(Debug, Default)]
pub struct Judge {
    acknowledged: Vec<Append>,
    shown: BTreeMap<SocketAddr, Shown>,
}

impl Judge {
    /// How many appends have been acknowledged in the run.
    pub fn acknowledged(&self) -> usize {
        self.acknowledged.len()
    }

    /// Adds what was acknowledged since the last call, reads on at each replica, and judges. The senders must be quiet
    /// and the replicas equal.
    pub async fn check(&mut self, env: &Env, replicas: &[SocketAddr], acknowledged: Vec<Append>) -> io::Result<()> {
        self.acknowledged.extend(acknowledged);
        let client = Client::new(env, Limits::default(), Arc::new(NoRequests));
        for replica in replicas {
            let queues = self.shown.entry(*replica).or_insert_with(|| vec![Vec::new(); QUEUES as usize]);
            for (queue, values) in (0..).zip(queues) {
                values.extend(
                    append::read_queue(env, &client, *replica, append::TOPIC, queue, values.len() as u64).await?,
                );
            }
        }
        verdict(&self.acknowledged, &self.shown).map_err(io::Error::other)
    }

    /// The same after a power failure of all replicas, which may have taken what it is allowed to. That is forgotten here,
    /// too: its places are given out again.
    pub async fn check_after(
        &mut self,
        env: &Env,
        replicas: &[SocketAddr],
        acknowledged: Vec<Append>,
        outage: Outage,
    ) -> io::Result<Lost> {
        self.acknowledged.extend(acknowledged);
        let mut anew = Judge::default();
        anew.check(env, replicas, Vec::new()).await?;
        let shown = anew.shown.values().next().ok_or_else(|| io::Error::other("there are no replicas"))?;
        let (lost, kept) = self.acknowledged.drain(..).partition::<Vec<_>, _>(|append| !is_there(append, shown));
        let taken = may_be_lost(&lost, outage).map_err(io::Error::other)?;
        *self = anew;
        self.check(env, replicas, kept).await?;
        Ok(taken)
    }

    /// Reads everything again from the start, from each replica, and judges that.
    pub async fn check_all(self, env: &Env, replicas: &[SocketAddr]) -> io::Result<()> {
        Judge::default().check(env, replicas, self.acknowledged).await
    }
}

fn verdict(acknowledged: &[Append], shown: &BTreeMap<SocketAddr, Shown>) -> Result<(), String> {
    for (replica, queues) in shown {
        nothing_lost(acknowledged, queues).map_err(|what| format!("{replica}: {what}"))?;
        nothing_twice(queues).map_err(|what| format!("{replica}: {what}"))?;
    }
    for ((one, a), (other, b)) in shown.iter().zip(shown.iter().skip(1)) {
        same(a, b).map_err(|what| format!("{one} and {other}: {what}"))?;
    }
    Ok(())
}

fn is_there(append: &Append, queues: &Shown) -> bool {
    queues[append.queue as usize].get(append.offset as usize) == Some(&append.value)
}

/// Whether all that is lost was acknowledged shortly before the cut.
fn may_be_lost(lost: &[Append], outage: Outage) -> Result<Lost, String> {
    if let Some(append) = lost.iter().find(|append| append.at >= outage.back) {
        return Err(format!("LOST: {append:?} was acknowledged after the power failure"));
    }
    // What arrived after the cut was on its way.
    let oldest = lost.iter().map(|append| outage.cut.saturating_sub(append.at)).max().unwrap_or_default();
    if oldest > outage.bound {
        return Err(format!(
            "LOST {} acknowledged appends, the oldest {oldest:?} before the cut; {:?} are allowed",
            lost.len(),
            outage.bound
        ));
    }
    Ok(Lost { count: lost.len(), oldest })
}

/// Every acknowledged append is at its place.
fn nothing_lost(acknowledged: &[Append], queues: &Shown) -> Result<(), String> {
    let there = |append: &Append| queues[append.queue as usize].get(append.offset as usize);
    let mut lost = acknowledged.iter().filter(|append| !is_there(append, queues));
    let Some(first) = lost.next() else { return Ok(()) };
    Err(format!(
        "LOST {} of {} acknowledged appends; the first: value {} at queue {} offset {}, where there is {:?} now",
        1 + lost.count(),
        acknowledged.len(),
        first.value,
        first.queue,
        first.offset,
        there(first)
    ))
}

/// No value stands at two places.
fn nothing_twice(queues: &Shown) -> Result<(), String> {
    let mut values = queues.concat();
    values.sort_unstable();
    match values.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => Err(format!("value {} stands at two places", pair[0])),
        None => Ok(()),
    }
}

/// As far as both go, they show the same.
fn same(a: &Shown, b: &Shown) -> Result<(), String> {
    for (queue, (a, b)) in a.iter().zip(b).enumerate() {
        if let Some(offset) = a.iter().zip(b).position(|(a, b)| a != b) {
            return Err(format!("{} and {} at queue {queue} offset {offset}", a[offset], b[offset]));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two acknowledged appends, 10 and 11, on queue 0; the two replicas show its values as given.
    fn judged(one: &[u64], other: &[u64]) -> Result<(), String> {
        let append = |offset, value| Append { queue: 0, offset, value, at: Duration::ZERO };
        let replica =
            |port, values: &[u64]| (SocketAddr::from(([127, 0, 0, 1], port)), vec![values.to_vec(), Vec::new()]);
        verdict(&[append(0, 10), append(1, 11)], &[replica(1, one), replica(2, other)].into())
    }

    #[test]
    fn what_was_not_acknowledged_may_be_there_or_not() {
        assert_eq!(judged(&[10, 11], &[10, 11]), Ok(()));
        assert_eq!(judged(&[10, 11, 12], &[10, 11]), Ok(()));
    }

    #[test]
    fn what_a_power_failure_of_all_may_take_is_young() {
        let ms = Duration::from_millis;
        let lost = |at: &[u64]| {
            let outage = Outage { cut: ms(9_000), back: ms(9_500), bound: ms(520) };
            let append = |at: &u64| Append { queue: 0, offset: 0, value: *at, at: ms(*at) };
            may_be_lost(&at.iter().map(append).collect::<Vec<_>>(), outage)
        };
        assert_eq!(lost(&[]), Ok(Lost::default()));
        assert_eq!(lost(&[8_480, 8_990]), Ok(Lost { count: 2, oldest: ms(520) }));
        assert_eq!(lost(&[9_010]), Ok(Lost { count: 1, oldest: ms(0) }), "its answer was on its way");
        assert!(
            lost(&[8_990, 8_479]).is_err_and(|told| told.starts_with("LOST 2 acknowledged appends, the oldest 521ms"))
        );
        assert!(lost(&[9_600]).is_err_and(|told| told.contains("after the power failure")));
    }

    #[test]
    fn bad_histories_are_told() {
        let told = |one: &[u64], other: &[u64], what: &str| {
            let error = judged(one, other).expect_err(what);
            assert!(error.contains(what), "{error}");
        };
        told(
            &[10, 11],
            &[10],
            "127.0.0.1:2: LOST 1 of 2 acknowledged appends; the first: value 11 at queue 0 offset 1",
        );
        told(&[12, 13], &[12, 13], "LOST 2 of 2 acknowledged appends");
        told(&[10, 11, 10], &[10, 11], "value 10 stands at two places");
        told(&[10, 11, 12], &[10, 11, 13], "12 and 13 at queue 0 offset 2");
    }
}
