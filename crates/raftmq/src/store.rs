//! `raftmq store`: what lies in a replica's data directory, and whether it is what was written. For a node that does not
//! run; nothing here writes to the directory, but `unsafe-recover` with `--accept-loss`.

mod unsafe_recover;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use broker::tables::command::Command as TablesCommand;
use clap::{Args, Subcommand, ValueEnum};
use client::admin::protocol::properties;
use client::admin::protocol::record::RecordView;
use env::Env;
use indicatif::{ProgressBar, ProgressStyle};
use raft_store::codec;
use raft_store::entry::{OperationView, Visibility, decode_entry};
use raft_store::log::{Frame, Kind as FrameKind};
use raft_store::offline::{
    Finding, Kind, Line, Offline, OfflineError, Remedy, Verification, describe_row, parse_queue,
};
use raft_store::position::{QueueId, QueueOffset};
use serde_json::{Value, json};

use self::unsafe_recover::UnsafeRecover;
use crate::admin::report::{Column, Output, Report, Table, date};

/// Something is damaged.
const DAMAGED: u8 = 1;

/// What was typed cannot be done: no such directory, or its node runs.
const USAGE: u8 = 2;

/// It could be done, and was only looked at.
const ONLY_LOOKED: u8 = 3;

/// What to do with a directory.
#[derive(Subcommand)]
pub enum Command {
    /// Read everything and say what is damaged, where, and what happens about it.
    ///
    /// Reads IDENTITY, both copies of the hard state, every frame of every segment with its checksums and its chain, marks,
    /// side files, images, the keyed rows, ConsumeQueue units and index parts. Exit code 0: all is as it was written; 1:
    /// something is not; 2: this is no data directory, or its node runs. Writes nothing there; the keyed store, which
    /// cannot be opened without, is copied to --scratch first.
    Verify(Verify),
    /// Show frames, records, ConsumeQueue units or rows of the tables.
    ///
    /// Frames are the entries of the log in order: index, term, kind, physical offset, bytes, group time, operations. A
    /// stretch that is not what was written is shown as a line of kind "damaged", and what is whole behind it is shown too.
    Inspect(Inspect),
    /// Of a group that has lost a majority of its replicas for good, make one survivor a group of its own.
    ///
    /// Unsafe: whatever was acknowledged and is not in this survivor's log is lost. Without --accept-loss it only says
    /// what the survivor holds and who is dropped, and changes nothing. With it, the directory's node is the only member of
    /// its group from then on: start it, and add new nodes. Reads the whole log first. docs/operations.md has the steps.
    /// Exit code 0: done; 1: the directory is damaged; 2: it cannot be done, or needs not be; 3: it can be done, and was
    /// only looked at.
    UnsafeRecover(UnsafeRecover),
}

