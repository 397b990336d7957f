//! A future on a thread of its own (real), or as a task of the current runtime (simulated).
//!
//! The log writer, the materializer and a group's Raft runtime are futures; a thread is only what runs them.

use std::future::Future;

use tokio::sync::oneshot;

/// Where long-lived futures run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executor {
    /// Each on an OS thread with a single-threaded tokio runtime.
    Threads,
    /// Each as a task on the runtime of the caller: one thread, one order, the same every time.
    Tasks,
}

/// Resolves when the spawned future has ended; `None` if it panicked or was dropped with its runtime.
#[derive(Debug)]
pub struct Running<T>(oneshot::Receiver<T>);

impl<T> Running<T> {
    /// Waits for the end.
    pub async fn ended(self) -> Option<T> {
        self.0.await.ok()
    }
}

impl Executor {
    /// Runs `future` to its end. `name` names the thread (at most 15 bytes are shown by the kernel).
    pub fn run<F, T>(&self, name: &str, future: F) -> Running<T>
    where
        F: Future<Output = T> + Send + 'static,
        T: Send + 'static,
    {
        let (ended, running) = oneshot::channel();
        let future = async move {
            // The receiver may be gone: nobody waits for the end, and that is fine.
            let _ = ended.send(future.await);
        };
        match self {
            Executor::Threads => {
                #[allow(clippy::disallowed_methods)]
                std::thread::Builder::new()
                    .name(name.to_owned())
                    .spawn(move || {
                        tokio::runtime::Builder::new_current_thread()
                            .enable_all()
                            .build()
                            .expect("a runtime can be built")
                            .block_on(future)
                    })
                    .expect("a thread can be started");
            }
            Executor::Tasks => {
                tokio::spawn(future);
            }
        }
        Running(running)
    }

    /// Runs `work`, which may block on the disk, away from the caller's runtime; in a simulation at once, in place.
    pub async fn blocking<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        match self {
            Executor::Threads => {
                #[allow(clippy::disallowed_methods)] // This is the door the others are sent to.
                let ended = tokio::task::spawn_blocking(work).await;
                match ended {
                    Ok(value) => value,
                    Err(error) => match error.try_into_panic() {
                        Ok(panic) => std::panic::resume_unwind(panic),
                        // The runtime is going down before the work began; the caller is dropped with it.
                        Err(_) => std::future::pending().await,
                    },
                }
            }
            Executor::Tasks => work(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn both_kinds_run_to_the_end() {
        for executor in [Executor::Threads, Executor::Tasks] {
            // On a thread too there is a runtime, with timers and channels.
            let running = executor.run("test", async {
                tokio::task::yield_now().await;
                41 + 1
            });
            assert_eq!(running.ended().await, Some(42));
            assert_eq!(executor.blocking(|| 43).await, 43);
        }
    }

    #[tokio::test]
    async fn threads_are_named_and_tasks_stay() {
        let name = || std::thread::current().name().map(str::to_owned);
        let here = name();
        assert_eq!(
            Executor::Threads.run("writer", async move { name() }).ended().await,
            Some(Some("writer".to_owned()))
        );
        assert_eq!(Executor::Tasks.run("writer", async move { name() }).ended().await, Some(here.clone()));
        assert_eq!(Executor::Tasks.blocking(name).await, here);
    }

    #[tokio::test]
    async fn a_panic_is_told_to_who_waits() {
        for executor in [Executor::Threads, Executor::Tasks] {
            let running = executor.run("test", async { panic!("this panic belongs to the test") });
            assert_eq!(running.ended().await, None::<()>);
        }
    }

    #[test]
    fn tasks_interleave_the_same_every_time() {
        let run = || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let order = Arc::new(Mutex::new(Vec::new()));
                let running: Vec<Running<()>> = (0..5)
                    .map(|task| {
                        let order = Arc::clone(&order);
                        Executor::Tasks.run("test", async move {
                            for step in 0..=task {
                                order.lock().push((task, step));
                                tokio::task::yield_now().await;
                            }
                        })
                    })
                    .collect();
                for task in running {
                    task.ended().await.unwrap();
                }
                Arc::into_inner(order).unwrap().into_inner()
            })
        };
        let first = run();
        assert_eq!(first.len(), 15);
        assert_eq!(first, run());
    }
}
