//! Registers: consumer offsets and metadata.

use super::*;
use crate::checker::{metadata, offsets};

/// Two-way and one-way updates and queries of the offsets of two queues.
fn offsets_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let mut registers: [Option<(u64, usize)>; QUEUES] = [None; QUEUES];
    // Process, and the operation it is at: queue, offset to set if any, whether it has taken effect, what it found.
    type Pending = (usize, Option<u64>, bool, Option<u64>);
    let mut clients: Vec<(u64, Option<Pending>)> = (0..CLIENTS).map(|_| (run.take_process(), None)).collect();
    let mut highest = 0;
    let access =
        |queue: usize, offset: Option<u64>| Edn::vector([Edn::vector([Edn::from("g"), queue.into()]), offset.into()]);
    for (who, how) in choices {
        let (process, pending) = &mut clients[*who];
        let queue = usize::from(how / 16) % QUEUES;
        // Client 0 alone sends one-way.
        let one_way = *who == 0;
        *pending = match pending.take() {
            None if how % 4 == 0 => {
                run.record(*process, Kind::Invoke, "query-offset", access(queue, None));
                Some((queue, None, false, None))
            }
            None => {
                // Two-way updates go back now and then; the one-way ones of a client only forward.
                highest += 1;
                let offset = if how % 4 == 1 && !one_way { highest / 2 } else { highest };
                let invocation = run.record(*process, Kind::Invoke, "update-offset", access(queue, Some(offset)));
                invocation.extra = vec![("client".into(), who.to_string().into()), ("one-way".into(), one_way.into())];
                Some((queue, Some(offset), false, None))
            }
            Some((queue, Some(offset), applied, _)) if how % 8 == 0 || applied && one_way => {
                run.record(*process, Kind::Info, "update-offset", access(queue, Some(offset)));
                *process = run.take_process();
                None
            }
            Some((queue, update, false, _)) => {
                let register = &mut registers[queue];
                let late = update.is_some_and(|offset| {
                    one_way && register.is_some_and(|(known, writer)| offset < known && writer != *who)
                });
                if let Some(offset) = update.filter(|_| !late) {
                    *register = Some((offset, *who));
                }
                Some((queue, update, true, register.map(|(offset, _)| offset)))
            }
            Some((queue, update, true, found)) => {
                let (f, told) = if update.is_some() { ("update-offset", update) } else { ("query-offset", found) };
                run.record(*process, Kind::Ok, f, access(queue, told));
                None
            }
        };
    }
    run.operations
}

/// Writes, deletions and reads of two topics, then what every replica knows.
fn metadata_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let mut topics: [Edn; QUEUES] = [Edn::Nil, Edn::Nil];
    // Process, and the operation it is at: topic, what to write if anything, what it found once it has taken effect.
    type Pending = (usize, Option<Edn>, Option<Edn>);
    let mut clients: Vec<(u64, Option<Pending>)> = (0..CLIENTS).map(|_| (run.take_process(), None)).collect();
    let access = |topic: usize, value: Edn| Edn::vector([Edn::from(format!("topic/{topic}")), value]);
    for (value, (who, how)) in (0_i64..).zip(choices) {
        let (process, pending) = &mut clients[*who];
        let topic = usize::from(how / 16) % QUEUES;
        let f = |write: &Option<Edn>| if write.is_some() { "metadata-write" } else { "metadata-read" };
        *pending = match pending.take() {
            None => {
                let write = match how % 4 {
                    0 => None,
                    1 => Some(Edn::Nil),
                    _ => Some(Edn::Int(value)),
                };
                run.record(*process, Kind::Invoke, f(&write), access(topic, write.clone().unwrap_or(Edn::Nil)));
                Some((topic, write, None))
            }
            Some((topic, write, _)) if how % 8 == 0 => {
                run.record(*process, Kind::Info, f(&write), access(topic, write.clone().unwrap_or(Edn::Nil)));
                *process = run.take_process();
                None
            }
            Some((topic, write, None)) => {
                topics[topic] = write.clone().unwrap_or(topics[topic].clone());
                Some((topic, write, Some(topics[topic].clone())))
            }
            Some((topic, write, Some(found))) => {
                run.record(*process, Kind::Ok, f(&write), access(topic, found));
                None
            }
        };
    }
    let reader = run.take_process();
    let known = topics.iter().enumerate().filter(|(_, value)| **value != Edn::Nil);
    let known: Vec<(Edn, Edn)> = known.map(|(topic, value)| (format!("topic/{topic}").into(), value.clone())).collect();
    for node in NODES {
        for kind in [Kind::Invoke, Kind::Ok] {
            let scan = run.record(reader, kind, "metadata-scan", Edn::Map(known.clone()));
            scan.extra.push(("node".into(), node.into()));
        }
    }
    run.operations
}

proptest! {
    #[test]
    fn sound_metadata_is_valid(choices in choices()) {
        is_valid(metadata::check, &metadata_history(&choices))?;
    }

    #[test]
    fn a_topic_that_comes_back_is_caught(choices in choices(), write in any::<bool>()) {
        let operations = metadata_history(&choices);
        let process = operations.len() as u64 + 1000;
        let mut run = Run { operations, processes: process };
        let topic = |value: Edn| Edn::vector([Edn::from("topic/back"), value]);
        for (f, value) in [("metadata-write", Edn::Int(7)), ("metadata-write", Edn::Nil)] {
            run.record(process, Kind::Invoke, f, topic(value.clone()));
            run.record(process, Kind::Ok, f, topic(value));
        }
        if write {
            run.record(process, Kind::Invoke, "metadata-read", topic(Edn::Nil));
            run.record(process, Kind::Ok, "metadata-read", topic(Edn::Int(7)));
        } else {
            let known = Edn::Map(vec![("topic/back".into(), Edn::Int(7))]);
            run.record(process, Kind::Invoke, "metadata-scan", Edn::Nil);
            run.record(process, Kind::Ok, "metadata-scan", known);
        }
        is_caught(metadata::check, run.operations)?;
    }

    #[test]
    fn sound_offsets_are_valid(choices in choices()) {
        is_valid(offsets::check, &offsets_history(&choices))?;
    }

    #[test]
    fn an_offset_from_the_past_is_caught(choices in choices()) {
        let mut operations = offsets_history(&choices);
        // Behind everything, somebody sets the offset and is told something else.
        let process = operations.len() as u64 + 1000;
        let mut run = Run { operations: std::mem::take(&mut operations), processes: process };
        let access = |offset: i64| Edn::vector([Edn::vector([Edn::from("h"), 0_i64.into()]), offset.into()]);
        for (f, asked, told) in [("update-offset", 8, 8), ("update-offset", 3, 3), ("query-offset", -1, 8)] {
            let asked = if asked < 0 { access(0) } else { access(asked) };
            run.record(process, Kind::Invoke, f, asked);
            run.record(process, Kind::Ok, f, access(told));
        }
        is_caught(offsets::check, run.operations)?;
    }
}