/// Flags of `raftmq store verify`.
#[derive(Args)]
pub struct Verify {
    /// The data directory: `data_dir` of a [[group]].
    dir: PathBuf,
    /// Where to copy the keyed store to; removed afterwards [default: a directory of its own among the machine's
    /// temporary files].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// How to print.
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

/// Flags of `raftmq store inspect`.
#[derive(Args)]
pub struct Inspect {
    /// The data directory: `data_dir` of a [[group]].
    dir: PathBuf,
    /// What to show.
    #[arg(long, value_name = "WHAT", value_enum, default_value_t)]
    show: Show,
    /// The first one: of frames and records the entry's index, of units the queue offset.
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    from: u64,
    /// At most so many: frames, entries with records, units, rows.
    #[arg(long, value_name = "COUNT", default_value_t = 50)]
    limit: usize,
    /// Of units: the queue, as its directory is named, TOPICID.QUEUE. The rows of table "topic" tell the ids.
    #[arg(long, value_name = "QUEUE", value_parser = queue, required_if_eq("show", "units"))]
    queue: Option<QueueId>,
    /// Of rows: only those of this table, such as "queue", "topic" or "pending".
    #[arg(long, value_name = "TABLE")]
    table: Option<String>,
    /// Of rows: where to copy the keyed store to; removed afterwards [default: a directory of its own among the
    /// machine's temporary files].
    #[arg(long, value_name = "DIR")]
    scratch: Option<PathBuf>,
    /// How to print.
    #[arg(short = 'o', long, value_name = "FORMAT", value_enum, default_value_t)]
    output: Output,
}

/// What `inspect` shows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
enum Show {
    /// Entries of the log.
    #[default]
    Frames,
    /// Records in them.
    Records,
    /// ConsumeQueue units.
    Units,
    /// Rows of the tables as of the last derived sync.
    Rows,
}

fn queue(text: &str) -> Result<QueueId, String> {
    parse_queue(text).ok_or_else(|| format!("{text:?} is not TOPICID.QUEUE, such as 3.0"))
}

/// Runs it. The exit code is part of the answer.
pub async fn run(env: &Env, command: Command) -> Result<ExitCode, String> {
    let (report, output, code) = match &command {
        Command::Verify(flags) => match verify(env, flags, opens_keyed(env, &flags.dir, &flags.scratch).await).await {
            Ok(found) => {
                let code = if found.findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(DAMAGED) };
                (verification(&flags.dir, &found), flags.output, code)
            }
            Err(error) => return Ok(refuse(&error, is_damage(&error))),
        },
        Command::Inspect(flags) => match inspect(env, flags).await {
            Ok(report) => (report, flags.output, ExitCode::SUCCESS),
            Err(error) => return Ok(refuse(&error, is_damage(&error))),
        },
        Command::UnsafeRecover(flags) => {
            let opens_keyed = opens_keyed(env, &flags.dir, &flags.scratch).await;
            match unsafe_recover::run(env, flags, opens_keyed).await {
                Ok((report, true)) => (report, flags.output, ExitCode::SUCCESS),
                Ok((report, false)) => (report, flags.output, ExitCode::from(ONLY_LOOKED)),
                Err(error) => return Ok(refuse(&error, unsafe_recover::is_damage(&error))),
            }
        }
    };
    // A reader that has seen enough (`| head`) closes the pipe; that is no failure.
    let _ = std::io::stdout().write_all(report.render(output).as_bytes());
    Ok(code)
}

fn is_damage(error: &OfflineError) -> bool {
    matches!(error, OfflineError::Damaged(_))
}

fn refuse(error: &dyn std::error::Error, is_damage: bool) -> ExitCode {
    eprintln!("raftmq: {error}");
    ExitCode::from(if is_damage { DAMAGED } else { USAGE })
}

/// A directory of this call's own, removed when it is done with.
struct Scratch {
    env: Env,
    dir: PathBuf,
}

impl Scratch {
    async fn make(env: &Env, asked: Option<&Path>) -> Result<Scratch, OfflineError> {
        let parent = asked.map_or_else(std::env::temp_dir, Path::to_owned);
        let dir = parent.join(format!("raftmq-store-{:016x}", env.rng.u64()));
        let made = env.disk.create_dir_all(&dir).await;
        made.map_err(|source| OfflineError::Io { what: dir.display().to_string(), source })?;
        Ok(Scratch { env: env.clone(), dir })
    }

    async fn remove(self) {
        if let Err(error) = self.env.disk.remove_dir_all(&self.dir).await {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot remove the copy of the keyed store");
        }
    }
}

/// sled has ways to kill the process that opens a damaged store: another one tries first.
async fn opens_keyed(env: &Env, dir: &Path, scratch: &Option<PathBuf>) -> bool {
    let (Ok(program), Ok(scratch)) = (std::env::current_exe(), Scratch::make(env, scratch.as_deref()).await) else {
        return true;
    };
    let mut trial = std::process::Command::new(program);
    trial.args(["store", "inspect", "--show", "rows", "--limit", "0", "--scratch"]).arg(&scratch.dir).arg(dir);
    trial.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
    let ended = trial.status();
    scratch.remove().await;
    // Killed by a signal it has no code; what else it met the verification meets as well, and can say.
    ended.map_or(true, |status| status.code().is_some())
}

