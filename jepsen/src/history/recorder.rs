//! Writes a history while a run goes on: one line an operation, flushed as written, so that it survives its writer.
//!
//! Index and time are taken under one lock, in the order of the lines. A client records an invocation before it sends and a
//! completion after it has the answer; nothing that was concurrent is then recorded as ordered.

use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::edn::Edn;
use super::operation::{Kind, Operation, Process};

/// Tells the time since the run began. It never goes back.
pub type Now = Box<dyn Fn() -> Duration + Send>;

/// A history that is being written. Clones write to the same one.
#[derive(Clone)]
pub struct Recorder(Arc<Mutex<Lines>>);

struct Lines {
    out: Box<dyn Write + Send>,
    now: Now,
    next_index: u64,
    next_process: u64,
    /// A history with a hole proves nothing, so the first error is kept and returned by every later call.
    failed: Option<String>,
}

impl std::fmt::Debug for Recorder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Recorder({} operations)", self.0.lock().next_index)
    }
}

impl Recorder {
    /// Writes to a new file.
    pub fn create(path: &Path, now: Now) -> io::Result<Recorder> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        Ok(Recorder::new(Box::new(File::create_new(path).map_err(named)?), now))
    }

    /// Writes to `out`, which must not hold lines back.
    pub fn new(out: Box<dyn Write + Send>, now: Now) -> Recorder {
        Recorder(Arc::new(Mutex::new(Lines { out, now, next_index: 0, next_process: 0, failed: None })))
    }

    /// A new client process.
    pub fn client(&self) -> Client {
        let process = self.0.lock().take_process();
        Client { recorder: self.clone(), process, pending: None }
    }

    /// Records what the nemesis does (`start-…`, `stop-…`, or a name of its own for what has no length), with evidence of
    /// its effect. See [`super::faults`].
    pub fn nemesis(&self, f: &str, evidence: Edn, extra: Vec<(&str, Edn)>) -> io::Result<()> {
        self.0.lock().write(Kind::Info, Process::Nemesis, f.into(), evidence, extra)
    }
}

impl Lines {
    fn take_process(&mut self) -> u64 {
        self.next_process += 1;
        self.next_process - 1
    }

    fn write(
        &mut self,
        kind: Kind,
        process: Process,
        f: Arc<str>,
        value: Edn,
        extra: Vec<(&str, Edn)>,
    ) -> io::Result<()> {
        if let Some(error) = &self.failed {
            return Err(io::Error::other(error.clone()));
        }
        let time = u64::try_from((self.now)().as_nanos()).expect("a run is shorter than 584 years");
        let extra = extra.into_iter().map(|(key, value)| (key.into(), value)).collect();
        let operation = Operation { index: self.next_index, kind, process, time, f, value, extra };
        self.next_index += 1;
        let written = self.out.write_all(format!("{operation}\n").as_bytes()).and_then(|()| self.out.flush());
        written.inspect_err(|error| self.failed = Some(format!("the history is incomplete: {error}")))
    }
}

/// A client process: one operation at a time. After an `:info` it goes on under a new number, since the old operation may
/// still take effect. Dropped within an operation, it records an `:info`.
#[derive(Debug)]
pub struct Client {
    recorder: Recorder,
    process: u64,
    pending: Option<(Arc<str>, Edn)>,
}

impl Client {
    /// Records that an operation is about to be done.
    ///
    /// # Panics
    ///
    /// If the one before has not completed.
    pub fn invoke(&mut self, f: &str, value: Edn, extra: Vec<(&str, Edn)>) -> io::Result<()> {
        assert!(self.pending.is_none(), "process {} is within {:?}", self.process, self.pending);
        let f: Arc<str> = f.into();
        self.pending = Some((f.clone(), value.clone()));
        self.recorder.0.lock().write(Kind::Invoke, Process::Client(self.process), f, value, extra)
    }

    /// It happened, with this result.
    pub fn ok(&mut self, value: Edn, extra: Vec<(&str, Edn)>) -> io::Result<()> {
        self.complete(Kind::Ok, Some(value), extra)
    }

