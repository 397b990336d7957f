//! The judge of clauses 1, 2 and 3: what was acknowledged against what each replica shows.
//!
//! It remembers the whole run. [`Judge::check`] reads only what a replica has not shown yet; [`check_all`] asks for
//! everything again. Both judge all of it: every acknowledged append stands at its place on each replica, no two replicas
//! show different values at one place, and no value stands at two.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use env::Env;
use remoting::{Client, Limits, NoRequests};

use crate::append::{self, Append, QUEUES};

/// What a replica has shown: the values of each queue, by offset.
type Shown = Vec<Vec<u64>>;

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
                values.extend(append::read_queue(env, &client, *replica, queue, values.len() as u64).await?);
            }
        }
        verdict(&self.acknowledged, &self.shown).map_err(io::Error::other)
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

/// Every acknowledged append is at its place.
fn nothing_lost(acknowledged: &[Append], queues: &Shown) -> Result<(), String> {
    let there = |append: &Append| queues[append.queue as usize].get(append.offset as usize);
    let mut lost = acknowledged.iter().filter(|append| there(append) != Some(&append.value));
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
        let append = |offset, value| Append { queue: 0, offset, value };
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
