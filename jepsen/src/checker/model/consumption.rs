//! Consumption: in order, at least once, and not before its time.

use super::*;
use crate::checker::bounds::MS;
use crate::checker::{delay, delivery, orderly};

/// A queue of acknowledged messages, consumed in order by one process after the other, with some wanted again and some
/// processes crashed; then drained.
fn consumed_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let producer = run.take_process();
    let count = choices.len() / 4 + 1;
    for value in 0..count {
        run.record(producer, Kind::Invoke, "send", send(0, value as i64, None));
        run.record(producer, Kind::Ok, "send", send(0, value as i64, Some(value)));
    }
    let mut consumer = run.take_process();
    let mut consume = |run: &mut Run, offset: usize, end: Kind| {
        for kind in [Kind::Invoke, end] {
            let value = Edn::vector([Edn::from("g"), (offset as i64).into()]);
            let operation = run.record(consumer, kind, "consume-orderly", value);
            operation.extra = vec![("queue".into(), 0_i64.into()), ("offset".into(), offset.into())];
        }
        if end == Kind::Info {
            consumer = run.take_process();
        }
    };
    let (mut next, mut committed) = (0, 0);
    for (_, how) in choices {
        match how % 8 {
            _ if next == count => break,
            0 => consume(&mut run, next, Kind::Fail),
            1 => {
                consume(&mut run, next, Kind::Info);
                next = committed;
            }
            2 => committed = next,
            _ => {
                consume(&mut run, next, Kind::Ok);
                next += 1;
            }
        }
    }
    (next..count).for_each(|offset| consume(&mut run, offset, Kind::Ok));
    for kind in [Kind::Invoke, Kind::Ok] {
        run.record(producer, kind, "drain", "g".into());
    }
    run.operations
}

/// Messages with delays, each seen between its time and the limit, by a broker whose clock is off by as much as declared.
fn delayed_history(choices: &[Choice]) -> Vec<Operation> {
    let mut run = Run::default();
    let process = run.take_process();
    let mut start = 0;
    for (value, (slack, how)) in (0_i64..).zip(choices) {
        let delay_ms = u64::from(how % 16) * 100;
        // From as early as the declared bound allows to 9 s late.
        let seen = (start + delay_ms * MS + *slack as u64 * 3000 * MS).saturating_sub(10 * MS).max(start + MS);
        let consume = Edn::vector([Edn::from("g"), value.into()]);
        let steps = [
            (start, Kind::Invoke, "send", send(0, value, None)),
            (start + MS / 2, Kind::Ok, "send", send(0, value, None)),
            (seen, Kind::Invoke, "consume", consume.clone()),
            (seen, Kind::Ok, "consume", consume),
        ];
        for (time, kind, f, told) in steps {
            let operation = run.record(process, kind, f, told);
            operation.time = time;
            if f == "send" {
                operation.extra = vec![("delay-ms".into(), delay_ms.into())];
            }
        }
        start = seen + MS;
    }
    run.operations
}

proptest! {
    #[test]
    fn a_sound_delay_is_valid(choices in choices()) {
        is_valid(delay::check, &delayed_history(&choices))?;
    }

    #[test]
    fn a_message_before_its_time_is_caught(choices in choices(), draw in any::<prop::sample::Index>()) {
        let mut operations = delayed_history(&choices);
        let sends = operations.iter().filter(|operation| &*operation.f == "send" && operation.kind == Kind::Invoke);
        let sends: Vec<usize> = sends.map(|operation| operation.index as usize).collect();
        prop_assume!(!sends.is_empty());
        let send = sends[draw.index(sends.len())];
        // Three steps later it was seen; it had been promised for 20 ms after that.
        let seen_after_ms = (operations[send + 2].time - operations[send].time).div_ceil(MS);
        operations[send].extra = vec![("delay-ms".into(), (seen_after_ms + 20).into())];
        is_caught(delay::check, operations)?;
    }

    #[test]
    fn sound_consumption_is_valid(choices in choices()) {
        let operations = consumed_history(&choices);
        is_valid(delivery::check, &operations)?;
        is_valid(orderly::check, &operations)?;
    }

    #[test]
    fn a_message_that_was_never_consumed_is_caught(choices in choices(), draw in any::<prop::sample::Index>()) {
        let mut operations = consumed_history(&choices);
        let value = draw.index(choices.len() / 4 + 1) as i64;
        operations.retain(|operation| {
            &*operation.f != "consume-orderly" || operation.value.as_vector().is_none_or(|value_of| value_of[1] != Edn::Int(value))
        });
        is_caught(delivery::check, operations.clone())?;
        // At the beginning nobody knows where the group began, and at the end nothing is begun behind it.
        if value > 0 && value < (choices.len() / 4) as i64 {
            is_caught(orderly::check, operations)?;
        }
    }
}
