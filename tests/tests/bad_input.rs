//! What a broken or hostile client can say, and what must happen: a table of bytes and outcomes against one live cluster.
//!
//! What could go wrong: a panic (the process is gone), a worker that spins, memory that a length word allocates, an answer
//! to a one-way request, a connection closed that could have been kept, a name that becomes a path. After every single
//! case another client, on a connection of its own, still sends and pulls; and the whole table does not make the process
//! grow.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use client::admin::Admin;
use embedded::Cluster;
use env::Env;
use protocol::batch::{self, InnerMessage};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{CreateTopicRequest, SendMessageRequest};
use protocol::record::RecordView;
use remoting::{Limits, NoRequests};
use tests::raw::{BINARY, Heard, JSON, RawConnection, encoded, framed};

/// Who is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    Broker,
    NameServer,
}

/// How the bytes are said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    AtOnce,
    ByteByByte,
    /// The last bytes one by one, a second apart.
    ByteASecond,
}

/// What must happen.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Must {
    /// A response with this code. The connection is kept.
    Answer(ResponseCode),
    /// No response, and the connection is kept: what is asked next is answered.
    StaySilent,
    /// The server closes the connection.
    Close,
    /// Nothing is heard because the client is gone.
    BearHangUp,
}

struct Case {
    name: String,
    server: Server,
    manner: Manner,
    bytes: Vec<u8>,
    must: Must,
}

/// Long enough for a busy machine; a case that waits so long has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// So many seconds does a case of one byte a second take.
const PACED_BYTES: usize = 4;

/// The request number of every case: an answer under another one is no answer.
const OPAQUE: i32 = 4_711;

/// How much larger the process may be at the end.
const GROWTH_KIB_MAX: u64 = 64 * 1024;

const TOPIC: &str = "Plain";
const GROUP: &str = "plain-group";

fn raw(name: &str, bytes: impl Into<Vec<u8>>, must: Must) -> Case {
    Case { name: name.to_owned(), server: Server::Broker, manner: Manner::AtOnce, bytes: bytes.into(), must }
}

fn asked(name: &str, mut request: RemotingCommand, must: Must) -> Case {
    request.opaque = OPAQUE;
    raw(name, encoded(&request), must)
}

fn refused(name: &str, request: RemotingCommand, code: ResponseCode) -> Case {
    asked(name, request, Must::Answer(code))
}

fn accepted(name: &str, request: RemotingCommand) -> Case {
    refused(name, request, ResponseCode::SUCCESS)
}

impl Case {
    fn at_name_server(mut self) -> Case {
        self.server = Server::NameServer;
        self
    }

    fn byte_by_byte(mut self) -> Case {
        self.manner = Manner::ByteByByte;
        self
    }

    fn byte_a_second(mut self) -> Case {
        self.manner = Manner::ByteASecond;
        self
    }
}

/// A well-formed request of a code, and then some fields that are not; an empty one counts as absent.
fn request(code: RequestCode, well_formed: &[(&str, &str)], odd: &[(&str, &str)]) -> RemotingCommand {
    let mut command = RemotingCommand::request(code);
    for (name, value) in well_formed.iter().chain(odd) {
        command = command.with_field(name, value);
    }
    command
}

fn send(odd: &[(&str, &str)]) -> RemotingCommand {
    let well_formed = [
        ("producerGroup", "pg"),
        ("topic", TOPIC),
        ("defaultTopic", "TBW102"),
        ("defaultTopicQueueNums", "4"),
        ("queueId", "0"),
        ("sysFlag", "0"),
        ("bornTimestamp", "1700000000000"),
        ("flag", "0"),
        ("properties", ""),
    ];
    request(RequestCode::SEND_MESSAGE, &well_formed, odd).with_body(&b"body"[..])
}

fn send_batch(body: impl Into<Bytes>, odd: &[(&str, &str)]) -> RemotingCommand {
    send(&[("batch", "true")].iter().chain(odd).copied().collect::<Vec<_>>()).with_body(body)
}

fn pull(odd: &[(&str, &str)]) -> RemotingCommand {
    let well_formed = [
        ("consumerGroup", GROUP),
        ("topic", TOPIC),
        ("queueId", "0"),
        ("queueOffset", "0"),
        ("maxMsgNums", "1"),
        ("sysFlag", "4"), // The subscription comes along; not parked.
        ("commitOffset", "0"),
        ("suspendTimeoutMillis", "0"),
        ("subscription", "*"),
        ("subVersion", "0"),
        ("expressionType", "TAG"),
    ];
    request(RequestCode::PULL_MESSAGE, &well_formed, odd)
}

fn update_offset(odd: &[(&str, &str)]) -> RemotingCommand {
    let well_formed = [("consumerGroup", GROUP), ("topic", TOPIC), ("queueId", "0"), ("commitOffset", "1")];
    request(RequestCode::UPDATE_CONSUMER_OFFSET, &well_formed, odd)
}

fn queue_question(code: RequestCode, odd: &[(&str, &str)]) -> RemotingCommand {
    request(code, &[("topic", TOPIC), ("queueId", "0"), ("consumerGroup", GROUP), ("timestamp", "0")], odd)
}

fn create_topic(odd: &[(&str, &str)]) -> RemotingCommand {
    let well_formed = [
        ("topic", "Made"),
        ("defaultTopic", "TBW102"),
        ("readQueueNums", "1"),
        ("writeQueueNums", "1"),
        ("perm", "6"),
        ("topicFilterType", "SINGLE_TAG"),
        ("topicSysFlag", "0"),
        ("order", "false"),
    ];
    request(RequestCode::UPDATE_AND_CREATE_TOPIC, &well_formed, odd)
}

fn with_text(code: RequestCode, body: impl Into<Bytes>) -> RemotingCommand {
    RemotingCommand::request(code).with_body(body)
}

