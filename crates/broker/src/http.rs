//! Metrics and health over HTTP, on a port of their own: `/metrics` for Prometheus, `/health/live`, `/health/ready`.
//!
//! Numbers are read when somebody asks; nothing is kept here. A connection brings one request, and ends when that is
//! answered or its time is over; when too many are open, the next one waits.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use env::Env;
use env::net::{Listener, ReadHalf, WriteHalf};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, NoLabelSet, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use protocol::names;
use raft_store::group::Role;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;

use crate::admin::QueueView;
use crate::broker::{BrokerGroup, OpenGroups};

/// What one page may cost.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    /// Open at a time.
    connections: usize,
    /// From its acceptance to its end: header, answer and all. Prometheus itself waits ten seconds.
    visit: Duration,
}

const BOUNDS: Bounds = Bounds { connections: 64, visit: Duration::from_secs(10) };

/// The serving task; ends when dropped.
pub struct Http {
    local: SocketAddr,
    task: JoinHandle<()>,
}

impl Http {
    /// Serves the groups that are open, of `group_count` that shall be.
    pub async fn start(env: &Env, address: SocketAddr, groups: OpenGroups, group_count: usize) -> io::Result<Http> {
        Http::start_within(BOUNDS, env, address, groups, group_count).await
    }

    async fn start_within(
        bounds: Bounds,
        env: &Env,
        address: SocketAddr,
        groups: OpenGroups,
        group_count: usize,
    ) -> io::Result<Http> {
        let listener = env.net.listen(address).await?;
        let local = listener.local_addr()?;
        let router = Router::new()
            .route("/metrics", get(metrics))
            .route("/health/live", get(live))
            .route("/health/ready", get(ready))
            .layer(map_response(|response: Response| async { ([(header::CONNECTION, "close")], response) }))
            .with_state(Shown { groups, group_count });
        let places = Arc::new(Semaphore::new(bounds.connections));
        let door = Door { listener, env: env.clone(), local, places, visit: bounds.visit };
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(door, router).await {
                tracing::error!(%local, %error, "metrics and health are no longer served");
            }
        });
        Ok(Http { local, task })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }
}

impl Drop for Http {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// axum over the environment's network.
struct Door {
    listener: Listener,
    env: Env,
    local: SocketAddr,
    places: Arc<Semaphore>,
    visit: Duration,
}

impl axum::serve::Listener for Door {
    type Io = Visit;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        let place = self.places.clone().acquire_owned().await.expect("it is never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, peer)) => {
                    let (read, write) = stream.into_split();
                    let (clock, limit) = (self.env.clock.clone(), self.visit);
                    let over = Box::pin(async move { clock.sleep(limit).await });
                    return (Visit { io: tokio::io::join(read, write), over, _place: place }, peer);
                }
                Err(error) => {
                    tracing::warn!(local = %self.local, %error, "cannot accept a connection; trying again shortly");
                    self.env.clock.sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

/// A connection, as long as its time is not over.
struct Visit {
    io: tokio::io::Join<ReadHalf, WriteHalf>,
    over: Pin<Box<dyn Future<Output = ()> + Send>>,
    _place: OwnedSemaphorePermit,
}

impl Visit {
    fn poll_with<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: impl FnOnce(Pin<&mut tokio::io::Join<ReadHalf, WriteHalf>>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.over.as_mut().poll(cx).is_ready() {
            // To be asked again: one that has ended must not be.
            self.over = Box::pin(std::future::ready(()));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        poll(Pin::new(&mut self.io), cx)
    }
}

impl AsyncRead for Visit {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.poll_with(cx, |io, cx| io.poll_read(cx, into))
    }
}

impl AsyncWrite for Visit {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_with(cx, |io, cx| io.poll_write(cx, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(cx, |io, cx| io.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_with(cx, |io, cx| io.poll_shutdown(cx))
    }
}

#[derive(Clone)]
struct Shown {
    groups: OpenGroups,
    group_count: usize,
}

/// Alive unless a group has stopped by itself: then only a restart helps.
async fn live(State(shown): State<Shown>) -> Response {
    let stopped = |group: &&Arc<BrokerGroup>| matches!(&*group.role.borrow(), Role::Stopped { reason: Some(_) });
    let stopped: Vec<String> =
        shown.groups.read().iter().filter(stopped).map(|group| group.broker_name().to_owned()).collect();
    if stopped.is_empty() {
        (StatusCode::OK, "live\n".to_owned()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("stopped: {}\n", stopped.join(", "))).into_response()
    }
}

/// Ready when every group is open and knows who leads.
async fn ready(State(shown): State<Shown>) -> Response {
    let groups = shown.groups.read();
    let waiting: Vec<String> = groups
        .iter()
        .map(|group| group.status())
        .filter(|status| !status.is_ready)
        .map(|status| status.broker_name)
        .collect();
    if groups.len() < shown.group_count {
        (StatusCode::SERVICE_UNAVAILABLE, "opening\n".to_owned()).into_response()
    } else if waiting.is_empty() {
        (StatusCode::OK, "ready\n".to_owned()).into_response()
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, format!("without a leader: {}\n", waiting.join(", "))).into_response()
    }
}

async fn metrics(State(shown): State<Shown>) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Numbers(shown)));
    let mut page = String::new();
    match text::encode(&mut page, &registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], page).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

struct Numbers(Shown);

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Numbers").finish_non_exhaustive()
    }
}

