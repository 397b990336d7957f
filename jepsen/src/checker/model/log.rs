//! Queues: what is sent, polled, and read from every replica at the end.

use super::*;
use crate::checker::{append, loss, one_value, visibility};

fn poll(queue: usize, from: usize, values: &[i64]) -> Edn {
    let places = values.iter().zip(from..).map(|(value, offset)| Edn::vector([Edn::from(offset), (*value).into()]));
    let queues = Edn::Map(vec![(queue.into(), Edn::vector(places))]);
    Edn::vector([Edn::vector([Edn::keyword("poll"), queues])])
}

/// What a client is at.
enum At {
    Idle,
    Send { queue: usize, value: i64, offset: Option<usize> },
    Poll { queue: usize, read: Option<(usize, Vec<i64>)> },
}

/// Sends and polls of some clients, then every queue read from every replica.
fn log_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let mut queues: [Vec<i64>; QUEUES] = Default::default();
    let mut clients: Vec<(u64, At, [usize; QUEUES])> =
        (0..CLIENTS).map(|_| (run.take_process(), At::Idle, [0; QUEUES])).collect();
    let mut limbo: Vec<(usize, i64)> = Vec::new();
    let mut next_value = 0;
    for (who, how) in choices {
        let (process, at, positions) = &mut clients[*who];
        let queue = usize::from(how / 16) % QUEUES;
        *at = match (std::mem::replace(at, At::Idle), how % 8) {
            (At::Idle, 0) => {
                // Long after nobody waits for it any more.
                limbo.pop().into_iter().for_each(|(queue, value)| queues[queue].push(value));
                At::Idle
            }
            (At::Idle, 1 | 2) => {
                run.record(*process, Kind::Invoke, "poll", Edn::vector([Edn::vector([Edn::keyword("poll")])]));
                At::Poll { queue, read: None }
            }
            (At::Idle, _) => {
                next_value += 1;
                run.record(*process, Kind::Invoke, "send", send(queue, next_value, None));
                At::Send { queue, value: next_value, offset: None }
            }
            (At::Send { queue, value, offset }, 0) => {
                run.record(*process, Kind::Info, "send", send(queue, value, None));
                if offset.is_none() {
                    limbo.push((queue, value));
                }
                *process = run.take_process();
                *positions = [0; QUEUES];
                At::Idle
            }
            (At::Send { queue, value, offset: None }, 1) => {
                run.record(*process, Kind::Fail, "send", send(queue, value, None));
                At::Idle
            }
            (At::Send { queue, value, offset: None }, _) => {
                queues[queue].push(value);
                At::Send { queue, value, offset: Some(queues[queue].len() - 1) }
            }
            (At::Send { queue, value, offset }, _) => {
                run.record(*process, Kind::Ok, "send", send(queue, value, offset));
                At::Idle
            }
            (At::Poll { queue, read: None }, _) => {
                let from = positions[queue];
                positions[queue] = queues[queue].len();
                At::Poll { queue, read: Some((from, queues[queue][from..].to_vec())) }
            }
            (At::Poll { queue, read: Some((from, values)) }, _) => {
                run.record(*process, Kind::Ok, "poll", poll(queue, from, &values));
                At::Idle
            }
        };
    }
    let reader = run.take_process();
    for node in NODES {
        for (queue, values) in queues.iter().enumerate() {
            for kind in [Kind::Invoke, Kind::Ok] {
                let read = run.record(reader, kind, "final-read", poll(queue, 0, values));
                read.extra.push(("node".into(), node.into()));
            }
        }
    }
    run.operations
}

/// The places that a read shows.
fn places(operation: &mut Operation) -> Option<&mut Vec<Edn>> {
    let Edn::Vector(items) = &mut operation.value else { return None };
    let Some(Edn::Vector(poll)) = items.first_mut() else { return None };
    let Some(Edn::Map(queues)) = poll.get_mut(1) else { return None };
    let Some((_, Edn::Vector(places))) = queues.first_mut() else { return None };
    Some(places)
}

