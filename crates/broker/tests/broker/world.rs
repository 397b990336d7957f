//! Brokers of one group in this process, a client that speaks the wire, and a NameServer that only listens.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use broker::config::{BrokerConfig, Flush, GroupConfig, Limits, MessagePolicy, RaftTiming, Retention};
use broker::{Broker, BrokerGroup};
use bytes::{Bytes, BytesMut};
use env::Env;
use parking_lot::Mutex;
use protocol::body::{
    ConsumerData, HeartbeatData, LockBatchRequest, LockBatchResponse, MessageQueue, ProducerData, SubscriptionData,
};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::frame::{self, FrameLimits};
use protocol::header::{
    ConsumerSendMessageBackRequest, OffsetResponse, PullMessageRequest, PullMessageResponse,
    QueryConsumerOffsetRequest, QueueRequest, SendMessageRequest, SendMessageRequestV2, SendMessageResponse,
    UpdateConsumerOffsetRequest,
};
use protocol::record::{RecordView, split};
use protocol::sys_flag::PullSysFlag;
use remoting::{CallError, Client, Connection, Handler, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

pub const CLUSTER: &str = "TestCluster";
pub const BROKER: &str = "broker-t";
/// Longer than anything here should take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// As [`env::net::free_loopback`].
pub fn free_address() -> SocketAddr {
    env::net::free_loopback().expect("a free port")
}

pub fn group_config(dir: &Path) -> GroupConfig {
    let (listen, peer) = (free_address(), free_address());
    GroupConfig {
        broker_name: BROKER.to_owned(),
        data_dir: dir.to_path_buf(),
        listen,
        vip: false,
        advertised_address: listen,
        peer_listen: peer,
        peer_address: peer.to_string(),
        founders: vec![peer.to_string()],
        join: false,
        flush: Flush::Sync,
        segment_bytes: 16 << 20,
        catch_up_bytes_per_s: 0,
        scrub_bytes_per_s: 0,
        messages: MessagePolicy { delay_levels: vec![Duration::from_millis(300); 18], ..MessagePolicy::default() },
        retention: Retention { warning_level_percent: 100, ..Retention::default() },
        limits: Limits::default(),
        raft: RaftTiming {
            heartbeat: Duration::from_millis(50),
            election: (Duration::from_millis(250), Duration::from_millis(500)),
        },
    }
}

pub fn broker_config(group: GroupConfig, name_servers: Vec<String>) -> BrokerConfig {
    BrokerConfig {
        cluster: CLUSTER.to_owned(),
        name_servers,
        http: None,
        allow_unauthenticated: false,
        groups: vec![group],
    }
}

pub async fn start(config: BrokerConfig) -> Broker {
    start_in(Env::real(), config).await
}

/// The same in other surroundings.
pub async fn start_in(env: Env, config: BrokerConfig) -> Broker {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
    let starting = Broker::start(env, config);
    let started = Env::real().clock.timeout(PATIENCE, starting).await.expect("it starts in time");
    started.expect("it starts")
}

/// Head and body of a page of the HTTP port.
pub async fn http_get(address: &str, path: &str) -> String {
    let (mut read, mut write) = Env::real().net.connect(address).await.expect("a connection").into_split();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    write.write_all(request.as_bytes()).await.expect("it is sent");
    let mut page = String::new();
    read.read_to_string(&mut page).await.expect("an answer");
    page
}

/// Resolves when `condition` holds.
pub async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let clock = Env::real().clock;
    let holds = async {
        while !condition().await {
            clock.sleep(Duration::from_millis(10)).await;
        }
    };
    clock.timeout(PATIENCE, holds).await.unwrap_or_else(|| panic!("not in time: {what}"));
}

/// Keeps the requests that a broker sends to its clients, and answers each with this body.
#[derive(Debug, Default)]
pub struct Heard {
    pub requests: Mutex<Vec<RemotingCommand>>,
    pub answer: Mutex<Bytes>,
}

impl Handler for Heard {
    async fn handle(self: &Arc<Self>, _connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        let reply = request.reply(ResponseCode::SUCCESS).with_body(self.answer.lock().clone());
        self.requests.lock().push(request);
        Some(reply)
    }
}

/// A NameServer that takes every registration and remembers it.
pub async fn name_server() -> (Server, Arc<Heard>) {
    let heard = Arc::new(Heard::default());
    let server = Server::start(&Env::real(), free_address(), remoting::Limits::default(), heard.clone()).await;
    (server.expect("a port"), heard)
}

