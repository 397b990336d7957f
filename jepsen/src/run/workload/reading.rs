//! Readers: pollers that read on from where they are, at one replica and then at another.

use std::io;
use std::time::Duration;

use super::{Site, Worker};
use crate::append::{self, AT_ONCE, Pulled, QUEUES};
use crate::history::edn::Edn;
use crate::run::operations;

/// A poller that has read everything looks again after this.
const IDLE: Duration = Duration::from_millis(50);

/// Polls every queue of a topic in turn until it is to end, and asks now and then where a queue ends.
pub(super) async fn poll(mut worker: Worker, topic: &str, is_over: fn(&Site) -> bool) -> io::Result<()> {
    let mut next = [0; QUEUES as usize];
    while !is_over(&worker.site) {
        let mut read = 0;
        for (queue, next) in (0..).zip(&mut next) {
            let node = worker.node();
            worker.recorded.invoke("poll", operations::poll(), vec![node])?;
            let (broker, now_ms) = (worker.address(), worker.site.env.clock.wall_ms());
            match append::pull(&worker.remoting, broker, topic, queue, *next, AT_ONCE, now_ms).await {
                Ok(Pulled { records, .. }) => {
                    let places = append::places(&records)?;
                    worker.recorded.ok(operations::polled(queue, &places), Vec::new())?;
                    *next = places.last().map_or(*next, |(offset, _)| offset + 1);
                    read += places.len();
                    worker.site.seen(&places);
                }
                Err(why) => {
                    worker.recorded.fail(&why.to_string())?;
                    worker.go_elsewhere();
                }
            }
            if worker.rng.chance(1, 5) {
                ask_for_end(&mut worker, topic, queue).await?;
            }
        }
        // Another replica must go on where this one left off.
        if worker.rng.chance(1, 20) {
            worker.go_elsewhere();
        }
        if read == 0 {
            worker.site.env.clock.sleep(IDLE).await;
        }
    }
    Ok(())
}

async fn ask_for_end(worker: &mut Worker, topic: &str, queue: u32) -> io::Result<()> {
    let node = worker.node();
    let value = |end: Edn| Edn::vector([queue.into(), end]);
    worker.recorded.invoke("max-offset", value(Edn::Nil), vec![node])?;
    match append::max_offset(&worker.remoting, worker.address(), topic, queue).await {
        Ok(end) => worker.recorded.ok(value(end.into()), Vec::new()),
        Err(why) => {
            worker.go_elsewhere();
            worker.recorded.fail(&why)
        }
    }
}
