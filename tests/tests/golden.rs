//! Every frame that a real client was seen to send: it is read completely, written again without loss, and answered.
//!
//! What could go wrong: a field that one client leaves out is required here, a number comes as text, a header is binary
//! where only JSON was tried, a request code routes nowhere. The frames lie in `golden/<client>/<code>-<n>.frame`.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use env::Env;
use protocol::body::{HeartbeatData, LockBatchRequest, SubscriptionGroupConfig};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::{RemotingCommand, SerializeType};
use protocol::ext_fields::ExtFields;
use protocol::frame::{self, Frame, FrameLimits};
use protocol::header::*;
use protocol::{batch, json};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tests::raw::{Heard, RawConnection, encoded};

/// Reads what a code carries. The error says what cannot be read.
type Check = fn(&RemotingCommand) -> Result<(), String>;

/// What each code carries. A captured code that is not here fails the run: somebody must say how it is read.
const CHECKS: &[(RequestCode, &[Check])] = &[
    (RequestCode::SEND_MESSAGE, &[header::<SendMessageRequest>, send]),
    (RequestCode::SEND_MESSAGE_V2, &[header::<SendMessageRequestV2>, send]),
    (RequestCode::SEND_BATCH_MESSAGE, &[header::<SendMessageRequestV2>, send]),
    (RequestCode::SEND_REPLY_MESSAGE, &[header::<SendMessageRequest>, send]),
    (RequestCode::SEND_REPLY_MESSAGE_V2, &[header::<SendMessageRequestV2>, send]),
    (RequestCode::CONSUMER_SEND_MSG_BACK, &[header::<ConsumerSendMessageBackRequest>]),
    (RequestCode::END_TRANSACTION, &[header::<EndTransactionRequest>]),
    (RequestCode::PULL_MESSAGE, &[header::<PullMessageRequest>]),
    (RequestCode::LITE_PULL_MESSAGE, &[header::<PullMessageRequest>]),
    (RequestCode::QUERY_MESSAGE, &[header::<QueryMessageRequest>]),
    (RequestCode::VIEW_MESSAGE_BY_ID, &[header::<ViewMessageRequest>]),
    (RequestCode::QUERY_CONSUMER_OFFSET, &[header::<QueryConsumerOffsetRequest>]),
    (RequestCode::UPDATE_CONSUMER_OFFSET, &[header::<UpdateConsumerOffsetRequest>]),
    (RequestCode::SEARCH_OFFSET_BY_TIMESTAMP, &[header::<SearchOffsetRequest>]),
    (RequestCode::GET_MAX_OFFSET, &[header::<QueueRequest>]),
    (RequestCode::GET_MIN_OFFSET, &[header::<QueueRequest>]),
    (RequestCode::GET_EARLIEST_MSG_STORETIME, &[header::<QueueRequest>]),
    (RequestCode::HEART_BEAT, &[body::<HeartbeatData>]),
    (RequestCode::UNREGISTER_CLIENT, &[header::<UnregisterClientRequest>]),
    (RequestCode::GET_CONSUMER_LIST_BY_GROUP, &[header::<ConsumerGroupRequest>]),
    (RequestCode::LOCK_BATCH_MQ, &[body::<LockBatchRequest>]),
    (RequestCode::UNLOCK_BATCH_MQ, &[body::<LockBatchRequest>]),
    (RequestCode::UPDATE_AND_CREATE_TOPIC, &[header::<CreateTopicRequest>]),
    (RequestCode::DELETE_TOPIC_IN_BROKER, &[header::<TopicRequest>]),
    (RequestCode::DELETE_TOPIC_IN_NAMESRV, &[header::<NamesrvTopicRequest>]),
    (RequestCode::GET_TOPIC_CONFIG, &[header::<TopicRequest>]),
    (RequestCode::GET_ALL_TOPIC_CONFIG, &[header::<GetAllTopicsRequest>]),
    (RequestCode::GET_TOPIC_STATS_INFO, &[header::<TopicRequest>]),
    (RequestCode::QUERY_TOPIC_CONSUME_BY_WHO, &[header::<TopicRequest>]),
    (RequestCode::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, &[body::<SubscriptionGroupConfig>]),
    (RequestCode::GET_ALL_SUBSCRIPTIONGROUP_CONFIG, &[header::<GetAllGroupsRequest>]),
    (RequestCode::DELETE_SUBSCRIPTIONGROUP, &[header::<DeleteGroupRequest>]),
    (RequestCode::GET_CONSUMER_CONNECTION_LIST, &[header::<ConsumerGroupRequest>]),
    (RequestCode::GET_PRODUCER_CONNECTION_LIST, &[header::<ProducerGroupRequest>]),
    (RequestCode::GET_CONSUME_STATS, &[header::<GetConsumeStatsRequest>]),
    (RequestCode::INVOKE_BROKER_TO_RESET_OFFSET, &[header::<ResetOffsetRequest>]),
    (RequestCode::GET_BROKER_RUNTIME_INFO, &[]),
    (RequestCode::GET_BROKER_CONFIG, &[]),
    (RequestCode::GET_ROUTEINFO_BY_TOPIC, &[header::<GetRouteInfoRequest>]),
    (RequestCode::GET_BROKER_CLUSTER_INFO, &[]),
    (RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER, &[]),
    (RequestCode::GET_TOPICS_BY_CLUSTER, &[header::<ClusterRequest>]),
    (RequestCode::GET_KV_CONFIG, &[header::<KvConfigRequest>]),
    (RequestCode::PUT_KV_CONFIG, &[header::<PutKvConfigRequest>]),
];

