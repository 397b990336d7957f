//! Replicas: what they say about themselves, and how long they are away.

use super::*;
use crate::checker::bounds::MS;
use crate::checker::{equality, liveness};

/// Replicas that tell the chain of one log, each as far as it has come; in the end all the same.
fn chain_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let process = run.take_process();
    let mut reached = [0_u64; NODES.len()];
    let hash = |index: u64| Edn::from(format!("{:016x}", index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let tell = |run: &mut Run, reached: &[u64]| {
        let told = NODES.iter().zip(reached);
        let told = told.map(|(node, index)| ((*node).into(), Edn::vector([Edn::from(*index), hash(*index)])));
        let told = Edn::Map(told.collect());
        run.record(process, Kind::Invoke, "chain", Edn::Nil);
        run.record(process, Kind::Ok, "chain", told);
    };
    for (who, how) in choices {
        reached[who % NODES.len()] += u64::from(how % 4);
        tell(&mut run, &reached);
    }
    let last = reached.iter().copied().max().unwrap_or_default();
    tell(&mut run, &[last; NODES.len()]);
    run.operations
}

/// One client that sends on and on, never waiting longer than the limit.
fn served_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let mut process = run.take_process();
    let (mut time, mut served) = (0, 0);
    for (value, (_, how)) in (0_i64..).zip(choices) {
        run.record(process, Kind::Invoke, "send", send(0, value, None)).time = time;
        let wait = u64::from(how / 8) * 60 * MS;
        let kind = match how % 8 {
            0 if time + wait - served < 3000 * MS => Kind::Info,
            1 if time + wait - served < 3000 * MS => Kind::Fail,
            _ => Kind::Ok,
        };
        time += wait;
        run.record(process, kind, "send", send(0, value, None)).time = time;
        if kind == Kind::Info {
            process = run.take_process();
        }
        if kind == Kind::Ok {
            served = time;
        }
    }
    run.operations
}

proptest! {
    #[test]
    fn equal_replicas_are_valid(choices in choices()) {
        is_valid(equality::check, &chain_history(&choices))?;
    }

    #[test]
    fn another_hash_is_caught(choices in choices(), draw in any::<prop::sample::Index>(), node in 0..NODES.len()) {
        let mut operations = chain_history(&choices);
        let last = operations.len() - 1;
        let Edn::Map(told) = &mut operations[last].value else { unreachable!() };
        let Edn::Vector(telling) = &mut told[node].1 else { unreachable!() };
        telling[1] = format!("another {}", draw.index(100)).into();
        is_caught(equality::check, operations)?;
    }

    #[test]
    fn served_clients_are_valid(choices in choices()) {
        is_valid(liveness::check, &served_history(&choices))?;
    }

    #[test]
    fn a_pause_beyond_the_limit_is_caught(choices in choices(), draw in any::<prop::sample::Index>()) {
        let mut operations = served_history(&choices);
        let oks = operations.iter().filter(|operation| operation.kind == Kind::Ok);
        let oks: Vec<u64> = oks.map(|operation| operation.index).collect();
        prop_assume!(!oks.is_empty());
        let late = oks[draw.index(oks.len())];
        let later = Bounds::default().outage_limit + 1;
        operations.iter_mut().filter(|operation| operation.index >= late).for_each(|operation| operation.time += later);
        is_caught(liveness::check, operations)?;
    }
}
