//! Messages that leave at a fixed rate, whatever becomes of those before them.

use std::time::Duration;

use env::Clock;
use futures::stream::{FuturesUnordered, StreamExt};

/// Messages that fall due together leave together, this often.
const TICK: Duration = Duration::from_millis(1);

/// Calls `send` with the moment at which each message should leave, from now until `until`, and `ended` with what became of
/// each. Resolves when none is on its way any more.
pub async fn at_rate<F: Future>(
    clock: &Clock,
    per_s: u64,
    until: Duration,
    send: impl Fn(Duration) -> F,
    mut ended: impl FnMut(F::Output),
) {
    let mut on_their_way = FuturesUnordered::new();
    let (start, mut sent) = (clock.monotonic(), 0_u64);
    loop {
        let now = clock.monotonic();
        let due = ((now.min(until) - start).as_secs_f64() * per_s as f64) as u64;
        while sent < due {
            on_their_way.push(send(start + Duration::from_secs_f64(sent as f64 / per_s as f64)));
            sent += 1;
        }
        if now >= until && on_their_way.is_empty() {
            return;
        }
        tokio::select! {
            biased;
            Some(outcome) = on_their_way.next() => ended(outcome),
            () = clock.sleep(TICK), if now < until => {}
        }
    }
}