/// Codes that clients send to a NameServer; all others go to a broker.
const TO_NAME_SERVER: &[RequestCode] = &[
    RequestCode::GET_ROUTEINFO_BY_TOPIC,
    RequestCode::GET_BROKER_CLUSTER_INFO,
    RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER,
    RequestCode::GET_TOPICS_BY_CLUSTER,
    RequestCode::GET_KV_CONFIG,
    RequestCode::PUT_KV_CONFIG,
    RequestCode::DELETE_TOPIC_IN_NAMESRV,
];

/// The header reads, and what is read is all that writing it again needs.
fn header<H: CommandHeader + PartialEq + std::fmt::Debug>(command: &RemotingCommand) -> Result<(), String> {
    let read: H = command.header().map_err(|error| error.to_string())?;
    let mut written = ExtFields::new();
    read.write_to(&mut written);
    let again = H::read_from(&written).map_err(|error| format!("written again: {error}"))?;
    if again == read { Ok(()) } else { Err(format!("{read:?} reads back as {again:?}")) }
}

/// The body reads, and what is read is all that writing it again needs.
fn body<T>(command: &RemotingCommand) -> Result<(), String>
where
    T: DeserializeOwned + Serialize + PartialEq + Default + std::fmt::Debug,
{
    let read: T = command.json().map_err(|error| error.to_string())?;
    if read == T::default() {
        return Err("nothing in the body was recognised".to_owned());
    }
    let again: T = json::from_slice(&json::to_vec(&read)).map_err(|error| format!("written again: {error}"))?;
    if again == read { Ok(()) } else { Err(format!("{read:?} reads back as {again:?}")) }
}

/// Either form of header gives the same send; a batch's body comes apart, and back together to the same bytes.
fn send(command: &RemotingCommand) -> Result<(), String> {
    let send = SendMessageRequest::of(command).map_err(|error| error.to_string())?;
    if send.topic.is_empty() || send.born_timestamp <= 0 {
        return Err(format!("no send of this century: {send:?}"));
    }
    if send.batch {
        let inner = batch::decode(&command.body).map_err(|error| error.to_string())?;
        for message in &inner {
            if message.body.is_empty() {
                return Err("an inner message without a body".to_owned());
            }
        }
    }
    Ok(())
}

struct Captured {
    name: String,
    bytes: Vec<u8>,
    command: RemotingCommand,
}

fn captured() -> Vec<Captured> {
    let root = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/golden"));
    let mut paths = Vec::new();
    #[allow(clippy::disallowed_methods)] // The files are the test's own, not the program's.
    for client in std::fs::read_dir(&root).expect("tests/golden").map(|entry| entry.expect("an entry").path()) {
        if client.is_dir() {
            paths.extend(std::fs::read_dir(client).expect("a client's frames").map(|entry| entry.expect("one").path()));
        }
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "frame"));
    paths.sort();
    assert!(!paths.is_empty(), "no frame under {}: nothing would be tested", root.display());
    let read = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("under the root").display().to_string();
        #[allow(clippy::disallowed_methods)] // As above.
        let bytes = std::fs::read(&path).expect("a frame");
        let command = whole_command(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
        Captured { name, bytes, command }
    };
    paths.into_iter().map(read).collect()
}

