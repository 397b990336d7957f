//! What is for a client goes to it, whichever replica it is connected to: replies to requests, and tools' questions.

use protocol::body::{HeartbeatData, ProducerData};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::{
    ConsumeMessageDirectlyRequest, GetConsumerRunningInfoRequest, PushReplyRequest, SendMessageRequest,
    SendMessageRequestV2, SendMessageResponse,
};
use protocol::properties;

use crate::three::Three;
use crate::world::*;

fn reply_to(requester: &str, code: RequestCode) -> RemotingCommand {
    let header = SendMessageRequest {
        queue_id: 0,
        ..send_request(
            &format!("{CLUSTER}_REPLY_TOPIC"),
            &[
                ("CORRELATION_ID", "c1"),
                ("REPLY_TO_CLIENT", requester),
                ("TTL", "3000"),
                ("MSG_TYPE", "reply"),
                ("UNIQ_KEY", "0A"),
            ],
        )
    };
    let request = match code {
        RequestCode::SEND_REPLY_MESSAGE => {
            // As Java's clients of the 4.9 line have it: without the last separator, behind the correlation id.
            let text = encoded(&[
                ("REPLY_TO_CLIENT", requester),
                ("TTL", "3000"),
                ("UNIQ_KEY", "0A"),
                ("CORRELATION_ID", "c1"),
            ]);
            let properties = Some(text.trim_end_matches('\u{2}').to_owned());
            RemotingCommand::request_with(code, &SendMessageRequest { properties, ..header })
        }
        _ => RemotingCommand::request_with(code, &SendMessageRequestV2(header)),
    };
    request.with_body("the reply")
}

impl Wire {
    async fn produce_under(&self, client_id: &str) {
        let body = HeartbeatData {
            client_id: client_id.to_owned(),
            producer_data_set: vec![ProducerData { group_name: "pg".to_owned() }],
            ..HeartbeatData::default()
        };
        let answer = self.call(RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&body)).await;
        assert_eq!(answer.code, 0, "{}", answer.remark_text());
    }

    fn heard_of(&self, code: RequestCode) -> Vec<RemotingCommand> {
        self.heard.requests.lock().iter().filter(|request| request.request_code() == code).cloned().collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reply_is_pushed_to_its_requester_at_whatever_replica_and_stored() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    for at in 0..3 {
        until("they know", async || three.group(at).status().is_ready).await;
    }
    let wires: Vec<Wire> = (0..3).map(|at| Wire::to(three.group(at))).collect();
    let topic = format!("{CLUSTER}_REPLY_TOPIC");
    let known = async || wires[leader].call(reply_to("nobody", RequestCode::SEND_REPLY_MESSAGE_V2)).await.code == 1;
    until("the reply topic is there", known).await;

    // The requester at each replica, the replier at each other: through a follower, at the leader, in both forms.
    for (turn, requester) in [leader, (leader + 1) % 3].into_iter().enumerate() {
        let name = format!("requester-{turn}");
        wires[requester].produce_under(&name).await;
        for replier in [leader, (leader + 2) % 3] {
            for code in [RequestCode::SEND_REPLY_MESSAGE, RequestCode::SEND_REPLY_MESSAGE_V2] {
                let before = wires[requester].heard_of(RequestCode::PUSH_REPLY_MESSAGE_TO_CLIENT).len();
                let answer = wires[replier].call(reply_to(&name, code)).await;
                assert_eq!(answer.code, 0, "{}", answer.remark_text());
                let stored: SendMessageResponse = answer.header().expect("a header");
                assert!(stored.msg_id.is_some_and(|id| id != "0") && answer.ext.get("TRACE_ON").is_some());
                let pushed = wires[requester].heard_of(RequestCode::PUSH_REPLY_MESSAGE_TO_CLIENT);
                assert_eq!(pushed.len(), before + 1, "once");
                let last = pushed.last().expect("one");
                let header: PushReplyRequest = last.header().expect("a header");
                let text = header.properties.expect("properties");
                assert_eq!(properties::get(&text, properties::CORRELATION_ID), Some("c1"));
                assert!(properties::get(&text, properties::PUSH_REPLY_TIME).is_some());
                assert_eq!((header.topic.as_str(), &last.body[..]), (topic.as_str(), &b"the reply"[..]));
            }
        }
    }
    let bodies = wires[leader].pull(pull_request(&topic, 0)).await;
    assert_eq!(bodies.bodies(), ["the reply"; 8]);

    let absent = wires[leader].call(reply_to("nobody", RequestCode::SEND_REPLY_MESSAGE_V2)).await;
    assert_eq!(absent.code, 1, "it is told that nobody got it");
    let nameless = SendMessageRequestV2(send_request(&topic, &[("MSG_TYPE", "reply")]));
    let nameless = RemotingCommand::request_with(RequestCode::SEND_REPLY_MESSAGE_V2, &nameless);
    assert_eq!(wires[leader].call(nameless).await.code, 13);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tool_s_question_reaches_a_consumer_at_another_replica() {
    let three = Three::start(vec![]).await;
    let leader = three.leader().await;
    let follower = (leader + 1) % 3;
    for at in 0..3 {
        until("they know", async || three.group(at).status().is_ready).await;
    }
    let (consumer, tool) = (Wire::to(three.group(follower)), Wire::to(three.group(leader)));
    let sent = tool.sent("T", "for it", &[]).await;
    consumer.heartbeat("c1", "g", &[("T", "*")]).await;
    let info = |client_id: &str| {
        let header = GetConsumerRunningInfoRequest {
            consumer_group: "g".to_owned(),
            client_id: client_id.to_owned(),
            ..GetConsumerRunningInfoRequest::default()
        };
        RemotingCommand::request_with(RequestCode::GET_CONSUMER_RUNNING_INFO, &header)
    };
    let answer = tool.call(info("c1")).await;
    assert_eq!(answer.code, 0, "{}", answer.remark_text());
    assert_eq!(consumer.heard_of(RequestCode::GET_CONSUMER_RUNNING_INFO).len(), 1);
    let absent = tool.call(info("c2")).await;
    assert_eq!((absent.code, absent.remark_text()), (1, "The Consumer <g> <c2> not online"));

    let directly = ConsumeMessageDirectlyRequest {
        consumer_group: "g".to_owned(),
        client_id: Some("c1".to_owned()),
        msg_id: sent.msg_id,
        ..ConsumeMessageDirectlyRequest::default()
    };
    let directly = RemotingCommand::request_with(RequestCode::CONSUME_MESSAGE_DIRECTLY, &directly);
    let answer = tool.call(directly).await;
    assert_eq!(answer.code, 0, "{}", answer.remark_text());
    let heard = consumer.heard_of(RequestCode::CONSUME_MESSAGE_DIRECTLY);
    assert_eq!(messages(&heard[0].body)[0].body, "for it");
}