/// Who a number belongs to.
type Labels = Vec<(&'static str, String)>;

/// One number of one group.
type Number = (Labels, f64);

/// One metric: name, help, whether it only grows, and its numbers.
type Metric = (&'static str, &'static str, bool, Vec<Number>);

/// Every metric of the groups that are open.
fn numbers(groups: &[Arc<BrokerGroup>]) -> Vec<Metric> {
    let statuses: Vec<_> = groups.iter().map(|group| (group, group.status().raft)).collect();
    let labels = |group: &BrokerGroup| vec![("group", group.broker_name().to_owned())];
    let each = |number: &dyn Fn(&BrokerGroup, &raft_store::group::Status) -> f64| -> Vec<Number> {
        statuses.iter().map(|(group, status)| (labels(group), number(group, status))).collect()
    };
    let index = |id: Option<raft_store::position::LogId>| id.map_or(0.0, |id| id.index as f64);
    let mut dead_letters = Vec::new();
    let mut dead_letters_ever = Vec::new();
    for group in groups {
        let tables = group.reader.tables();
        for topic in tables.topics().iter() {
            let Some(owner) = names::group_of_dlq_topic(&topic.config.name) else { continue };
            let bounds = QueueView::all(&group.reader, topic).into_iter().map(|queue| queue.bounds());
            let (kept, ever) = bounds.fold((0, 0), |(kept, ever), of| (kept + (of.end - of.start), ever + of.end));
            let labels = || vec![("group", group.broker_name().to_owned()), ("consumer_group", owner.to_owned())];
            dead_letters.push((labels(), kept as f64));
            dead_letters_ever.push((labels(), ever as f64));
        }
    }
    let pops = pop_numbers(groups);
    let mut lag = Vec::new();
    let mut roles = Vec::new();
    let mut syncs = Vec::new();
    for (group, status) in &statuses {
        for (node, replication) in &status.replication {
            let mut labels = labels(group);
            labels.push(("peer", format!("{node:016x}")));
            lag.push((labels, replication.lag_entries as f64));
        }
        for (power, count) in group.raft.log().stats().syncs_by_power_of_two_us.iter().enumerate() {
            if *count > 0 {
                let mut labels = labels(group);
                labels.push(("us", (1_u64 << power).to_string()));
                syncs.push((labels, *count as f64));
            }
        }
        for (role, holds) in [
            ("leader", matches!(status.role, Role::Leader { .. })),
            ("follower", matches!(status.role, Role::Follower { .. })),
            ("isolated", matches!(status.role, Role::Isolated { .. })),
            ("candidate", matches!(status.role, Role::Candidate { .. })),
            ("stopped", matches!(status.role, Role::Stopped { .. })),
        ] {
            let mut labels = labels(group);
            labels.push(("role", role.to_owned()));
            roles.push((labels, f64::from(u8::from(holds))));
        }
    }
    let mut all = vec![
        ("raftmq_role", "1 for the role that this replica has", false, roles),
        (
            "raftmq_ready",
            "1 if clients are served, here or by forwarding",
            false,
            each(&|group, _| f64::from(u8::from(group.status().is_ready))),
        ),
        ("raftmq_term", "Raft term", false, each(&|_, status| status.term as f64)),
        (
            "raftmq_elections",
            "Changes of leader or term since the start",
            true,
            each(&|_, status| status.elections as f64),
        ),
        (
            "raftmq_committed_index",
            "Last index known to be on a quorum",
            false,
            each(&|_, status| index(status.committed)),
        ),
        ("raftmq_applied_index", "Last index applied here", false, each(&|_, status| index(status.applied))),
        ("raftmq_last_index", "Last index in the log here", false, each(&|_, status| index(status.last))),
        ("raftmq_synced_index", "Last index durable here", false, each(&|_, status| status.synced.unwrap_or(0) as f64)),
        (
            "raftmq_on_probation",
            "1 while this replica may have lost what it acknowledged, and does not vote",
            false,
            each(&|_, status| f64::from(u8::from(status.on_probation))),
        ),
        (
            "raftmq_log_begin",
            "Physical offset that messages begin at",
            false,
            each(&|group, _| group.raft().reader().min_physical().0 as f64),
        ),
        (
            "raftmq_disk_used_percent",
            "Share of this replica's file system that is used",
            false,
            each(&|group, _| f64::from(group.disk_used_percent())),
        ),
        (
            "raftmq_longest_flush_seconds",
            "The longest fdatasync of the log since the start",
            false,
            each(&|_, status| status.log.sync_longest.as_secs_f64()),
        ),
        (
            "raftmq_log_syncs",
            "fdatasyncs of the log since the start that took less than `us` microseconds, and not less than half",
            true,
            syncs,
        ),
        ("raftmq_replication_lag_entries", "Entries that a peer lacks, as the leader knows", false, lag),
        (
            "raftmq_proposals_bytes",
            "Bytes of proposals without an outcome",
            false,
            each(&|_, status| status.proposals_bytes as f64),
        ),
        (
            "raftmq_entries_in_flight",
            "Entries proposed and not applied",
            false,
            each(&|_, status| status.entries_in_flight as f64),
        ),
        (
            "raftmq_sends_in_flight_bytes",
            "Bytes of messages between arrival and answer",
            false,
            each(&|group, _| group.admission.in_flight_bytes() as f64),
        ),
        (
            "raftmq_leader_requests_in_flight",
            "Requests for the leader between arrival and answer",
            false,
            each(&|group, _| group.work.count() as f64),
        ),
        (
            "raftmq_heartbeat_timeouts",
            "Raft heartbeats without an answer in time",
            true,
            each(&|_, status| status.heartbeat_timeouts as f64),
        ),
        (
            "raftmq_inconsistent_requests",
            "Appends refused because CRC, place or chain did not fit",
            true,
            each(&|_, status| status.inconsistent_requests as f64),
        ),
        ("raftmq_broken_streams", "Append streams that broke", true, each(&|_, status| status.broken_streams as f64)),
        (
            "raftmq_state_agreed_index",
            "Newest checkpoint at which a majority of replicas had the same state",
            false,
            each(&|_, status| index(status.state_agreed)),
        ),
        (
            "raftmq_state_split",
            "1 if no majority of replicas had the same state at the newest checkpoint that was compared: find out why",
            false,
            each(&|_, status| f64::from(u8::from(status.state_split.is_some()))),
        ),
        (
            "raftmq_clock_offset_ms",
            "How far the leader's wall clock surely is from the median of the voters', ahead if positive; 0 elsewhere",
            false,
            each(&|_, status| status.clock_offset_ms.unwrap_or_default() as f64),
        ),
        (
            "raftmq_clock_steps_refused",
            "Times that this machine's wall clock was not followed: it was moved by more than 5 s, or is wrong",
            true,
            each(&|_, status| status.clock_steps_refused as f64),
        ),
        (
            "raftmq_clock_hand_overs",
            "Times that leadership was handed over because this machine's clock was off",
            true,
            each(&|_, status| status.clock_hand_overs as f64),
        ),
        (
            "raftmq_damaged_images",
            "Times that an image was not sent because it is damaged here",
            true,
            each(&|_, status| status.damaged_images as f64),
        ),
        (
            "raftmq_repaired_frames",
            "Frames of a damaged log that this start fetched from the peers",
            true,
            each(&|_, status| status.repaired.frames as f64),
        ),
        (
            "raftmq_repaired_bytes",
            "Bytes of the log that were damaged and fetched from the peers",
            true,
            each(&|_, status| status.repaired.bytes as f64),
        ),
        (
            "raftmq_scrubbed_bytes",
            "Bytes of the log that the scrubber has verified",
            true,
            each(&|_, status| status.scrubbed.bytes as f64),
        ),
        (
            "raftmq_scrub_rounds",
            "Times that the scrubber has verified all full segments",
            true,
            each(&|_, status| status.scrubbed.rounds as f64),
        ),
        (
            "raftmq_scrub_physical_offset",
            "Where the scrubber reads",
            false,
            each(&|_, status| status.scrubbed.physical_offset as f64),
        ),
        (
            "raftmq_scrub_findings",
            "Damage that the scrubber came upon",
            true,
            each(&|_, status| status.scrubbed.findings as f64),
        ),
        (
            "raftmq_log_writer_bytes",
            "Bytes of entries that wait for the log's writer",
            false,
            each(&|group, _| group.raft.log().stats().queued_bytes as f64),
        ),
        (
            "raftmq_derived_changes_bytes",
            "Bytes of changes that wait for the derived files",
            false,
            each(&|group, _| group.reader.derived_stats().waiting_bytes as f64),
        ),
        (
            "raftmq_half_messages",
            "Messages that wait for the end of their transaction",
            false,
            each(&|group, _| group.reader.pending().half as f64),
        ),
        (
            "raftmq_transactions_committed",
            "Transactions committed here as leader",
            true,
            each(&|group, _| group.transactions.committed.load(Ordering::Relaxed) as f64),
        ),
        (
            "raftmq_transactions_rolled_back",
            "Transactions rolled back here as leader",
            true,
            each(&|group, _| group.transactions.rolled_back.load(Ordering::Relaxed) as f64),
        ),
        (
            "raftmq_transactions_ended_before",
            "Ends of transactions that had ended",
            true,
            each(&|group, _| group.transactions.refused.load(Ordering::Relaxed) as f64),
        ),
        (
            "raftmq_transactions_asked",
            "Questions handed to producers, how a transaction has ended",
            true,
            each(&|group, _| group.transactions.asked.load(Ordering::Relaxed) as f64),
        ),
        (
            "raftmq_transactions_discarded",
            "Half messages that nobody is asked about any more",
            true,
            each(&|group, _| group.transactions.discarded.load(Ordering::Relaxed) as f64),
        ),
        (
            "raftmq_scheduled_messages",
            "Messages that wait for their time",
            false,
            each(&|group, _| group.reader.pending().scheduled as f64),
        ),
        (
            "raftmq_pending_bytes",
            "Bytes of messages that wait to become visible",
            false,
            each(&|group, _| group.reader.pending().bytes as f64),
        ),
        ("raftmq_dead_letters", "Dead letters of a consumer group that are kept", false, dead_letters),
        ("raftmq_dead_letters_placed", "Dead letters that a consumer group ever had", true, dead_letters_ever),
        ("raftmq_topics", "Topics", false, each(&|group, _| group.reader.tables().topics().count() as f64)),
        (
            "raftmq_connections",
            "Connections that a heartbeat was heard on",
            false,
            each(&|group, _| group.connections.lock().len() as f64),
        ),
        (
            "raftmq_messages_put",
            "Messages stored for producers",
            true,
            each(&|group, _| group.rates.put.total() as f64),
        ),
        (
            "raftmq_messages_put_bytes",
            "Bytes of their records",
            true,
            each(&|group, _| group.rates.put_bytes.total() as f64),
        ),
        (
            "raftmq_messages_repeated",
            "Messages sent again that were stored before",
            true,
            each(&|group, _| group.rates.repeated.total() as f64),
        ),
        (
            "raftmq_pulls_found",
            "Pulls that brought messages",
            true,
            each(&|group, _| group.rates.get_found.total() as f64),
        ),
        ("raftmq_pulls_missed", "Pulls that brought none", true, each(&|group, _| group.rates.get_miss.total() as f64)),
        (
            "raftmq_messages_pulled",
            "Messages brought",
            true,
            each(&|group, _| group.rates.get_transferred.total() as f64),
        ),
        (
            "raftmq_messages_pulled_bytes",
            "Bytes of their records",
            true,
            each(&|group, _| group.rates.get_bytes.total() as f64),
        ),
    ];
    all.extend(pops);
    all
}

/// What consumer groups pop. Every replica says the same of what it has applied, the counters since its start.
fn pop_numbers(groups: &[Arc<BrokerGroup>]) -> [Metric; 5] {
    let [mut in_flight, mut popped, mut acknowledged, mut ended, mut given_up] = [const { Vec::new() }; 5];
    for group in groups {
        let tables = group.reader.tables();
        for ((consumer_group, topic), usage) in tables.pops().usage() {
            let put = |numbers: &mut Vec<Number>, number: f64| {
                let name = |label, name: &str| (label, name.to_owned());
                let group = name("group", group.broker_name());
                numbers.push((vec![group, name("consumer_group", consumer_group), name("topic", topic)], number));
            };
            put(&mut in_flight, usage.in_flight as f64);
            put(&mut popped, usage.counts.popped as f64);
            put(&mut acknowledged, usage.counts.acknowledged as f64);
            put(&mut ended, usage.counts.ended as f64);
            put(&mut given_up, usage.counts.given_up as f64);
        }
    }
    [
        ("raftmq_popped_in_flight", "Popped messages that are leased or wait to be popped again", false, in_flight),
        ("raftmq_popped_messages", "Messages popped, each delivery counted", true, popped),
        ("raftmq_popped_acknowledged", "Popped messages that were acknowledged", true, acknowledged),
        ("raftmq_popped_leases_ended", "Leases that ended without an acknowledgement", true, ended),
        ("raftmq_popped_dead_letters", "Popped messages given up after their last try", true, given_up),
    ]
}

/// How late delayed messages became visible. Every replica says the same of what it has applied since its start.
fn encode_lateness(groups: &[Arc<BrokerGroup>], encoder: &mut DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
    let mut metric = encoder.encode_descriptor(
        "raftmq_timer_lateness_seconds",
        "Group time between a delayed message's due time and the entry that made it visible",
        None,
        MetricType::Histogram,
    )?;
    for group in groups {
        let lateness = group.reader.lateness();
        let seconds = |ms: u64| ms as f64 / 1000.0;
        let buckets = lateness.buckets().map(|(bound, count)| (bound.map_or(f64::MAX, seconds), count));
        let labels = [("group", group.broker_name())];
        let mut family = metric.encode_family(&labels)?;
        let buckets: Vec<_> = buckets.collect();
        family.encode_histogram::<NoLabelSet>(seconds(lateness.sum_ms()), lateness.count(), &buckets, None)?;
    }
    Ok(())
}

impl Collector for Numbers {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let groups = self.0.groups.read().clone();
        encode_lateness(&groups, &mut encoder)?;
        for (name, help, grows, numbers) in numbers(&groups) {
            let kind = if grows { ConstCounter::new(0.0).metric_type() } else { ConstGauge::new(0.0).metric_type() };
            let mut metric = encoder.encode_descriptor(name, help, None, kind)?;
            for (labels, number) in numbers {
                let family = metric.encode_family(&labels)?;
                if grows {
                    ConstCounter::new(number).encode(family)?;
                } else {
                    ConstGauge::new(number).encode(family)?;
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    async fn http(bounds: Bounds) -> (Env, Http, String) {
        let (env, any) = (Env::real(), "127.0.0.1:0".parse().expect("an address"));
        let http = Http::start_within(bounds, &env, any, OpenGroups::default(), 0).await.expect("a port");
        let address = http.local_addr().to_string();
        (env, http, address)
    }

    /// Says `bytes` one at a time, then listens to the end.
    async fn slowly(env: &Env, address: &str, bytes: &[u8], pause: Duration) -> String {
        let (mut read, mut write) = env.net.connect(address).await.expect("a connection").into_split();
        let clock = env.clock.clone();
        let saying = async {
            for byte in bytes {
                if write.write_all(&[*byte]).await.is_err() {
                    break;
                }
                clock.sleep(pause).await;
            }
            std::future::pending::<()>().await;
        };
        let mut heard = Vec::new();
        let hearing = env.clock.timeout(PATIENCE, async {
            // A connection that is cut while bytes are on their way may end with an error.
            let _ = read.read_to_end(&mut heard).await;
        });
        tokio::select! {
            ended = hearing => ended.expect("the connection ends"),
            () = saying => {}
        }
        String::from_utf8(heard).expect("text")
    }

    #[tokio::test]
    async fn a_connection_brings_one_request_and_has_no_more_time_than_that_needs() {
        let (env, _http, address) = http(Bounds { visit: Duration::from_millis(300), ..BOUNDS }).await;
        let request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n";
        let heard = slowly(&env, &address, request, Duration::ZERO).await;
        assert!(heard.starts_with("HTTP/1.1 200") && heard.contains("connection: close"), "{heard}");
        assert_eq!(slowly(&env, &address, request, Duration::from_millis(50)).await, "", "a header that drips in");
        assert_eq!(slowly(&env, &address, b"", Duration::ZERO).await, "", "nothing at all");
    }

    #[tokio::test]
    async fn a_flood_of_connections_delays_a_page_and_does_not_end_it() {
        let (env, _http, address) = http(Bounds { connections: 2, visit: Duration::from_millis(300) }).await;
        let mut silent = Vec::new();
        for _ in 0..10 {
            silent.push(env.net.connect(&address).await.expect("a connection"));
        }
        let heard = slowly(&env, &address, b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n", Duration::ZERO).await;
        assert!(heard.starts_with("HTTP/1.1 200"), "{heard}");
    }
}