/// The one command that the bytes are.
fn whole_command(bytes: &[u8]) -> Result<RemotingCommand, String> {
    let mut buffer = BytesMut::from(bytes);
    match frame::decode(&mut buffer, &FrameLimits::default()).map_err(|error| error.to_string())? {
        Some(Frame::Command(command)) if buffer.is_empty() => Ok(command),
        Some(Frame::Command(_)) => Err(format!("{} bytes behind the frame", buffer.len())),
        Some(Frame::Undecodable(frame)) => Err(format!("undecodable: {}", frame.reason)),
        None => Err("not a whole frame".to_owned()),
    }
}

#[test]
fn what_real_clients_send_is_read_completely() {
    let mut wrong = Vec::new();
    let mut clients = BTreeSet::new();
    let mut serializations = BTreeSet::new();
    for Captured { name, command, .. } in captured() {
        clients.insert(name.split('/').next().expect("a client's name").to_owned());
        serializations.insert(command.serialize == SerializeType::Binary);
        let code_in_name = name.rsplit('/').next().and_then(|file| file.split('-').next());
        assert_eq!(code_in_name, Some(command.code.to_string().as_str()), "{name} is named after another code");
        assert!(!command.is_response(), "{name} is a response");
        match CHECKS.iter().find(|(code, _)| *code == command.request_code()) {
            None => wrong.push(format!("{name}: code {} has no row in CHECKS", command.code)),
            Some((_, checks)) => {
                let failed = checks.iter().filter_map(|check| check(&command).err());
                wrong.extend(failed.map(|error| format!("{name}: {error}")));
            }
        }
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
    assert!(clients.len() >= 4, "several clients' frames are kept, here are only {clients:?}");
    assert_eq!(serializations.len(), 2, "both header forms are among the captured");
}

#[test]
fn what_is_written_again_is_the_same_command() {
    for Captured { name, command, .. } in captured() {
        let again = whole_command(&encoded(&command)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(again, command, "{name}");
    }
}

#[test]
fn a_captured_frame_needs_every_one_of_its_bytes() {
    for Captured { name, bytes, .. } in captured() {
        for cut in [1, 4, 7, bytes.len() / 2, bytes.len() - 1] {
            let mut buffer = BytesMut::from(&bytes[..cut]);
            let early = frame::decode(&mut buffer, &FrameLimits::default());
            assert_eq!(early, Ok(None), "{name} cut to {cut} of {} bytes", bytes.len());
        }
    }
}

/// Long enough for a request parked by a long poll: the captured pulls ask for up to 20 s.
const PATIENCE: Duration = Duration::from_secs(30);

/// Each frame, byte for byte, to the server it was meant for: two-way requests are answered under their own number by
/// something else than "not supported", one-way requests by nothing at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_real_clients_send_is_answered() {
    let env = Env::real();
    let cluster = embedded::Cluster::builder().nodes(1).start().await.expect("a cluster");
    let mut wrong = Vec::new();
    let mut captured = captured();
    // Pulls first, while their topics do not exist: nothing is parked then.
    captured.sort_by_key(|captured| captured.command.request_code() != RequestCode::PULL_MESSAGE);
    for Captured { name, bytes, command } in captured {
        let to_name_server = TO_NAME_SERVER.contains(&command.request_code());
        let address = if to_name_server { cluster.name_server() } else { cluster.address(0) };
        let mut connection = RawConnection::open(&env, &address.to_string()).await.expect("a connection");
        connection.say(&bytes).await;
        if command.is_one_way() {
            // The answer to what is asked next is the first one to come.
            let mut next = RemotingCommand::request(RequestCode(9_999));
            next.opaque = command.opaque.wrapping_add(1);
            connection.say(&encoded(&next)).await;
            match connection.hear(PATIENCE).await {
                Heard::Answer(answer) if answer.opaque == next.opaque => {}
                other => wrong.push(format!("{name}: one-way, and yet {other:?}")),
            }
            continue;
        }
        match connection.hear(PATIENCE).await {
            Heard::Answer(answer) if answer.opaque != command.opaque => {
                wrong.push(format!("{name}: request {} answered as {}", command.opaque, answer.opaque));
            }
            Heard::Answer(answer) if answer.response_code() == ResponseCode::REQUEST_CODE_NOT_SUPPORTED => {
                wrong.push(format!("{name}: code {} does not route", command.code));
            }
            Heard::Answer(answer) if answer.serialize != command.serialize => {
                wrong.push(format!("{name}: answered in another header form"));
            }
            Heard::Answer(_) => {}
            other => wrong.push(format!("{name}: {other:?}")),
        }
    }
    cluster.shutdown().await;
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}