    /// It did not happen and never will. A time-out or a lost connection is no failure but an [`Client::info`].
    pub fn fail(&mut self, error: &str) -> io::Result<()> {
        self.complete(Kind::Fail, None, vec![("error", error.into())])
    }

    /// Nobody knows whether it happened or will.
    pub fn info(&mut self, error: &str) -> io::Result<()> {
        self.complete(Kind::Info, None, vec![("error", error.into())])
    }

    /// The number it has now.
    pub fn process(&self) -> u64 {
        self.process
    }

    fn complete(&mut self, kind: Kind, value: Option<Edn>, extra: Vec<(&str, Edn)>) -> io::Result<()> {
        let (f, asked) = self.pending.take().expect("a completion follows an invocation");
        let mut lines = self.recorder.0.lock();
        let process = Process::Client(self.process);
        if kind == Kind::Info {
            self.process = lines.take_process();
        }
        lines.write(kind, process, f, value.unwrap_or(asked), extra)
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        if self.pending.is_some() {
            // Nobody is there to be told; the recorder keeps its error for the next caller.
            let _ = self.info("abandoned");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::history::{History, Outcome};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn recorder() -> (Sink, Recorder) {
        let sink = Sink::default();
        let ticks = Mutex::new(0);
        let now = move || {
            *ticks.lock() += 1;
            Duration::from_nanos(*ticks.lock())
        };
        (sink.clone(), Recorder::new(Box::new(sink), Box::new(now)))
    }

    #[test]
    fn a_process_that_does_not_know_takes_a_new_number() {
        let (sink, recorder) = recorder();
        let (mut one, mut other) = (recorder.client(), recorder.client());
        one.invoke("send", 1_i64.into(), vec![("node", "n1".into())]).unwrap();
        other.invoke("send", 2_i64.into(), vec![]).unwrap();
        one.info("timed out").unwrap();
        one.invoke("send", 3_i64.into(), vec![]).unwrap();
        other.ok(2_i64.into(), vec![]).unwrap();
        assert_eq!((one.process(), other.process()), (2, 1));
        recorder.nemesis("start-kill", Edn::map([("n1", Edn::keyword("gone"))]), vec![]).unwrap();
        drop(one);
        let history = History::read(&**sink.0.lock()).unwrap();
        let outcomes: Vec<_> = history.calls().map(|call| call.outcome()).collect();
        assert_eq!(outcomes, [Outcome::Info, Outcome::Ok, Outcome::Info]);
        assert_eq!(history.operations().len(), 7);
    }

    #[test]
    fn after_an_error_nothing_more_is_recorded() {
        struct Full;
        impl Write for Full {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::Error::other("full"))
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let recorder = Recorder::new(Box::new(Full), Box::new(|| Duration::ZERO));
        let mut client = recorder.client();
        assert!(client.invoke("send", Edn::Nil, vec![]).is_err());
        assert!(client.fail("not sent").unwrap_err().to_string().contains("incomplete"));
    }

    proptest! {
        /// Random steps of four clients, and every line read back as it was written.
        #[test]
        fn what_is_recorded_is_read_back(steps in prop::collection::vec((0..4_usize, 0..3_u8, any::<i64>()), 0..100)) {
            let (sink, recorder) = recorder();
            let mut clients: Vec<Client> = (0..4).map(|_| recorder.client()).collect();
            for (who, how, value) in steps {
                let client = &mut clients[who];
                match (client.pending.is_some(), how) {
                    (false, _) => client.invoke("send", value.into(), vec![("node", Edn::keyword("n1"))]).unwrap(),
                    (true, 0) => client.ok(Edn::vector([value]), vec![]).unwrap(),
                    (true, 1) => client.fail("refused").unwrap(),
                    (true, _) => client.info("timed \"out\"\n").unwrap(),
                }
            }
            drop(clients);
            let written = String::from_utf8(sink.0.lock().clone()).unwrap();
            let history = History::read(written.as_bytes()).unwrap();
            let again: String = history.operations().iter().map(|operation| format!("{operation}\n")).collect();
            prop_assert_eq!(again, written);
        }
    }
}