fn nested(levels: usize) -> String {
    "[".repeat(levels) + &"]".repeat(levels)
}

fn length_word(length: i32) -> Vec<u8> {
    [length.to_be_bytes(), 0_i32.to_be_bytes()].concat()
}

/// A JSON header as it stands, without a body.
fn header(text: &str) -> Vec<u8> {
    framed(JSON, text.as_bytes(), b"")
}

/// Bytes that are no frames, or hardly.
fn framing() -> Vec<Case> {
    use Must::*;
    let whole = encoded(&RemotingCommand { opaque: OPAQUE, ..send(&[]) });
    let mut header_beyond_frame = framed(JSON, b"{}", b"");
    header_beyond_frame[7] = 200;
    let mut longest_header = framed(JSON, b"{}", b"");
    longest_header[5..8].copy_from_slice(&[0xFF; 3]);
    let mut cases = vec![
        raw("length 0", length_word(0), Close),
        raw("length 3, less than the header word", length_word(3), Close),
        raw("length -1", length_word(-1), Close),
        raw("the smallest length", length_word(i32::MIN), Close),
        raw("the largest length", length_word(i32::MAX), Close),
        raw("one byte above the frame limit", length_word(16 * 1024 * 1024 - 3), Close),
        raw("a header that reaches beyond its frame", header_beyond_frame, Close),
        raw("a header of 16 MiB in a frame of a few bytes", longest_header, Close),
        raw("serialize type 2", framed(2, b"{}", b""), Close),
        raw("serialize type 255", framed(255, b"{}", b""), Close),
        raw("HTTP", &b"GET / HTTP/1.1\r\nHost: broker\r\n\r\n"[..], Close),
        raw("TLS", &[0x16_u8, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC, 0x03, 0x03][..], Close),
        raw("SSH", &b"SSH-2.0-OpenSSH_9.6\r\n"[..], Close),
        raw("a megabyte of ones", vec![0xFF_u8; 1024 * 1024], Close),
        raw("nothing at all", Vec::<u8>::new(), BearHangUp),
        raw("one byte", vec![0_u8], BearHangUp),
        raw("half a frame", &whole[..whole.len() / 2], BearHangUp),
        raw("a frame but for its last byte", &whole[..whole.len() - 1], BearHangUp),
        raw("16 MiB announced and never sent", length_word(16 * 1024 * 1024 - 4), BearHangUp),
        raw("one byte at a time", whole.clone(), Answer(ResponseCode::SUCCESS)).byte_by_byte(),
        raw("one byte a second", whole.clone(), Answer(ResponseCode::SUCCESS)).byte_a_second(),
        raw("no header", header(""), StaySilent),
        raw("a header that is no JSON", header("no header"), StaySilent),
        raw("a header that is a list", header("[]"), StaySilent),
        raw("a header that is a number", header("1"), StaySilent),
        raw("a header cut off", header(r#"{"code":10,"lang"#), StaySilent),
        raw("a header above its limit", header(&" ".repeat(600 * 1024)), StaySilent),
        raw("a header of zeros", framed(JSON, &[0; 64], b""), StaySilent),
        raw("a binary header cut off", framed(BINARY, &[0, 10, 0], b""), StaySilent),
        raw("a response that nobody asked for", header(r#"{"code":0,"flag":1,"opaque":4711}"#), StaySilent),
        raw("a one-way header that is wrong", header(r#"{"opaque":4711,"flag":2,"code":{}}"#), StaySilent),
        raw("a code that is an object", header(r#"{"opaque":4711,"code":{}}"#), Answer(ResponseCode::SYSTEM_ERROR)),
        raw(
            "a code beyond 32 bits",
            header(r#"{"opaque":4711,"code":99999999999}"#),
            Answer(ResponseCode::SYSTEM_ERROR),
        ),
        raw(
            "a code of a thousand digits",
            header(&format!(r#"{{"opaque":4711,"code":{}}}"#, "9".repeat(1000))),
            Answer(ResponseCode::SYSTEM_ERROR),
        ),
        raw(
            "JSON 100 000 levels deep in the header",
            header(&format!(r#"{{"opaque":4711,"code":10,"x":{}}}"#, nested(100_000))),
            Answer(ResponseCode::SYSTEM_ERROR),
        ),
        raw("no code", header(r#"{"opaque":4711}"#), Answer(ResponseCode::REQUEST_CODE_NOT_SUPPORTED)),
    ];
    let flood: Vec<String> = (0..10_000).map(|n| format!(r#""f{n}":"v""#)).collect();
    cases.push(raw(
        "10 000 fields",
        header(&format!(r#"{{"opaque":4711,"code":10,"extFields":{{{}}}}}"#, flood.join(","))),
        Answer(ResponseCode::SYSTEM_ERROR),
    ));
    // code, language, version, opaque, flag, and then a remark that is longer than the world.
    let mut binary = vec![0, 10, 0, 1, 0];
    binary.extend(OPAQUE.to_be_bytes());
    binary.extend(0_i32.to_be_bytes());
    binary.extend(i32::MAX.to_be_bytes());
    cases.push(raw(
        "a binary header whose remark has 2 GiB",
        framed(BINARY, &binary, b""),
        Answer(ResponseCode::SYSTEM_ERROR),
    ));
    cases
}

fn codes() -> Vec<Case> {
    let unknown = ResponseCode::REQUEST_CODE_NOT_SUPPORTED;
    let mut cases = Vec::new();
    for code in [-1, 0, 999, 65_536, i32::MAX, i32::MIN] {
        let request = RemotingCommand::request(RequestCode(code));
        cases.push(refused(&format!("code {code} at a broker"), request.clone(), unknown));
        cases.push(refused(&format!("code {code} at a NameServer"), request, unknown).at_name_server());
    }
    cases.push(asked(
        "an unknown code, one-way",
        RemotingCommand::request(RequestCode(999)).one_way(),
        Must::StaySilent,
    ));
    cases
}

fn sends() -> Vec<Case> {
    use ResponseCode as R;
    let long = "x".repeat(4096);
    let properties = |text: &str| send(&[("properties", text)]);
    let pair = |name: &str, value: &str| format!("{name}\u{1}{value}\u{2}");
    let flood: String = (0..2_000).map(|n| pair(&format!("p{n}"), "v")).collect();
    let too_many: String = (0..20_000).map(|n| pair(&format!("p{n}"), "v")).collect();
    let mut good = BytesMut::new();
    let inner = InnerMessage { flag: 0, body: b"inner", properties: "" };
    batch::encode(&inner, &mut good).expect("a small message");
    batch::encode(&inner, &mut good).expect("a small message");
    let changed = |at: usize, value: i32| {
        let mut bytes = good.to_vec();
        bytes[at..at + 4].copy_from_slice(&value.to_be_bytes());
        bytes
    };
    vec![
        refused("a send without any field", with_text(RequestCode::SEND_MESSAGE, &b"x"[..]), R::SYSTEM_ERROR),
        refused("a send V2 without any field", with_text(RequestCode::SEND_MESSAGE_V2, &b"x"[..]), R::SYSTEM_ERROR),
        refused("a send without a topic", send(&[("topic", "")]), R::SYSTEM_ERROR),
        refused(
            "a send that claims to be forwarded",
            send(&[("raftmqForwarded", "true"), ("raftmqBornHost", "10.0.0.1:1"), ("raftmqClientId", "c")]),
            R::SERVICE_NOT_AVAILABLE,
        ),
        refused("a queue id that is a word", send(&[("queueId", "four")]), R::SYSTEM_ERROR),
        refused("a queue id beyond 32 bits", send(&[("queueId", "99999999999")]), R::SYSTEM_ERROR),
        refused("a queue that does not exist", send(&[("queueId", "99999")]), R::INVALID_PARAMETER),
        accepted("a negative queue id: the broker chooses", send(&[("queueId", "-5")])),
        refused("a topic that is a path", send(&[("topic", "../x")]), R::INVALID_PARAMETER),
        refused("a topic that is an absolute path", send(&[("topic", "/etc/passwd")]), R::INVALID_PARAMETER),
        refused("a topic of blanks", send(&[("topic", "   ")]), R::INVALID_PARAMETER),
        refused("a topic with NUL", send(&[("topic", "a\0b")]), R::INVALID_PARAMETER),
        refused("a topic with a separator", send(&[("topic", "a\u{1}b")]), R::INVALID_PARAMETER),
        refused("a topic of 4 KiB", send(&[("topic", &long)]), R::INVALID_PARAMETER),
        refused("the retry topic of a path", send(&[("topic", "%RETRY%../x")]), R::INVALID_PARAMETER),
        refused("a topic of the system", send(&[("topic", "SCHEDULE_TOPIC_XXXX")]), R::NO_PERMISSION),
        refused(
            "a template that does not exist",
            send(&[("topic", "Fresh"), ("defaultTopic", "Nothing")]),
            R::TOPIC_NOT_EXIST,
        ),
        accepted(
            "the smallest number of queues for a new topic",
            send(&[("topic", "Fresh1"), ("defaultTopicQueueNums", "-2147483648")]),
        ),
        accepted(
            "the largest number of queues for a new topic",
            send(&[("topic", "Fresh2"), ("defaultTopicQueueNums", "2147483647")]),
        ),
        accepted("times before the beginning", send(&[("bornTimestamp", "-9223372036854775808")])),
        accepted("negative attempts", send(&[("reconsumeTimes", "-2147483648")])),
        accepted("a body of the largest size", send(&[]).with_body(vec![b'b'; 4 * 1024 * 1024])),
        refused("a body above the limit", send(&[]).with_body(vec![b'b'; 4 * 1024 * 1024 + 1]), R::MESSAGE_ILLEGAL),
        refused("a body of 15 MiB", send(&[]).with_body(vec![b'b'; 15 * 1024 * 1024]), R::MESSAGE_ILLEGAL),
        accepted("two thousand properties", properties(&flood)),
        refused("twenty thousand properties", properties(&too_many), R::MESSAGE_ILLEGAL),
        refused("one property of 40 KiB", properties(&pair("p", &"v".repeat(40 * 1024))), R::MESSAGE_ILLEGAL),
        accepted("properties that are none", properties("\u{1}\u{1}\u{2}no property\u{2}\u{2}\u{1}")),
        accepted("a thousand keys", properties(&pair("KEYS", &"k ".repeat(1_000)))),
        accepted("a delay level beyond the last", properties(&pair("DELAY", "2147483647"))),
        accepted("a negative delay level", properties(&pair("DELAY", "-1"))),
        accepted("a delay level that is a word", properties(&pair("DELAY", "long"))),
        refused("a delay that is a word", properties(&pair("TIMER_DELAY_SEC", "long")), R::MESSAGE_ILLEGAL),
        refused("the longest delay", properties(&pair("TIMER_DELAY_MS", &i64::MAX.to_string())), R::MESSAGE_ILLEGAL),
        refused(
            "the longest delay in s",
            properties(&pair("TIMER_DELAY_SEC", &i64::MAX.to_string())),
            R::MESSAGE_ILLEGAL,
        ),
        refused(
            "the last of all times",
            properties(&pair("TIMER_DELIVER_MS", &i64::MAX.to_string())),
            R::MESSAGE_ILLEGAL,
        ),
        accepted("the first of all times", properties(&pair("TIMER_DELIVER_MS", &i64::MIN.to_string()))),
        accepted("a batch", send_batch(good.to_vec(), &[])),
        refused("an empty batch", send_batch(Bytes::new(), &[]), R::MESSAGE_ILLEGAL),
        refused(
            "a batch of garbage",
            send_batch(&b"this is no batch, but it is long enough"[..], &[]),
            R::MESSAGE_ILLEGAL,
        ),
        refused("a batch of zeros", send_batch(vec![0_u8; 4096], &[]), R::MESSAGE_ILLEGAL),
        refused("a batch cut off", send_batch(good[..good.len() - 1].to_vec(), &[]), R::MESSAGE_ILLEGAL),
        refused("a batch with a size of -1", send_batch(changed(0, -1), &[]), R::MESSAGE_ILLEGAL),
        refused("a batch with a size of 2 GiB", send_batch(changed(0, i32::MAX), &[]), R::MESSAGE_ILLEGAL),
        refused("a batch with a body of -1", send_batch(changed(16, -1), &[]), R::MESSAGE_ILLEGAL),
        refused("a batch with a body of 2 GiB", send_batch(changed(16, i32::MAX), &[]), R::MESSAGE_ILLEGAL),
        refused(
            "a batch to a retry topic",
            send_batch(good.to_vec(), &[("topic", "%RETRY%plain-group")]),
            R::MESSAGE_ILLEGAL,
        ),
        asked("a bad send, one-way", send(&[("topic", "../x")]).one_way(), Must::StaySilent),
    ]
}

fn pulls_and_offsets() -> Vec<Case> {
    use RequestCode as Q;
    use ResponseCode as R;
    let long = "x".repeat(4096);
    let tags: Vec<String> = (0..10_000).map(|n| format!("tag{n}")).collect();
    let tags = tags.join(" || ");
    let largest = i64::MAX.to_string();
    vec![
        refused("a pull without any field", RemotingCommand::request(Q::PULL_MESSAGE), R::SYSTEM_ERROR),
        refused("a pull of a negative queue", pull(&[("queueId", "-5")]), R::INVALID_PARAMETER),
        refused("a pull of a queue that does not exist", pull(&[("queueId", "99999")]), R::INVALID_PARAMETER),
        refused("a pull of an unknown topic", pull(&[("topic", "../x")]), R::TOPIC_NOT_EXIST),
        refused("a pull by a group that is a path", pull(&[("consumerGroup", "../x")]), R::INVALID_PARAMETER),
        refused("a pull by a group of 4 KiB", pull(&[("consumerGroup", &long)]), R::INVALID_PARAMETER),
        refused("a pull before the beginning", pull(&[("queueOffset", "-5")]), R::PULL_OFFSET_MOVED),
        refused(
            "a pull from the first of all offsets",
            pull(&[("queueOffset", &i64::MIN.to_string())]),
            R::PULL_OFFSET_MOVED,
        ),
        refused("a pull from the last of all offsets", pull(&[("queueOffset", &largest)]), R::PULL_OFFSET_MOVED),
        refused("an offset that is a word", pull(&[("queueOffset", "first")]), R::SYSTEM_ERROR),
        accepted("a pull of -1 messages", pull(&[("maxMsgNums", "-1")])),
        accepted("a pull of 2 billion messages", pull(&[("maxMsgNums", "2147483647")])),
        accepted("a pull that stores a negative offset", pull(&[("sysFlag", "5"), ("commitOffset", "-9")])),
        refused("a pull with a filter that is none", pull(&[("expressionType", "GREP")]), R::SYSTEM_ERROR),
        refused("a pull without a subscription", pull(&[("sysFlag", "0")]), R::SUBSCRIPTION_NOT_EXIST),
        refused(
            "a pull of ten thousand tags",
            pull(&[("subscription", &tags), ("queueOffset", "0")]),
            R::PULL_RETRY_IMMEDIATELY,
        ),
        asked(
            "a pull parked for ever, and its client gone",
            pull(&[("sysFlag", "6"), ("suspendTimeoutMillis", &largest), ("queueId", "3")]),
            Must::BearHangUp,
        ),
        refused(
            "an offset of an unknown group",
            update_offset(&[("consumerGroup", "nobody")]),
            R::SUBSCRIPTION_GROUP_NOT_EXIST,
        ),
        refused("an offset of an unknown topic", update_offset(&[("topic", "../x")]), R::TOPIC_NOT_EXIST),
        refused("a negative offset", update_offset(&[("commitOffset", "-1")]), R::INVALID_PARAMETER),
        refused("an offset of a negative queue", update_offset(&[("queueId", "-5")]), R::INVALID_PARAMETER),
        refused(
            "an offset beyond 64 bits",
            update_offset(&[("commitOffset", "99999999999999999999")]),
            R::SYSTEM_ERROR,
        ),
        asked("a negative offset, one-way", update_offset(&[("commitOffset", "-1")]).one_way(), Must::StaySilent),
        asked(
            "an offset without any field, one-way",
            with_text(Q::UPDATE_CONSUMER_OFFSET, "").one_way(),
            Must::StaySilent,
        ),
        refused(
            "the offset of a negative queue",
            queue_question(Q::QUERY_CONSUMER_OFFSET, &[("queueId", "-5")]),
            R::INVALID_PARAMETER,
        ),
        refused("the end of no queue", RemotingCommand::request(Q::GET_MAX_OFFSET), R::SYSTEM_ERROR),
        accepted("the end of a negative queue", queue_question(Q::GET_MAX_OFFSET, &[("queueId", "-5")])),
        accepted("the beginning of an unknown topic", queue_question(Q::GET_MIN_OFFSET, &[("topic", "../x")])),
        accepted(
            "the first time of a queue that does not exist",
            queue_question(Q::GET_EARLIEST_MSG_STORETIME, &[("queueId", "99999")]),
        ),
        accepted(
            "the offset at the first of all times",
            queue_question(Q::SEARCH_OFFSET_BY_TIMESTAMP, &[("timestamp", &i64::MIN.to_string())]),
        ),
        accepted(
            "the offset at the last of all times",
            queue_question(Q::SEARCH_OFFSET_BY_TIMESTAMP, &[("timestamp", &largest)]),
        ),
        refused("a message before the log", request(Q::VIEW_MESSAGE_BY_ID, &[], &[("offset", "-1")]), R::SYSTEM_ERROR),
        refused(
            "a message in the middle of another",
            request(Q::VIEW_MESSAGE_BY_ID, &[], &[("offset", "1")]),
            R::SYSTEM_ERROR,
        ),
        refused(
            "a message behind the log",
            request(Q::VIEW_MESSAGE_BY_ID, &[], &[("offset", &largest)]),
            R::SYSTEM_ERROR,
        ),
        refused(
            "a message given back that never was",
            request(Q::CONSUMER_SEND_MSG_BACK, &[], &[("offset", &largest), ("group", GROUP), ("delayLevel", "0")]),
            R::SYSTEM_ERROR,
        ),
        refused(
            "a message given back by a path",
            request(Q::CONSUMER_SEND_MSG_BACK, &[], &[("offset", "0"), ("group", "../x"), ("delayLevel", "0")]),
            R::INVALID_PARAMETER,
        ),
    ]
}

fn members_and_locks() -> Vec<Case> {
    use RequestCode as Q;
    use ResponseCode as R;
    let deep = nested(100_000);
    let queues: Vec<String> =
        (0..5_000).map(|n| format!(r#"{{"topic":"{TOPIC}","brokerName":"broker-a","queueId":{n}}}"#)).collect();
    let lock = |queues: &str| {
        let body = format!(r#"{{"clientId":"c","consumerGroup":"{GROUP}","mqSet":[{queues}]}}"#);
        with_text(Q::LOCK_BATCH_MQ, body)
    };
    let names = |count: u32| {
        let groups: Vec<String> = (0..count).map(|n| format!(r#"{{"groupName":"p{n}"}}"#)).collect();
        groups.join(",")
    };
    let topics: Vec<String> = (0..2_000).map(|n| format!(r#"{{"topic":"T{n}","subString":"*"}}"#)).collect();
    vec![
        refused("a lock of nothing", RemotingCommand::request(Q::LOCK_BATCH_MQ), R::SYSTEM_ERROR),
        refused("a lock that is no JSON", with_text(Q::LOCK_BATCH_MQ, "lock it"), R::SYSTEM_ERROR),
        refused("a lock for nobody", with_text(Q::LOCK_BATCH_MQ, "{}"), R::INVALID_PARAMETER),
        refused(
            "a lock for a group that nobody made",
            with_text(
                Q::LOCK_BATCH_MQ,
                r#"{"clientId":"c","consumerGroup":"made-up","mqSet":[{"topic":"Plain","brokerName":"b","queueId":0}]}"#,
            ),
            R::SUBSCRIPTION_GROUP_NOT_EXIST,
        ),
        refused("a lock of five thousand queues", lock(&queues.join(",")), R::INVALID_PARAMETER),
        refused("a lock in JSON that never ends", with_text(Q::LOCK_BATCH_MQ, deep.clone()), R::SYSTEM_ERROR),
        accepted("a lock of a negative queue", lock(r#"{"topic":"Plain","brokerName":"broker-a","queueId":-5}"#)),
        refused("an unlock that is no JSON", with_text(Q::UNLOCK_BATCH_MQ, "\u{0}"), R::SYSTEM_ERROR),
        refused("a heartbeat of nothing", RemotingCommand::request(Q::HEART_BEAT), R::SYSTEM_ERROR),
        refused("a heartbeat that is no JSON", with_text(Q::HEART_BEAT, "alive"), R::SYSTEM_ERROR),
        refused(
            "a heartbeat that is not UTF-8",
            with_text(Q::HEART_BEAT, &b"{\"clientID\":\"\xff\xfe"[..]),
            R::SYSTEM_ERROR,
        ),
        refused("a heartbeat that never ends", with_text(Q::HEART_BEAT, deep), R::SYSTEM_ERROR),
        refused(
            "a heartbeat with a version of a thousand digits",
            with_text(
                Q::HEART_BEAT,
                format!(
                    r#"{{"clientID":"c","consumerDataSet":[{{"groupName":"g1","subscriptionDataSet":[{{"topic":"T","subString":"*","subVersion":{}}}]}}]}}"#,
                    "9".repeat(1000)
                ),
            ),
            R::SYSTEM_ERROR,
        ),
        accepted(
            "a heartbeat of a producer that is a path",
            with_text(Q::HEART_BEAT, r#"{"clientID":"c","producerDataSet":[{"groupName":"../x"},{"groupName":""}]}"#),
        ),
        accepted(
            "a heartbeat of a group that is a path",
            with_text(Q::HEART_BEAT, r#"{"clientID":"c","consumerDataSet":[{"groupName":"../x"},{"groupName":""}]}"#),
        ),
        accepted(
            "a heartbeat of a thousand groups",
            with_text(Q::HEART_BEAT, format!(r#"{{"clientID":"c","producerDataSet":[{}]}}"#, names(1_000))),
        ),
        refused(
            "a heartbeat of two thousand groups",
            with_text(Q::HEART_BEAT, format!(r#"{{"clientID":"c","producerDataSet":[{}]}}"#, names(2_000))),
            R::INVALID_PARAMETER,
        ),
        refused(
            "a heartbeat of a group that wants two thousand topics",
            with_text(
                Q::HEART_BEAT,
                format!(
                    r#"{{"clientID":"c","consumerDataSet":[{{"groupName":"g1","subscriptionDataSet":[{}]}}]}}"#,
                    topics.join(",")
                ),
            ),
            R::INVALID_PARAMETER,
        ),
        refused(
            "a heartbeat of 2 MiB",
            with_text(Q::HEART_BEAT, format!(r#"{{"clientID":"{}"}}"#, "c".repeat(2 << 20))),
            R::INVALID_PARAMETER,
        ),
        refused("a farewell of nobody", RemotingCommand::request(Q::UNREGISTER_CLIENT), R::SYSTEM_ERROR),
        accepted(
            "a farewell of a stranger",
            request(Q::UNREGISTER_CLIENT, &[], &[("clientID", "x"), ("consumerGroup", "x")]),
        ),
        refused(
            "the members of a group that is a path",
            request(Q::GET_CONSUMER_LIST_BY_GROUP, &[], &[("consumerGroup", "../x")]),
            R::SYSTEM_ERROR,
        ),
    ]
}

fn administration() -> Vec<Case> {
    use RequestCode as Q;
    use ResponseCode as R;
    let long = "x".repeat(4096);
    let named = |code: Q, field: &str, name: &str| request(code, &[], &[(field, name)]);
    let list = |key: &str, count: u32, one: &dyn Fn(u32) -> String| {
        format!(r#"{{"{key}":[{}]}}"#, (0..count).map(one).collect::<Vec<_>>().join(","))
    };
    let wide = list("topicConfigList", 62, &|n| {
        format!(r#"{{"topicName":"Wide{n}","readQueueNums":16384,"writeQueueNums":1,"perm":6}}"#)
    });
    let many = list("groupConfigList", 100_001, &|n| format!(r#"{{"groupName":"many{n}","retryQueueNums":0}}"#));
    vec![
        refused("a new topic without any field", RemotingCommand::request(Q::UPDATE_AND_CREATE_TOPIC), R::SYSTEM_ERROR),
        refused("a new topic that is a path", create_topic(&[("topic", "../x")]), R::INVALID_PARAMETER),
        refused("a new topic without a name", create_topic(&[("topic", "")]), R::SYSTEM_ERROR),
        refused("a new topic with NUL", create_topic(&[("topic", "a\0b")]), R::INVALID_PARAMETER),
        refused("a new topic of 4 KiB", create_topic(&[("topic", &long)]), R::INVALID_PARAMETER),
        refused("a new topic of the system", create_topic(&[("topic", "TBW102")]), R::INVALID_PARAMETER),
        refused("a new topic with -1 queues", create_topic(&[("readQueueNums", "-1")]), R::INVALID_PARAMETER),
        refused(
            "a new topic with no queue",
            create_topic(&[("readQueueNums", "0"), ("writeQueueNums", "0")]),
            R::INVALID_PARAMETER,
        ),
        refused(
            "a new topic with 2 billion queues",
            create_topic(&[("writeQueueNums", "2147483647")]),
            R::INVALID_PARAMETER,
        ),
        refused("more queues than there may be", with_text(Q::UPDATE_AND_CREATE_TOPIC_LIST, wide), R::SYSTEM_BUSY),
        refused(
            "more groups than there may be",
            with_text(Q::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP_LIST, many),
            R::SYSTEM_BUSY,
        ),
        refused("a new topic with a permission of 1000", create_topic(&[("perm", "1000")]), R::INVALID_PARAMETER),
        refused(
            "a new topic with a filter that is none",
            create_topic(&[("topicFilterType", "NO_TAG")]),
            R::INVALID_PARAMETER,
        ),
        refused(
            "a new topic with attributes that are none",
            create_topic(&[("attributes", "path=/etc")]),
            R::INVALID_PARAMETER,
        ),
        refused("no topic deleted", RemotingCommand::request(Q::DELETE_TOPIC_IN_BROKER), R::SYSTEM_ERROR),
        refused("a path deleted", named(Q::DELETE_TOPIC_IN_BROKER, "topic", "../.."), R::INVALID_PARAMETER),
        refused(
            "a topic of the system deleted",
            named(Q::DELETE_TOPIC_IN_BROKER, "topic", "TBW102"),
            R::INVALID_PARAMETER,
        ),
        accepted("a topic deleted that never was", named(Q::DELETE_TOPIC_IN_BROKER, "topic", "Never")),
        refused(
            "a group of nothing",
            RemotingCommand::request(Q::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP),
            R::SYSTEM_ERROR,
        ),
        refused(
            "a group that is a path",
            with_text(Q::UPDATE_AND_CREATE_SUBSCRIPTIONGROUP, r#"{"groupName":"../x"}"#),
            R::INVALID_PARAMETER,
        ),
        refused("the settings of an unknown topic", named(Q::GET_TOPIC_CONFIG, "topic", "../x"), R::TOPIC_NOT_EXIST),
        refused(
            "a setting that may not be changed over the network",
            with_text(Q::UPDATE_BROKER_CONFIG, "storePathRootDir=/etc\n"),
            R::NO_PERMISSION,
        ),
    ]
}

fn name_server() -> Vec<Case> {
    use RequestCode as Q;
    use ResponseCode as R;
    let long = "x".repeat(4096);
    let registration = |odd: &[(&str, &str)], body: Vec<u8>| {
        let well_formed = [
            ("brokerName", "stranger"),
            ("brokerAddr", "127.0.0.1:1"),
            ("clusterName", "Elsewhere"),
            ("brokerId", "0"),
            ("compressed", "true"),
        ];
        request(Q::REGISTER_BROKER, &well_formed, odd).with_body(body)
    };
    let mut bomb = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
    for _ in 0..80 {
        bomb.write_all(&[0; 1024 * 1024]).expect("in memory");
    }
    let bomb = bomb.finish().expect("in memory");
    assert!(bomb.len() < 4 * 1024 * 1024, "the bomb is not small: {}", bomb.len());
    let route = |topic: &str| request(Q::GET_ROUTEINFO_BY_TOPIC, &[], &[("topic", topic)]);
    let cases = vec![
        refused("a route to nowhere", RemotingCommand::request(Q::GET_ROUTEINFO_BY_TOPIC), R::SYSTEM_ERROR),
        refused("a route to a path", route("../x"), R::TOPIC_NOT_EXIST),
        refused("a route to 4 KiB", route(&long), R::TOPIC_NOT_EXIST),
        refused("a broker without any field", RemotingCommand::request(Q::REGISTER_BROKER), R::SYSTEM_ERROR),
        refused(
            "a compressed registration that is not",
            registration(&[], b"not compressed".to_vec()),
            R::SYSTEM_ERROR,
        ),
        refused("a compressed registration that inflates without end", registration(&[], bomb), R::SYSTEM_ERROR),
        refused("a registration of zeros", registration(&[("compressed", "false")], vec![0; 4096]), R::SYSTEM_ERROR),
        refused(
            "a registration with another checksum",
            registration(&[("bodyCrc32", "1")], vec![1; 64]),
            R::SYSTEM_ERROR,
        ),
        refused(
            "a broker with a name of 4 KiB",
            registration(&[("brokerName", &long), ("compressed", "false")], Vec::new()),
            R::SYSTEM_ERROR,
        ),
        refused("a broker id that is a word", registration(&[("brokerId", "first")], Vec::new()), R::SYSTEM_ERROR),
        refused(
            "a setting that may not be changed over the network",
            with_text(Q::UPDATE_NAMESRV_CONFIG, "kvConfigPath=/etc/passwd\n"),
            R::NO_PERMISSION,
        ),
        refused("a text without a name", RemotingCommand::request(Q::PUT_KV_CONFIG), R::SYSTEM_ERROR),
        accepted(
            "a broker that wants to be remembered for ever",
            registration(
                &[("compressed", "false"), ("heartbeatTimeoutMillis", &i64::MAX.to_string())],
                br#"{"topicConfigSerializeWrapper":{"dataVersion":{"stateVersion":9223372036854775807}}}"#.to_vec(),
            ),
        ),
        refused(
            "a text that nobody put",
            request(Q::GET_KV_CONFIG, &[], &[("namespace", "../x"), ("key", "../y")]),
            R::QUERY_NOT_FOUND,
        ),
        raw("length -1 at a NameServer", length_word(-1), Must::Close),
        raw("half a frame at a NameServer", &encoded(&route("T"))[..9], Must::BearHangUp),
        raw("a header that is no JSON at a NameServer", header("no header"), Must::StaySilent),
    ];
    cases.into_iter().map(Case::at_name_server).collect()
}

/// Somebody who does nothing wrong, on connections of its own.
struct Bystander {
    admin: Admin,
    broker: String,
    count: usize,
}

impl Bystander {
    /// Sends a message and reads it back.
    async fn sends_and_pulls(&mut self) -> Result<(), String> {
        let body = format!("still here {}", self.count);
        self.count += 1;
        let header = SendMessageRequest {
            producer_group: "bystander".to_owned(),
            topic: "Bystander".to_owned(),
            default_topic: "TBW102".to_owned(),
            default_topic_queue_nums: 1,
            born_timestamp: 1_700_000_000_000,
            ..SendMessageRequest::default()
        };
        let sent = self.admin.send(&self.broker, header, body.clone()).await;
        let offset = sent.map_err(|error| format!("a send: {error}"))?.queue_offset.ok_or("a send without a place")?;
        let pulled = self.admin.pull(&self.broker, "bystanders", "Bystander", 0, offset, 1).await;
        let pulled = pulled.map_err(|error| format!("a pull: {error}"))?;
        let [record] = &pulled.records[..] else { return Err(format!("{} records, not one", pulled.records.len())) };
        let record = RecordView::parse(record).map_err(|error| error.to_string())?;
        if record.body() != body.as_bytes() {
            return Err(format!("another message at {offset}"));
        }
        Ok(())
    }
}

/// Plays a case. The error says what happened instead.
async fn play(env: &Env, cluster: &Cluster, case: &Case) -> Result<(), String> {
    let address = match case.server {
        Server::Broker => cluster.address(0),
        Server::NameServer => cluster.name_server(),
    };
    let opened = RawConnection::open(env, &address.to_string()).await;
    let mut connection = opened.map_err(|error| format!("no connection: {error}"))?;
    match case.manner {
        Manner::AtOnce => connection.say(&case.bytes).await,
        Manner::ByteByByte => {
            for byte in &case.bytes {
                connection.say(std::slice::from_ref(byte)).await;
            }
        }
        Manner::ByteASecond => {
            let (at_once, paced) = case.bytes.split_at(case.bytes.len() - PACED_BYTES);
            connection.say(at_once).await;
            for byte in paced {
                env.clock.sleep(Duration::from_secs(1)).await;
                connection.say(std::slice::from_ref(byte)).await;
            }
        }
    }
    match &case.must {
        Must::BearHangUp => return Ok(()),
        Must::Close => {
            let heard = connection.hear(PATIENCE).await;
            return if heard == Heard::Closed { Ok(()) } else { Err(format!("{heard:?}")) };
        }
        Must::Answer(code) => match connection.hear(PATIENCE).await {
            Heard::Answer(answer) if answer.opaque != OPAQUE => return Err(format!("answered as {}", answer.opaque)),
            Heard::Answer(answer) if answer.response_code() != *code => {
                return Err(format!("{}: {}", answer.response_code(), answer.remark_text()));
            }
            Heard::Answer(answer) if !answer.is_success() && answer.remark_text().len() > 8 * 1024 => {
                return Err(format!("a remark of {} bytes", answer.remark_text().len()));
            }
            Heard::Answer(_) => {}
            other => return Err(format!("{other:?}")),
        },
        Must::StaySilent => {}
    }
    // The connection is kept, and what is asked next on it is the next thing to be answered.
    let mut next = RemotingCommand::request(RequestCode(9_999));
    next.opaque = OPAQUE + 1;
    connection.say(&encoded(&next)).await;
    match connection.hear(PATIENCE).await {
        Heard::Answer(answer) if answer.opaque == next.opaque => Ok(()),
        other => Err(format!("and then {other:?}")),
    }
}

/// Memory of this process that is in use, KiB.
fn resident_kib() -> u64 {
    #[allow(clippy::disallowed_methods)] // The test looks at its own process; the program does not.
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches("kB").trim().parse().expect("a number")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_can_be_said_hurts_those_who_say_something_sensible() {
    let env = Env::real();
    let cluster = Cluster::builder().nodes(1).start().await.expect("a cluster");
    let admin = Admin::new(&env, vec![cluster.name_server().to_string()]).with_timeout(PATIENCE);
    let broker = cluster.address(0).to_string();
    let topic = CreateTopicRequest {
        topic: TOPIC.to_owned(),
        read_queue_nums: 4,
        write_queue_nums: 4,
        perm: 6,
        ..CreateTopicRequest::default()
    };
    admin.put_topic(&broker, &topic).await.expect("the topic is made");
    let mut bystander = Bystander { admin: admin.clone(), broker: broker.clone(), count: 0 };
    bystander.sends_and_pulls().await.expect("before anything happened");

    let cases: Vec<Case> =
        [sends(), framing(), codes(), pulls_and_offsets(), members_and_locks(), administration(), name_server()]
            .into_iter()
            .flatten()
            .collect();
    assert!(cases.len() >= 60, "only {} cases", cases.len());
    let before_kib = resident_kib();
    let mut wrong = Vec::new();
    for case in &cases {
        if let Err(happened) = play(&env, &cluster, case).await {
            wrong.push(format!("{} (must: {:?}): {happened}", case.name, case.must));
        }
        if let Err(error) = bystander.sends_and_pulls().await {
            wrong.push(format!("after {}, the bystander: {error}", case.name));
        }
    }
    let grown_kib = resident_kib().saturating_sub(before_kib);

    // Those who connect and say nothing.
    let mut idle = Vec::new();
    for _ in 0..1_000 {
        idle.push(RawConnection::open(&env, &broker).await.expect("a connection"));
    }
    if let Err(error) = bystander.sends_and_pulls().await {
        wrong.push(format!("with a thousand idle connections, the bystander: {error}"));
    }
    for connection in [0, 499, 999] {
        let mut late = RemotingCommand::request(RequestCode(9_999));
        late.opaque = OPAQUE;
        idle[connection].say(&encoded(&late)).await;
        let heard = idle[connection].hear(PATIENCE).await;
        assert!(matches!(heard, Heard::Answer(_)), "an idle connection that speaks at last hears {heard:?}");
    }
    drop(idle);
    let grown_kib = grown_kib.max(resident_kib().saturating_sub(before_kib));
    assert!(wrong.is_empty(), "{} of {} wrong:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
    assert!(grown_kib <= GROWTH_KIB_MAX, "the process grew by {grown_kib} KiB");
    // Nothing became a path: beside the data of the one broker there is nothing.
    #[allow(clippy::disallowed_methods)] // The test looks at what the program left behind.
    let entries: Vec<_> =
        std::fs::read_dir(cluster.data_dir()).expect("the data").map(|entry| entry.expect("one").file_name()).collect();
    assert_eq!(entries, ["broker-a-1"]);
    admin.close().await;
    cluster.shutdown().await;
}

/// Time is a limit like any other: who says half of it, and who says nothing, holds a connection no longer than that.
#[tokio::test]
async fn half_a_frame_and_silence_last_as_long_as_is_configured() {
    const WHOLE_FRAME: Duration = Duration::from_secs(3);
    const IDLE: Duration = Duration::from_secs(5);
    /// A busy machine is late, never early.
    const LATE: Duration = Duration::from_secs(5);
    let env = Env::real();
    let limits = Limits { whole_frame: WHOLE_FRAME, idle: IDLE, ..Limits::default() };
    let any = "127.0.0.1:0".parse().expect("an address");
    let server = remoting::Server::start(&env, any, limits, Arc::new(NoRequests)).await.expect("a port");
    let address = server.local_addr().to_string();
    let clock = env.clock.clone();
    let open = async || RawConnection::open(&env, &address).await.expect("a connection");
    let mut request = RemotingCommand::request(RequestCode(9_999));
    request.opaque = OPAQUE;
    let whole = encoded(&request);

    let drips = async {
        let (mut connection, began) = (open().await, clock.monotonic());
        let mut said = 0;
        for byte in &whole {
            connection.say(std::slice::from_ref(byte)).await;
            said += 1;
            match connection.hear(Duration::from_secs(1)).await {
                Heard::Silence => {}
                heard => {
                    assert_eq!(heard, Heard::Closed, "after {said} bytes");
                    break;
                }
            }
        }
        let took = clock.monotonic() - began;
        assert!((WHOLE_FRAME..WHOLE_FRAME + LATE).contains(&took), "closed after {said} bytes and {took:?}");
    };
    let finishes = async {
        let mut connection = open().await;
        let (first, last) = whole.split_at(whole.len() - 2);
        connection.say(first).await;
        for byte in last {
            clock.sleep(Duration::from_secs(1)).await;
            connection.say(std::slice::from_ref(byte)).await;
        }
        assert!(matches!(connection.hear(PATIENCE).await, Heard::Answer(_)), "two bytes a second apart are in time");
    };
    let says_nothing = async {
        let (mut connection, began) = (open().await, clock.monotonic());
        assert_eq!(connection.hear(PATIENCE).await, Heard::Closed);
        let took = clock.monotonic() - began;
        assert!((IDLE..IDLE + LATE).contains(&took), "closed after {took:?}");
    };
    let speaks_at_times = async {
        let mut connection = open().await;
        for _ in 0..4 {
            clock.sleep(IDLE / 2).await;
            connection.say(&whole).await;
            assert!(matches!(connection.hear(PATIENCE).await, Heard::Answer(_)), "it is not idle");
        }
    };
    futures::join!(drips, finishes, says_nothing, speaks_at_times);
}
