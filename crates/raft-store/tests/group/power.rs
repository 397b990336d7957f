//! Power fails: of one member, of a majority, of all at once, at any moment. What was not synced survives by chance.
//! Nothing that was acknowledged may be lost, and replicas end equal.

use std::time::Duration;

use env::Rng;
use raft_store::proposer::ProposeError;

use crate::three::Three;
use crate::world::{Ledger, record};

impl Three {
    /// Power fails at these members, at the same moment.
    async fn lose_power(&mut self, members: &[usize], rng: &Rng) {
        for at in members {
            self.places[*at].disk.as_ref().expect("a simulated disk").crash(rng);
        }
        for at in members {
            self.kill(*at).await;
        }
    }
}

/// Sends for a while, to whoever leads, with several in flight; power fails meanwhile.
async fn send_while_power_fails(three: &mut Three, ledger: &mut Ledger, members: &[usize], round: u64, rng: &Rng) {
    let leader = three.leader().await;
    let group = three.group(leader).clone();
    let clock = three.places[0].env.clock.clone();
    let sends: Vec<_> = (0..64)
        .map(|number| {
            let (group, text) = (group.clone(), format!("round-{round}-{number}"));
            tokio::spawn(async move { (group.propose(vec![record(&text)]).await, text) })
        })
        .collect();
    clock.sleep(Duration::from_millis(rng.below(30))).await;
    three.lose_power(members, rng).await;
    for send in sends {
        let (answer, text) = send.await.unwrap();
        let _ = ledger.note(answer, &text);
    }
}

#[tokio::test]
async fn nothing_acknowledged_is_lost_when_power_fails_anywhere() {
    crate::world::log_if_asked();
    for seed in [11, 12] {
        println!("seed {seed}");
        let rng = Rng::seeded(seed);
        let mut three = Three::open(Three::simulated_places(seed)).await;
        let mut ledger = Ledger::default();
        for round in 0..8 {
            let leader = three.leader().await;
            let members: Vec<usize> = match rng.below(4) {
                0 => vec![leader],
                1 => vec![(leader + 1) % 3],
                2 => vec![leader, (leader + 1) % 3],
                _ => vec![0, 1, 2],
            };
            send_while_power_fails(&mut three, &mut ledger, &members, round, &rng).await;
            // Together: founders that have history wait for nobody, but a majority must be there to lead.
            for at in members {
                three.start(at).await;
            }
            let leader = three.leader().await;
            let answer = ledger.send(three.group(leader), &format!("after-{round}")).await;
            // Leadership may move right after a start.
            assert!(
                matches!(answer, Ok(_) | Err(ProposeError::NotLeader { .. } | ProposeError::Unknown)),
                "{answer:?}"
            );
        }
        three.converge().await;
        three.check(&ledger).await;
        assert!(ledger.acknowledged.len() > 50, "{} were acknowledged", ledger.acknowledged.len());
        three.stop().await;
    }
}
