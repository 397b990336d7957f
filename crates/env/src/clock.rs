//! Wall time, monotonic time, sleeping; and a date that a test moves ahead.
//!
//! Dates and patience are two things. What is promised by the date (a delay, a lease, how long a message is kept) is judged
//! by [`Clock::wall_ms`] and [`Clock::elapsed`], which [`Clock::advance`] moves; how long to wait for an answer is judged by
//! [`Clock::monotonic`], which nothing moves.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::sync::watch;

/// A clock. Cheap to clone; clones of a manual or simulated clock share its offset.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    start: tokio::time::Instant,
}

#[derive(Clone, Debug)]
enum Source {
    Real,
    /// The machine's, with what was added to its date.
    Manual(Arc<watch::Sender<Duration>>),
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

    /// The machine's clock, whose date [`Clock::advance`] moves ahead.
    #[allow(clippy::disallowed_methods)]
    pub fn manual() -> Clock {
        let advanced = Arc::new(watch::Sender::new(Duration::ZERO));
        Clock { source: Source::Manual(advanced), start: tokio::time::Instant::now() }
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
    pub fn wall_ms(&self) -> i64 {
        self.wall_and_elapsed().0
    }

    /// Time that has passed since this clock was made, with what it was advanced by. Never goes back.
    pub fn elapsed(&self) -> Duration {
        self.wall_and_elapsed().1
    }

    /// [`Clock::wall_ms`] and [`Clock::elapsed`], read so that an advance moves both or neither.
    pub fn wall_and_elapsed(&self) -> (i64, Duration) {
        let monotonic = self.monotonic();
        match &self.source {
            Source::Real => (machine_wall_ms(), monotonic),
            Source::Manual(advanced) => {
                let advanced = *advanced.borrow();
                (machine_wall_ms() + advanced.as_millis() as i64, monotonic + advanced)
            }
            Source::Simulated(wall) => (wall.at(monotonic), monotonic),
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

    /// Resolves when [`Clock::elapsed`] reaches `moment`: at once when the clock is advanced to it or beyond. Cancel-safe.
    pub async fn until_elapsed(&self, moment: Duration) {
        let mut advances = self.advances();
        loop {
            let rest = moment.saturating_sub(self.elapsed());
            if rest.is_zero() || self.timeout(rest, advances.next()).await.is_none() {
                return;
            }
        }
    }

    /// Tells of each [`Clock::advance`] from now on. Ask for it before looking at the time: none is missed then.
    pub fn advances(&self) -> Advances {
        match &self.source {
            Source::Manual(advanced) => Advances(Some(advanced.subscribe())),
            Source::Real | Source::Simulated(_) => Advances(None),
        }
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

    /// Moves the date of a manual clock and all its clones ahead; who waits in [`Clock::until_elapsed`] and is due is
    /// woken. Milliseconds count. Panics on any other clock.
    pub fn advance(&self, by: Duration) {
        let whole = Duration::from_millis(by.as_millis() as u64);
        match &self.source {
            Source::Real => panic!("the machine's clock is not ours to advance: use Clock::manual"),
            Source::Manual(advanced) => advanced.send_modify(|advanced| *advanced += whole),
            Source::Simulated(_) => panic!("a simulated clock advances by waiting"),
        }
    }

    /// Moves a simulated wall clock by `by_ms`; the monotonic clock does not see it. Panics on the real clock.
    pub fn step_wall(&self, by_ms: i64) {
        match &self.source {
            Source::Real | Source::Manual(_) => panic!("the real clock is not ours to step"),
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
            Source::Real | Source::Manual(_) => panic!("the real clock is not ours to bend"),
            Source::Simulated(wall) => {
                let monotonic = self.monotonic();
                let before = wall.drift_ppm.swap(ppm, Ordering::Relaxed);
                let gained = drifted_ms(monotonic, before) - drifted_ms(monotonic, ppm);
                wall.base.fetch_add(gained, Ordering::Relaxed);
            }
        }
    }
}

#[allow(clippy::disallowed_methods)]
fn machine_wall_ms() -> i64 {
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => since.as_millis() as i64,
        Err(before) => -(before.duration().as_millis() as i64),
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

/// The moments at which a clock's date is moved; none, unless it is [`Clock::manual`].
#[derive(Debug)]
pub struct Advances(Option<watch::Receiver<Duration>>);

impl Advances {
    /// Resolves when the clock was advanced since this was made or has last resolved. Cancel-safe.
    pub async fn next(&mut self) {
        if let Some(advances) = &mut self.0
            && advances.changed().await.is_ok()
        {
            return;
        }
        // Nobody can move it, or nobody is left who could.
        std::future::pending().await
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

    #[tokio::test]
    async fn an_advance_moves_dates_wakes_who_waits_for_one_and_shortens_nobodys_patience() {
        let clock = Clock::manual();
        let hour = Duration::from_secs(3600);
        let (wall, elapsed) = clock.wall_and_elapsed();
        let mut by_date = std::pin::pin!(clock.until_elapsed(elapsed + 2 * hour));
        let patient = clock.timeout(hour, std::future::pending::<()>());
        let mut patient = std::pin::pin!(patient);
        assert!(futures::poll!(&mut by_date).is_pending() && futures::poll!(&mut patient).is_pending());
        clock.clone().advance(hour);
        assert!(futures::poll!(&mut by_date).is_pending(), "half of it");
        clock.advance(hour);
        by_date.await;
        assert!(futures::poll!(&mut patient).is_pending());
        let (wall_after, elapsed_after) = clock.wall_and_elapsed();
        assert!(elapsed_after >= elapsed + 2 * hour);
        assert!(wall_after >= wall + 7_200_000 && wall_after < wall + 7_200_000 + 60_000);
        assert!(clock.monotonic() < hour);
    }

    #[test]
    #[should_panic(expected = "use Clock::manual")]
    fn the_machines_clock_is_not_advanced() {
        Clock::real().advance(Duration::from_secs(1));
    }

    #[test]
    fn the_real_clock_is_past_the_day_this_was_written() {
        let clock = Clock::real();
        assert!(clock.wall_ms() > SIMULATED_START_MS);
        let before = clock.monotonic();
        assert!(clock.monotonic() >= before);
    }
}