async fn verify(env: &Env, flags: &Verify, opens_keyed: bool) -> Result<Verification, OfflineError> {
    let offline = Offline::open(env, &flags.dir).await?;
    let scratch = Scratch::make(env, flags.scratch.as_deref()).await?;
    let bar = progress_bar(flags.output);
    let found = offline.verify(opens_keyed.then_some(&*scratch.dir), &follow(&bar)).await;
    bar.finish_and_clear();
    scratch.remove().await;
    found
}

fn progress_bar(output: Output) -> ProgressBar {
    // Hidden by itself where standard error is no terminal.
    let bar = if output == Output::Json { ProgressBar::hidden() } else { ProgressBar::new(0) };
    let style = ProgressStyle::with_template("{bar:40} {percent:>3} % {msg} {eta}").expect("a well-formed template");
    bar.set_style(style);
    bar
}

/// Shows on `bar` how far a look has come.
fn follow(bar: &ProgressBar) -> impl Fn(Kind, u64, u64) + Sync {
    let shown = AtomicU64::new(u64::MAX);
    move |kind, done, all| {
        if shown.swap(kind as u64, Ordering::Relaxed) != kind as u64 {
            bar.set_message(kind.name());
        }
        bar.set_length(all);
        bar.set_position(done);
    }
}

const READ: &[Column] =
    &[Column("#Kind", "kind"), Column("#Files", "files"), Column("#Items", "items"), Column("#Bytes", "bytes")];

const FINDINGS: &[Column] = &[
    Column("#Kind", "kind"),
    Column("#File", "file"),
    Column("#Offset", "offset"),
    Column("#Physical Offset", "physicalOffset"),
    Column("#Remedy", "remedy"),
    Column("#What", "what"),
];

fn verification(dir: &Path, found: &Verification) -> Report {
    let mut read = Table::new(READ);
    for (kind, count) in &found.read {
        read.push([kind.name().into(), count.files.into(), count.items.into(), count.bytes.into()]);
    }
    let mut findings = Table::new(FINDINGS);
    for Finding { kind, file, offset, physical_offset, what, remedy } in &found.findings {
        let physical_offset = physical_offset.map(|at| at.0);
        findings.push([
            kind.name().into(),
            file.clone().into(),
            (*offset).into(),
            physical_offset.into(),
            remedy.name().into(),
            what.clone().into(),
        ]);
    }
    let remedies = [Remedy::Rewritten, Remedy::Rebuilt, Remedy::Peers, Remedy::Replace];
    let remedies = remedies.into_iter().filter(|remedy| found.findings.iter().any(|found| found.remedy == *remedy));
    let remedies: Vec<(&str, &str)> = remedies.map(|remedy| (remedy.name(), remedy.explain())).collect();
    let position = |id: Option<raft_store::position::LogId>| id.map(|id| id.to_string());
    let node = found.identity.as_ref().map(|identity| format!("{:016x}", identity.node_id));

    let mut text = read.to_text();
    let or_none = |text: Option<String>| text.unwrap_or_else(|| "none".to_owned());
    text += &format!(
        "\nnode {}, last entry {}, derived files up to {}\n",
        or_none(node.clone()),
        or_none(position(found.last)),
        or_none(position(found.applied))
    );
    match found.findings.len() {
        0 => text += "all of it is what was written\n",
        count => {
            text += &format!("\n{}\n{count} damaged:\n", findings.to_text());
            for (name, explanation) in &remedies {
                text += &format!("  {name}: {explanation}\n");
            }
        }
    }
    let identity = found.identity.as_ref();
    let value = json!({
        "directory": dir.display().to_string(),
        "cluster": identity.map(|identity| &identity.cluster),
        "group": identity.map(|identity| &identity.group),
        "node": node,
        "lastEntry": position(found.last),
        "derivedUpTo": position(found.applied),
        "clean": found.findings.is_empty(),
        "read": read.to_json(),
        "findings": findings.to_json(),
        "remedies": remedies.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    });
    Report::new(text, value)
}