/// A client of one broker address.
pub struct Wire {
    pub address: String,
    pub client: Client<Heard>,
    pub heard: Arc<Heard>,
}

/// A message as a consumer sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub body: String,
    pub queue_offset: i64,
    pub physical_offset: i64,
    pub topic: String,
    pub reconsume_times: i32,
    pub record: Bytes,
}

impl Seen {
    pub fn property(&self, name: &str) -> Option<String> {
        RecordView::parse(&self.record).expect("a record").property(name).map(str::to_owned)
    }
}

impl Wire {
    pub fn to(group: &BrokerGroup) -> Wire {
        let heard = Arc::new(Heard::default());
        let client = Client::new(&Env::real(), remoting::Limits::default(), heard.clone());
        Wire { address: group.advertised_address().to_string(), client, heard }
    }

    pub async fn try_call(&self, request: RemotingCommand) -> Result<RemotingCommand, CallError> {
        self.client.call(&self.address, request, PATIENCE).await
    }

    pub async fn call(&self, request: RemotingCommand) -> RemotingCommand {
        self.try_call(request).await.expect("an answer")
    }

    /// Says these things on a connection of their own and closes it, without waiting for any answer.
    pub async fn say_and_leave(&self, requests: &[RemotingCommand]) {
        let mut stream = Env::real().net.connect(&self.address).await.expect("it listens");
        let mut frames = BytesMut::new();
        for request in requests {
            frame::encode(request, &FrameLimits::default(), &mut frames).expect("it fits");
        }
        stream.write_all(&frames).await.expect("it reads");
    }

    pub async fn send(&self, request: SendMessageRequest, body: &str) -> RemotingCommand {
        let command = RemotingCommand::request_with(RequestCode::SEND_MESSAGE_V2, &SendMessageRequestV2(request));
        self.call(command.with_body(body.as_bytes().to_vec())).await
    }

    /// Sends to queue 0 and must succeed.
    pub async fn sent(&self, topic: &str, body: &str, properties: &[(&str, &str)]) -> SendMessageResponse {
        let answer = self.send(send_request(topic, properties), body).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        answer.header().expect("a header")
    }

    pub async fn pull(&self, request: PullMessageRequest) -> Pulled {
        let answer = self.call(RemotingCommand::request_with(RequestCode::PULL_MESSAGE, &request)).await;
        Pulled {
            code: answer.code,
            remark: answer.remark_text().to_owned(),
            header: answer.header().ok(),
            messages: messages(&answer.body),
        }
    }

    pub async fn heartbeat(&self, client_id: &str, group: &str, topics: &[(&str, &str)]) -> RemotingCommand {
        let subscription =
            |(topic, tags): &(&str, &str)| SubscriptionData::by_tags(topic, tags, 1).expect("an expression");
        let body = HeartbeatData {
            client_id: client_id.to_owned(),
            consumer_data_set: vec![ConsumerData {
                group_name: group.to_owned(),
                subscription_data_set: topics.iter().map(subscription).collect(),
                ..ConsumerData::default()
            }],
            producer_data_set: vec![ProducerData { group_name: "pg".to_owned() }],
            ..HeartbeatData::default()
        };
        let answer = self.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&body)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        answer
    }

    pub async fn max_offset(&self, topic: &str) -> i64 {
        self.queue_offset(RequestCode::GET_MAX_OFFSET, topic).await
    }

    pub async fn queue_offset(&self, code: RequestCode, topic: &str) -> i64 {
        let request = QueueRequest { topic: topic.to_owned(), ..QueueRequest::default() };
        let answer = self.call(RemotingCommand::request_with(code, &request)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        answer.header::<OffsetResponse>().expect("an offset").offset
    }

    /// The consumer offset, or the code that says why there is none.
    pub async fn consumer_offset(&self, group: &str, topic: &str, zero: bool) -> Result<i64, i32> {
        let request = QueryConsumerOffsetRequest {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id: 0,
            set_zero_if_not_found: Some(zero),
            broker_name: None,
        };
        let answer = self.call(RemotingCommand::request_with(RequestCode::QUERY_CONSUMER_OFFSET, &request)).await;
        if answer.code == 0 {
            Ok(answer.header::<OffsetResponse>().expect("an offset").offset)
        } else {
            Err(answer.code)
        }
    }

    pub fn offset_update(group: &str, topic: &str, offset: i64) -> RemotingCommand {
        let request = UpdateConsumerOffsetRequest {
            consumer_group: group.to_owned(),
            topic: topic.to_owned(),
            queue_id: 0,
            commit_offset: offset,
            broker_name: None,
        };
        RemotingCommand::request_with(RequestCode::UPDATE_CONSUMER_OFFSET, &request)
    }

    pub async fn send_back(&self, group: &str, offset: i64, delay_level: i32) -> RemotingCommand {
        let request = ConsumerSendMessageBackRequest {
            offset,
            group: group.to_owned(),
            delay_level,
            max_reconsume_times: Some(2),
            ..ConsumerSendMessageBackRequest::default()
        };
        self.call(RemotingCommand::request_with(RequestCode::CONSUMER_SEND_MSG_BACK, &request)).await
    }

    /// Locks queue 0 of the topic; whether it was got.
    pub async fn lock(&self, client_id: &str, group: &str, topic: &str) -> bool {
        let request = RemotingCommand::request(RequestCode::LOCK_BATCH_MQ);
        let answer = self.call(request.with_json(&lock_request(client_id, group, topic))).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
        !answer.json::<LockBatchResponse>().expect("a body").lock_ok_mq_set.is_empty()
    }

    pub async fn unlock(&self, client_id: &str, group: &str, topic: &str) {
        let request = RemotingCommand::request(RequestCode::UNLOCK_BATCH_MQ);
        let answer = self.call(request.with_json(&lock_request(client_id, group, topic))).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
    }
}