/// Places of the completed operations of a kind that show at least so many values.
fn showing(operations: &[Operation], f: &str, least: usize) -> Vec<usize> {
    let shows = |operation: &&Operation| {
        let mut operation = (*operation).clone();
        operation.kind == Kind::Ok
            && *operation.f == *f
            && places(&mut operation).is_some_and(|places| places.len() >= least)
    };
    operations.iter().filter(shows).map(|operation| operation.index as usize).collect()
}

proptest! {
    #[test]
    fn a_sound_log_is_valid(choices in choices()) {
        let operations = log_history(&choices);
        for check in [append::check, one_value::check, loss::check, visibility::check] {
            is_valid(check, &operations)?;
        }
    }

    #[test]
    fn two_appends_that_change_places_are_caught(choices in choices(), draw in any::<prop::sample::Index>()) {
        let mut operations = log_history(&choices);
        operations.retain(|operation| &*operation.f == "send");
        let history = History::new(operations.clone()).expect("still sound");
        let log = Log::of(&history).expect("a sound log");
        let sends: Vec<_> = log.acknowledged().collect();
        let ordered: Vec<_> = sends
            .iter()
            .flat_map(|before| sends.iter().map(move |after| (before, after)))
            .filter(|(before, after)| before.queue == after.queue && before.end < after.start)
            .collect();
        prop_assume!(!ordered.is_empty());
        let (before, after) = ordered[draw.index(ordered.len())];
        for (one, other) in [(before, after), (after, before)] {
            let offset = other.offset.map(|offset| offset as usize);
            operations[one.end as usize].value = send(one.queue as usize, one.value, offset);
        }
        is_caught(append::check, operations)?;
    }

    #[test]
    fn a_value_shown_at_the_place_of_another_is_caught(choices in choices(), draw in any::<prop::sample::Index>()) {
        let mut operations = log_history(&choices);
        let reads = showing(&operations, "final-read", 2);
        prop_assume!(!reads.is_empty());
        let places = places(&mut operations[reads[draw.index(reads.len())]]).expect("it shows places");
        let last = places.len() - 1;
        let Edn::Vector(place) = places[draw.index(last)].clone() else { unreachable!() };
        let Edn::Vector(other) = &mut places[last] else { unreachable!() };
        other[1] = place[1].clone();
        is_caught(one_value::check, operations)?;
    }

    #[test]
    fn an_acknowledged_value_that_a_replica_does_not_show_is_caught(
        choices in choices(),
        draw in any::<prop::sample::Index>(),
        node in 0..NODES.len(),
    ) {
        let mut operations = log_history(&choices);
        let history = History::new(operations.clone()).expect("a sound history");
        let log = Log::of(&history).expect("a sound log");
        let sends: Vec<_> = log.acknowledged().collect();
        prop_assume!(!sends.is_empty());
        let send = sends[draw.index(sends.len())];
        for operation in operations.iter_mut().filter(|operation| &*operation.f == "final-read") {
            if operation.extra("node").and_then(Edn::as_str) == Some(NODES[node])
                && let Some(places) = places(operation)
            {
                places.retain(|place| place.as_vector().is_none_or(|place| place[1] != Edn::Int(send.value)));
            }
        }
        is_caught(loss::check, operations)?;
    }

    #[test]
    fn a_poll_that_skips_or_goes_back_is_caught(
        choices in choices(),
        draw in any::<prop::sample::Index>(),
        back in any::<bool>(),
    ) {
        let mut operations = log_history(&choices);
        let polls = showing(&operations, "poll", 3);
        prop_assume!(!polls.is_empty());
        let places = places(&mut operations[polls[draw.index(polls.len())]]).expect("it shows places");
        let at = 1 + draw.index(places.len() - 2);
        if back {
            places.swap(at, at + 1);
        } else {
            places.remove(at);
        }
        is_caught(visibility::check, operations)?;
    }
}