async fn inspect(env: &Env, flags: &Inspect) -> Result<Report, OfflineError> {
    let offline = Offline::open(env, &flags.dir).await?;
    match flags.show {
        Show::Frames => Ok(frames(&offline.frames(flags.from, flags.limit).await?).into()),
        Show::Records => Ok(records(&offline.frames(flags.from, flags.limit).await?).into()),
        Show::Units => {
            let queue = flags.queue.expect("the parser requires it");
            Ok(units(&offline, queue, QueueOffset(flags.from), flags.limit).await?.into())
        }
        Show::Rows => {
            let scratch = Scratch::make(env, flags.scratch.as_deref()).await?;
            let rows = offline.rows(&scratch.dir).await;
            scratch.remove().await;
            Ok(table_rows(&rows?.1, flags).into())
        }
    }
}

const FRAMES: &[Column] = &[
    Column("#Index", "index"),
    Column("#Term", "term"),
    Column("#Kind", "kind"),
    Column("#Physical Offset", "physicalOffset"),
    Column("#Bytes", "bytes"),
    Column("#Chain", "chain"),
    Column("#Stamp", "stamp"),
    Column("#Operations", "operations"),
    Column("#Records", "records"),
    Column("#What", "what"),
];

fn frames(lines: &[Line]) -> Table {
    let mut table = Table::new(FRAMES);
    for line in lines {
        match line {
            Line::Frame { frame, bytes } => {
                let view = (frame.kind == FrameKind::Entry).then(|| decode_entry(&frame.body));
                let (stamp, operations, records, what) = match view {
                    None => (Value::Null, Value::Null, Value::Null, Value::Null),
                    Some(Err(error)) => (Value::Null, Value::Null, Value::Null, error.to_string().into()),
                    Some(Ok(view)) => {
                        let records = view.operations().filter(|one| matches!(one, OperationView::Record(_))).count();
                        let commands: Vec<String> = view.operations().filter_map(|one| command(&one)).collect();
                        let what = match commands.as_slice() {
                            [] => Value::Null,
                            [one] => one.clone().into(),
                            many => counted(many).into(),
                        };
                        (date(view.stamp().0), view.operation_count().into(), records.into(), what)
                    }
                };
                table.push([
                    frame.id.index.into(),
                    frame.id.term.into(),
                    kind_name(frame.kind).into(),
                    frame.physical_offset.0.into(),
                    (*bytes).into(),
                    format!("{:016x}", frame.chain).into(),
                    stamp,
                    operations,
                    records,
                    what,
                ]);
            }
            Line::Gap { from, to, what } => {
                let empty = || Value::Null;
                table.push([
                    empty(),
                    empty(),
                    "damaged".into(),
                    from.0.into(),
                    (to.0 - from.0).into(),
                    empty(),
                    empty(),
                    empty(),
                    empty(),
                    what.clone().into(),
                ]);
            }
        }
    }
    table
}

/// Many commands by their names, and how many there are of each.
fn counted(commands: &[String]) -> String {
    let mut counts: std::collections::BTreeMap<&str, usize> = std::collections::BTreeMap::new();
    for command in commands {
        let end = command.find([' ', '(']).unwrap_or(command.len());
        *counts.entry(&command[..end]).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(name, count)| format!("{name}*{count}")).collect();
    counts.join(",")
}

fn kind_name(kind: FrameKind) -> &'static str {
    match kind {
        FrameKind::Entry => "entry",
        FrameKind::Membership => "membership",
        FrameKind::Blank => "blank",
        FrameKind::Padding => "padding",
    }
}