pub fn lock_request(client_id: &str, group: &str, topic: &str) -> LockBatchRequest {
    LockBatchRequest {
        client_id: client_id.to_owned(),
        consumer_group: group.to_owned(),
        mq_set: vec![MessageQueue::new(topic, BROKER, 0)],
        only_this_broker: false,
    }
}

pub struct Pulled {
    pub code: i32,
    pub remark: String,
    pub header: Option<PullMessageResponse>,
    pub messages: Vec<Seen>,
}

impl Pulled {
    pub fn next(&self) -> i64 {
        self.header.as_ref().expect("a header").next_begin_offset
    }

    pub fn bodies(&self) -> Vec<&str> {
        self.messages.iter().map(|message| message.body.as_str()).collect()
    }
}

pub fn messages(body: &Bytes) -> Vec<Seen> {
    let seen = |record: Bytes| {
        let view = RecordView::parse(&record).expect("a record");
        Seen {
            body: String::from_utf8(view.body().to_vec()).expect("text"),
            queue_offset: view.queue_offset(),
            physical_offset: view.physical_offset(),
            topic: view.topic().to_owned(),
            reconsume_times: view.reconsume_times(),
            record: record.clone(),
        }
    };
    split(body).map(|record| seen(record.expect("a record"))).collect()
}

pub fn encoded(properties: &[(&str, &str)]) -> String {
    properties.iter().map(|(name, value)| format!("{name}\u{1}{value}\u{2}")).collect()
}

pub fn send_request(topic: &str, properties: &[(&str, &str)]) -> SendMessageRequest {
    SendMessageRequest {
        producer_group: "pg".to_owned(),
        topic: topic.to_owned(),
        default_topic: "TBW102".to_owned(),
        default_topic_queue_nums: 4,
        queue_id: 0,
        born_timestamp: 1_700_000_000_000,
        properties: Some(encoded(properties)),
        ..SendMessageRequest::default()
    }
}

/// A pull of queue 0 that carries its own subscription and does not wait.
pub fn pull_request(topic: &str, offset: i64) -> PullMessageRequest {
    PullMessageRequest {
        consumer_group: "puller".to_owned(),
        topic: topic.to_owned(),
        queue_offset: offset,
        max_msg_nums: 32,
        sys_flag: PullSysFlag::SUBSCRIPTION,
        subscription: Some("*".to_owned()),
        ..PullMessageRequest::default()
    }
}

/// The same, parked for as long as it takes.
pub fn parked(request: PullMessageRequest) -> PullMessageRequest {
    PullMessageRequest {
        sys_flag: request.sys_flag | PullSysFlag::SUSPEND,
        suspend_timeout_millis: PATIENCE.as_millis() as i64,
        ..request
    }
}
