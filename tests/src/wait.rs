//! Waiting for what has no bell.

use std::time::Duration;

use env::Env;

/// Between two looks.
pub const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Looks until it is so; panics when that takes longer than `patience`.
pub async fn until(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> bool) {
    until_there(patience, what, async || look().await.then_some(())).await;
}

/// Looks until there is something to see.
pub async fn until_there<T>(patience: Duration, what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let clock = Env::real().clock;
    let deadline = clock.monotonic() + patience;
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(clock.monotonic() < deadline, "not within {patience:?}: {what}");
        clock.sleep(LOOK_AGAIN).await;
    }
}