fn command(operation: &OperationView<'_>) -> Option<String> {
    match operation {
        OperationView::Record(_) => None,
        OperationView::Roll(roll) => Some(format!("Roll {{ key: {}, bytes: {} }}", roll.key, roll.size)),
        OperationView::Core(command) => Some(format!("{command:?}")),
        OperationView::Tables(command) => Some(match codec::from_bytes::<TablesCommand>(command) {
            Ok(command) => format!("{command:?}"),
            Err(_) => format!("tables command of {} bytes", command.len()),
        }),
    }
}

const RECORDS: &[Column] = &[
    Column("#Index", "index"),
    Column("#Physical Offset", "physicalOffset"),
    Column("#Bytes", "bytes"),
    Column("#Queue", "queue"),
    Column("#Visibility", "visibility"),
    Column("#Due", "due"),
    Column("#Tag Hash", "tagHash"),
    Column("#Topic", "topic"),
    Column("#Unique Key", "uniqueKey"),
    Column("#Body Bytes", "bodyBytes"),
];

fn records(lines: &[Line]) -> Table {
    let mut table = Table::new(RECORDS);
    for line in lines {
        let Line::Frame { frame, .. } = line else { continue };
        let Ok(view) = decode_entry(&frame.body) else { continue };
        for operation in view.operations() {
            let OperationView::Record(record) = operation else { continue };
            let bytes = frame.body.slice(record.position as usize..(record.position + record.size) as usize);
            let (visibility, due) = match record.visibility {
                Visibility::Visible => ("visible", Value::Null),
                Visibility::Scheduled { due } => ("scheduled", date(due.0)),
                Visibility::Half => ("half", Value::Null),
            };
            let (topic, key, body_bytes) = match RecordView::parse(&bytes) {
                Ok(record) => (
                    record.topic().into(),
                    record.property(properties::UNIQ_KEY).map_or(Value::Null, Value::from),
                    record.body().len().into(),
                ),
                Err(error) => (error.to_string().into(), Value::Null, Value::Null),
            };
            table.push([
                frame.id.index.into(),
                place_of(frame, record.position).into(),
                record.size.into(),
                record.queue.to_string().into(),
                visibility.into(),
                due,
                record.tag_hash.into(),
                topic,
                key,
                body_bytes,
            ]);
        }
    }
    table
}

/// Where a record of a frame lies: behind the frame's header.
fn place_of(frame: &Frame, position: u32) -> u64 {
    frame.physical_offset.0 + raft_store::log::frame::HEADER_BYTES + u64::from(position)
}

const UNITS: &[Column] = &[
    Column("#Queue Offset", "queueOffset"),
    Column("#Physical Offset", "physicalOffset"),
    Column("#Bytes", "bytes"),
    Column("#Tag Hash", "tagHash"),
    Column("#Visible At", "visibleAt"),
    Column("#Kind", "kind"),
];

async fn units(offline: &Offline, queue: QueueId, from: QueueOffset, limit: usize) -> Result<Table, OfflineError> {
    let mut table = Table::new(UNITS);
    for (queue_offset, unit) in offline.units(queue, from, limit).await? {
        table.push(match unit {
            Some(unit) => [
                queue_offset.0.into(),
                unit.physical_offset.0.into(),
                unit.size.into(),
                unit.tag_hash.into(),
                date(unit.visible_at.0),
                format!("{:?}", unit.kind).to_lowercase().into(),
            ],
            None => [queue_offset.0.into(), Value::Null, Value::Null, Value::Null, Value::Null, "damaged".into()],
        });
    }
    Ok(table)
}

const ROWS: &[Column] = &[Column("#Table", "table"), Column("#Key", "key"), Column("#Value", "value")];

