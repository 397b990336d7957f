//! Groups that flush by a timer: power fails at a minority and nothing is lost, because the word of whoever may have
//! forgotten does not count; at all of them, and what is lost is no older than the flush interval.

use std::time::Duration;

use env::Rng;
use raft_store::identity::FlushMode;
use raft_store::position::QueueOffset;

use crate::three::Three;
use crate::world::{Ledger, QUEUE, record, within};

const FLUSH_INTERVAL: Duration = Duration::from_millis(200);

fn by_timer(seed: u64) -> Vec<crate::world::Place> {
    let mut places = Three::simulated_places(seed);
    for place in &mut places {
        place.options.flush_mode = FlushMode::AsyncFlush;
        place.options.flush_interval_ms = FLUSH_INTERVAL.as_millis() as u64;
    }
    places
}

impl Three {
    async fn lose_all_that_is_unsynced(&mut self, members: &[usize]) {
        for at in members {
            self.places[*at].disk.as_ref().expect("a simulated disk").crash_keeping(|_| false);
        }
        for at in members {
            self.kill(*at).await;
        }
    }

    async fn no_longer_on_probation(&self, at: usize) {
        let group = self.group(at);
        let over = async {
            while group.status().on_probation {
                self.places[at].env.clock.sleep(Duration::from_millis(10)).await;
            }
        };
        within(&self.places[at].env, 20, "the end of the probation", over).await;
    }
}

#[tokio::test]
async fn a_minority_that_forgets_does_not_vote_and_nothing_is_lost() {
    let mut three = Three::open(by_timer(31)).await;
    let mut ledger = Ledger::default();
    let rng = Rng::seeded(31);
    let mut forgotten = 0;
    for round in 0..8 {
        let leader = three.leader().await;
        for number in 0..20 {
            let _ = ledger.send(three.group(leader), &format!("{round}-{number}")).await;
        }
        // One machine goes down with all that it has not flushed. Then the two others meet alone as well: the one that
        // forgot must not have helped a log without the messages to office.
        let victim = (leader + rng.below(3) as usize) % 3;
        let before = three.group(victim).log().last();
        three.lose_all_that_is_unsynced(&[victim]).await;
        three.start(victim).await;
        assert!(three.group(victim).status().on_probation || three.group(victim).reader().applied() >= before);
        forgotten += usize::from(three.group(victim).status().on_probation);
        three.leader().await;
        three.no_longer_on_probation(victim).await;
        let killed = three.leader().await;
        if killed != victim {
            three.kill(killed).await;
            let next = three.leader().await;
            let _ = ledger.send(three.group(next), &format!("{round}-alone")).await;
            three.start(killed).await;
        }
    }
    three.converge().await;
    three.check(&ledger).await;
    assert!(forgotten >= 4, "{forgotten} of 8 came back on probation");
    assert!(ledger.acknowledged.len() > 100, "{} were acknowledged", ledger.acknowledged.len());
    three.stop().await;
}

/// A message is on two replicas. One of them forgets it, the other is away: it must not help the third, which never had
/// the message, to office.
#[tokio::test]
pub async fn who_has_forgotten_and_who_never_knew_are_no_majority() {
    let mut three = Three::open(by_timer(51)).await;
    let clock = three.places[0].env.clock.clone();
    let mut ledger = Ledger::default();
    let leader = three.leader().await;
    let (forgets, never_knew) = ((leader + 1) % 3, (leader + 2) % 3);
    three.converge().await;
    three.kill(never_knew).await;
    for number in 0..10 {
        ledger.send(three.group(leader), &format!("message-{number}")).await.unwrap();
    }
    three.lose_all_that_is_unsynced(&[forgets]).await;
    three.kill(leader).await;
    three.start(forgets).await;
    three.start(never_knew).await;
    {
        let leads = three.running().map(|(_, group)| Box::pin(crate::world::until_ready(group)));
        let led = clock.timeout(Duration::from_secs(2), futures::future::select_all(leads)).await;
        assert!(led.is_none(), "they have made a group without what was acknowledged");
    }
    three.start(leader).await;
    assert_eq!(three.leader().await, leader);
    three.no_longer_on_probation(forgets).await;
    three.converge().await;
    three.check(&ledger).await;
    three.stop().await;
}

#[tokio::test]
async fn all_machines_down_is_no_election_until_somebody_says_so_and_what_is_lost_is_young() {
    let mut three = Three::open(by_timer(41)).await;
    let clock = three.places[0].env.clock.clone();
    let leader = three.leader().await;
    let mut ledger = Ledger::default();
    let mut acknowledged: Vec<(QueueOffset, Duration)> = Vec::new();
    // Until some time after a flush everybody holds something that nobody has flushed.
    for number in 0.. {
        let offset = ledger.send(three.group(leader), &format!("message-{number}")).await.unwrap();
        acknowledged.push((offset, clock.monotonic()));
        let unflushed =
            |index: u64| three.running().all(|(_, group)| group.log().synced().borrow().index < Some(index));
        if number >= 60 && unflushed(three.group(leader).log().last().unwrap().index) {
            break;
        }
        clock.sleep(Duration::from_millis(10)).await;
    }
    let cut = clock.monotonic();
    let longest_flush = three.running().map(|(_, group)| group.status().log.sync_longest).max().unwrap();
    three.lose_all_that_is_unsynced(&[0, 1, 2]).await;

    let three = Three::open(three.places).await;
    assert!(three.running().all(|(_, group)| group.status().on_probation));
    {
        let leads = three.running().map(|(_, group)| Box::pin(crate::world::until_ready(group)));
        let led = clock.timeout(Duration::from_secs(3), futures::future::select_all(leads)).await;
        assert!(led.is_none(), "nobody's word counts");
    }
    let Three { mut places, groups } = three;
    for group in groups.into_iter().flatten() {
        group.stop().await.unwrap();
    }

    // A clean stop does not wash it away; the operator's word does.
    for place in &mut places {
        place.options.async_auto_recover = true;
    }
    let three = Three::open(places).await;
    let leader = three.leader().await;
    assert!(!three.group(leader).status().on_probation);
    three.group(leader).propose(vec![record("from here on")]).await.unwrap();
    let kept = three.group(leader).reader().queue(QUEUE).expect("the queue").bounds().end;
    let lost: Vec<_> = acknowledged.iter().filter(|(offset, _)| offset.0 + 1 >= kept.0).collect();
    println!("{} of {} acknowledged were lost", lost.len(), acknowledged.len());
    assert!(!lost.is_empty(), "with nothing lost this shows nothing");
    for (offset, at) in lost {
        let age = cut - *at;
        assert!(age <= FLUSH_INTERVAL + longest_flush, "{offset} was lost {age:?} after its acknowledgement");
    }
    three.stop().await;
}
