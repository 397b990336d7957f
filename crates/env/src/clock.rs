//! Wall time, monotonic time, sleeping.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A clock. Cheap to clone; clones of a simulated clock share its offset.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    start: tokio::time::Instant,
}

#[derive(Clone, Debug)]
enum Source {
    Real,
    Simulated(Arc<Simulated>),
}

/// A wall clock that a test can step and drift.
#[derive(Debug)]
struct Simulated {
    /// Milliseconds since the epoch at `start`, as if it had always drifted as it does now.
    base: AtomicI64,
    /// How much faster than the monotonic clock it runs, in parts per million.
    drift_ppm: AtomicI64,
}

impl Simulated {
    fn at(&self, monotonic: Duration) -> i64 {
        let drifted = drifted_ms(monotonic, self.drift_ppm.load(Ordering::Relaxed));
        self.base.load(Ordering::Relaxed) + monotonic.as_millis() as i64 + drifted
    }
}

fn drifted_ms(monotonic: Duration, ppm: i64) -> i64 {
    monotonic.as_millis() as i64 * ppm / 1_000_000
}

/// Simulated time starts on 2023-11-14: late enough for every client's sanity check, and easy to recognise.
const SIMULATED_START_MS: i64 = 1_700_000_000_000;

impl Clock {
    /// The machine's clock.
    #[allow(clippy::disallowed_methods)]
    pub fn real() -> Clock {
        Clock { source: Source::Real, start: tokio::time::Instant::now() }
    }

    /// A clock that advances with tokio's (paused) time, from a fixed date.
    #[allow(clippy::disallowed_methods)]
    pub fn simulated() -> Clock {
        Clock {
            source: Source::Simulated(Arc::new(Simulated {
                base: AtomicI64::new(SIMULATED_START_MS),
                drift_ppm: AtomicI64::new(0),
            })),
            start: tokio::time::Instant::now(),
        }
    }

    /// Milliseconds since the Unix epoch. May jump either way: never use it to measure a duration.
    #[allow(clippy::disallowed_methods)]
    pub fn wall_ms(&self) -> i64 {
        match &self.source {
            Source::Real => match SystemTime::now().duration_since(UNIX_EPOCH) {
                Ok(since) => since.as_millis() as i64,
                Err(before) => -(before.duration().as_millis() as i64),
            },
            Source::Simulated(wall) => wall.at(self.monotonic()),
        }
    }

    /// Time since this clock was made. Never goes back; stands still in no circumstance but a paused simulation.
    #[allow(clippy::disallowed_methods)]
    pub fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    /// Resolves after `duration`. Cancel-safe.
    #[allow(clippy::disallowed_methods)]
    pub async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await
    }

    /// Runs `future` for at most `limit`; `None` if it did not end in time (it is dropped).
    #[allow(clippy::disallowed_methods)]
    pub async fn timeout<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        tokio::time::timeout(limit, future).await.ok()
    }

    /// Ticks every `period`, for the first time one `period` from now.
    #[allow(clippy::disallowed_methods)]
    pub fn ticks(&self, period: Duration) -> Ticks {
        let mut interval = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Ticks(interval)
    }

    /// Moves a simulated wall clock by `by_ms`; the monotonic clock does not see it. Panics on the real clock.
    pub fn step_wall(&self, by_ms: i64) {
        match &self.source {
            Source::Real => panic!("the real clock is not ours to step"),
            Source::Simulated(wall) => {
                wall.base.fetch_add(by_ms, Ordering::Relaxed);
            }
        }
    }

    /// From now on a simulated wall clock gains `ppm` microseconds a second. To be called in the runtime in whose time the
    /// clock lives: elsewhere it is another time. Panics there, and on the real clock.
    pub fn drift_wall(&self, ppm: i64) {
        assert!(
            tokio::runtime::Handle::try_current().is_ok(),
            "a clock is bent in its runtime's time, not outside of it"
        );
        match &self.source {
            Source::Real => panic!("the real clock is not ours to bend"),
            Source::Simulated(wall) => {
                let monotonic = self.monotonic();
                let before = wall.drift_ppm.swap(ppm, Ordering::Relaxed);
                let gained = drifted_ms(monotonic, before) - drifted_ms(monotonic, ppm);
                wall.base.fetch_add(gained, Ordering::Relaxed);
            }
        }
    }
}

/// A tick every so often. What is missed is not made up for.
///
/// In a `select!` that loops, a sleep is made anew on each turn, and other branches put it off for ever; this is not put
/// off.
#[derive(Debug)]
pub struct Ticks(tokio::time::Interval);

impl Ticks {
    /// Resolves at the next tick. Cancel-safe.
    pub async fn next(&mut self) {
        self.0.tick().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn simulated_time_passes_only_by_waiting() {
        let clock = Clock::simulated();
        assert_eq!((clock.wall_ms(), clock.monotonic()), (SIMULATED_START_MS, Duration::ZERO));
        clock.sleep(Duration::from_secs(3600)).await;
        assert_eq!((clock.wall_ms(), clock.monotonic()), (SIMULATED_START_MS + 3_600_000, Duration::from_secs(3600)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_step_moves_the_wall_clock_of_all_clones_and_no_other() {
        let (clock, other) = (Clock::simulated(), Clock::simulated());
        clock.clone().step_wall(-5000);
        assert_eq!((clock.wall_ms(), clock.monotonic()), (SIMULATED_START_MS - 5000, Duration::ZERO));
        assert_eq!(other.wall_ms(), SIMULATED_START_MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_wall_clock_drifts_from_where_it_is_and_goes_on_from_there() {
        let clock = Clock::simulated();
        let second = Duration::from_secs(1);
        clock.sleep(10 * second).await;
        clock.drift_wall(1000);
        assert_eq!(clock.wall_ms(), SIMULATED_START_MS + 10_000);
        clock.sleep(10 * second).await;
        assert_eq!(clock.wall_ms(), SIMULATED_START_MS + 20_010);
        clock.drift_wall(-500);
        clock.sleep(10 * second).await;
        assert_eq!(clock.wall_ms(), SIMULATED_START_MS + 30_005);
        assert_eq!(clock.monotonic(), 30 * second);
    }

    #[test]
    #[should_panic(expected = "in its runtime's time")]
    fn a_clock_is_not_bent_outside_of_its_runtime() {
        Clock::simulated().drift_wall(1000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_timeout_ends_what_takes_too_long() {
        let clock = Clock::simulated();
        let second = Duration::from_secs(1);
        assert_eq!(clock.timeout(second, std::future::pending::<()>()).await, None);
        assert_eq!(clock.monotonic().as_secs(), 1);
        assert_eq!(clock.timeout(second, async { 7 }).await, Some(7));
    }

    #[tokio::test(start_paused = true)]
    async fn ticks_come_although_something_else_comes_more_often() {
        let clock = Clock::simulated();
        let mut ticks = clock.ticks(Duration::from_secs(1));
        let mut ticked = Vec::new();
        while ticked.len() < 3 {
            tokio::select! { biased;
                () = clock.sleep(Duration::from_millis(300)) => {}
                () = ticks.next() => ticked.push(clock.monotonic().as_millis()),
            }
        }
        assert_eq!(ticked, [1000, 2000, 3000]);
    }

    #[test]
    fn the_real_clock_is_past_the_day_this_was_written() {
        let clock = Clock::real();
        assert!(clock.wall_ms() > SIMULATED_START_MS);
        let before = clock.monotonic();
        assert!(clock.monotonic() >= before);
    }
}