fn table_rows(rows: &[(Vec<u8>, Vec<u8>)], flags: &Inspect) -> Table {
    let described = rows.iter().map(|(key, value)| {
        describe_row(key, value).or_else(|| broker::tables::describe_row(key, value)).unwrap_or_else(|| {
            let table = key.first().map_or_else(String::new, |table| format!("{table:02x}"));
            ("unknown", table, format!("{} bytes", value.len()))
        })
    });
    let wanted = described.filter(|(table, _, _)| flags.table.as_ref().is_none_or(|wanted| wanted == table));
    let mut table = Table::new(ROWS);
    for (name, key, value) in wanted.skip(flags.from as usize).take(flags.limit) {
        table.push([name.into(), key.into(), value.into()]);
    }
    table
}

#[cfg(test)]
mod tests {
    use client::Message;
    use embedded::Cluster;
    use env::disk::Open;

    use super::*;

    /// What a cluster of one leaves behind, through the commands that look at it.
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_directory_is_verified_and_shown_and_damage_is_named() {
        let (env, dir) = (Env::real(), tempfile::tempdir().expect("a directory"));
        let cluster = Cluster::builder().nodes(1).data_dir(dir.path()).start().await.expect("starts");
        let client = cluster.client().build().expect("a client");
        let producer = client.producer("producer").start().expect("a producer");
        for number in 0..20 {
            producer.send(Message::new("shown", format!("body-{number}"))).await.expect("sent");
        }
        client.shutdown().await;
        cluster.shutdown().await;

        let names = env.disk.list(dir.path()).await.expect("listed");
        let name = names.iter().find(|name| name.is_directory).expect("the broker's directory");
        let mut data = dir.path().join(&name.name);
        if Offline::open(&env, &data).await.is_err() {
            let names = env.disk.list(&data).await.expect("listed");
            data = data.join(&names.iter().find(|name| name.is_directory).expect("the group's directory").name);
        }
        let flags = Verify { dir: data.clone(), scratch: Some(dir.path().to_owned()), output: Output::Json };
        let found = verify(&env, &flags, true).await.expect("verified");
        assert_eq!(found.findings, []);
        let text = verification(&data, &found).render(Output::Table);
        assert!(text.contains("all of it is what was written"), "{text}");

        let shown = async |show: Show, table: Option<&str>| {
            let flags = Inspect {
                dir: data.clone(),
                show,
                from: 0,
                limit: 1000,
                queue: None,
                table: table.map(str::to_owned),
                scratch: Some(dir.path().to_owned()),
                output: Output::Table,
            };
            inspect(&env, &flags).await.expect("shown").render(Output::Table)
        };
        let frames = shown(Show::Frames, None).await;
        assert!(frames.contains("membership") && frames.contains("Lead") && frames.contains("PutTopic"), "{frames}");
        let records = shown(Show::Records, None).await;
        assert_eq!(records.lines().filter(|line| line.contains("shown")).count(), 20, "{records}");
        let topics = shown(Show::Rows, Some("topic")).await;
        assert!(topics.contains("shown") && !topics.contains("segment-clock"), "{topics}");

        let segment = data.join(format!("commitlog/{:020}", 0));
        let file = env.disk.open(&segment, Open::Existing).await.expect("opened");
        let at = 8192 + 10;
        let byte = file.read_at(at, 1).await.expect("read")[0];
        file.write_at(at, &[vec![byte ^ 1].into()]).await.expect("written");
        let found = verify(&env, &flags, true).await.expect("verified");
        let value: Value = serde_json::from_str(&verification(&data, &found).render(Output::Json)).expect("JSON");
        assert_eq!((&value["clean"], &value["findings"][0]["kind"]), (&json!(false), &json!("frames")));
        assert_eq!(value["findings"][0]["offset"], json!(8192));
        let frames = shown(Show::Frames, None).await;
        assert!(frames.contains("damaged") && frames.contains("PutTopic"), "{frames}");
    }
}
