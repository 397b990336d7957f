//! One operation of a history: a line in Jepsen's operation-map form.
//!
//! ```text
//! {:index 21, :type :ok, :process 3, :time 1204441200, :f :send, :value [[:send 2 [8812 451]]], :node "n1"}
//! ```
//!
//! `:time` is monotonic nanoseconds since the run began. Whatever else a checker needs stands under keys of its own, so
//! that tools which know Jepsen's keys alone read the rest.

use std::fmt;
use std::sync::Arc;

use super::Malformed;
use super::edn::Edn;

/// Where an operation stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is about to be done.
    Invoke,
    /// It happened.
    Ok,
    /// It did not happen and never will.
    Fail,
    /// Nobody knows. The nemesis, whose operations are not the system's, uses this alone.
    Info,
}

/// Who does it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Process {
    /// A client: one operation at a time, and none after an `:info`.
    Client(u64),
    /// Whoever makes the faults.
    Nemesis,
}

/// See the top.
#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    /// Grows from line to line.
    pub index: u64,
    /// `:type`
    pub kind: Kind,
    /// Who.
    pub process: Process,
    /// Monotonic nanoseconds since the run began.
    pub time: u64,
    /// What is done.
    pub f: Arc<str>,
    /// To what, or with what result.
    pub value: Edn,
    /// Everything else, in the order written.
    pub extra: Vec<(Arc<str>, Edn)>,
}

impl Operation {
    /// From the map of a line.
    pub fn from_edn(edn: Edn) -> Result<Operation, Malformed> {
        let Edn::Map(entries) = edn else { return Err(Malformed("an operation is a map".to_owned())) };
        let (mut index, mut kind, mut process, mut time, mut f) = (None, None, None, None, None);
        let mut value = Edn::Nil;
        let mut extra = Vec::new();
        for (key, entry) in entries {
            let Edn::Keyword(key) = key else { return Err(Malformed(format!("not a keyword: {key}"))) };
            match &*key {
                "index" => index = natural(&entry),
                "type" => kind = entry.as_keyword().and_then(Kind::named),
                "process" => process = Process::of(&entry),
                "time" => time = natural(&entry),
                "f" => f = if let Edn::Keyword(name) = entry { Some(name) } else { None },
                "value" => value = entry,
                _ => extra.push((key, entry)),
            }
        }
        let missing = |key: &str| Malformed(format!("no sound :{key} in an operation"));
        Ok(Operation {
            index: index.ok_or_else(|| missing("index"))?,
            kind: kind.ok_or_else(|| missing("type"))?,
            process: process.ok_or_else(|| missing("process"))?,
            time: time.ok_or_else(|| missing("time"))?,
            f: f.ok_or_else(|| missing("f"))?,
            value,
            extra,
        })
    }

    /// What stands under a key that is not Jepsen's.
    pub fn extra(&self, key: &str) -> Option<&Edn> {
        self.extra.iter().find(|(known, _)| &**known == key).map(|(_, value)| value)
    }

    /// The operation as a map, to be shown in results; a long value is cut.
    pub fn summary(&self) -> Edn {
        let text = self.value.to_string();
        let value = match text.char_indices().nth(200) {
            Some((cut, _)) => Edn::String(format!("{}…", &text[..cut])),
            None => self.value.clone(),
        };
        let mut map = Edn::map([
            ("index", self.index.into()),
            ("type", Edn::keyword(self.kind.name())),
            ("process", self.process.to_edn()),
            ("time", self.time.into()),
            ("f", Edn::Keyword(self.f.clone())),
            ("value", value),
        ]);
        if let Edn::Map(entries) = &mut map {
            entries.extend(self.extra.iter().map(|(key, value)| (Edn::Keyword(key.clone()), value.clone())));
        }
        map
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Operation { index, kind, process, time, f: function, value, extra } = self;
        let (kind, process) = (kind.name(), process.to_edn());
        write!(f, "{{:index {index}, :type :{kind}, :process {process}, :time {time}, :f :{function}, :value {value}")?;
        for (key, value) in extra {
            write!(f, ", :{key} {value}")?;
        }
        f.write_str("}")
    }
}

impl Kind {
    /// As it is written, without the colon.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Invoke => "invoke",
            Kind::Ok => "ok",
            Kind::Fail => "fail",
            Kind::Info => "info",
        }
    }

    fn named(name: &str) -> Option<Kind> {
        [Kind::Invoke, Kind::Ok, Kind::Fail, Kind::Info].into_iter().find(|kind| kind.name() == name)
    }
}

impl Process {
    /// As it is written.
    pub fn to_edn(self) -> Edn {
        match self {
            Process::Client(number) => number.into(),
            Process::Nemesis => Edn::keyword("nemesis"),
        }
    }

    fn of(edn: &Edn) -> Option<Process> {
        if edn.as_keyword() == Some("nemesis") { Some(Process::Nemesis) } else { natural(edn).map(Process::Client) }
    }
}

fn natural(edn: &Edn) -> Option<u64> {
    edn.as_int().and_then(|number| u64::try_from(number).ok())
}
