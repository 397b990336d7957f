//! Request and reply with our own client over a real three-node cluster on loopback, with a leader that dies in the middle:
//! requests go on, and each gets its own reply.

use std::sync::Arc;
use std::time::Duration;

use client::{AskError, Message, ReceivedMessage, SendError, StartFrom};
use embedded::Cluster;
use env::Env;

/// How long one request may take, with a change of leader in it.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_request_gets_its_reply_across_a_killed_leader() {
    let mut cluster = Cluster::builder().start().await.expect("a cluster of three");
    let (asking, answering) =
        (cluster.client().build().expect("a client"), cluster.client().build().expect("a client"));
    let producer = asking.producer("asking").timeout(PATIENCE).start().expect("a producer");
    let replier = answering.producer("answering").timeout(PATIENCE).start().expect("a producer");
    let unheard = producer.request(Message::new("Questions", "nobody hears it"), Duration::from_secs(2)).await;
    assert!(matches!(unheard, Err(AskError::NoReply(_))), "{unheard:?}");

    let consumer = answering.push_consumer("answering").subscribe("Questions", "*").start_from(StartFrom::First);
    let consumer = consumer.start(move |message: Arc<ReceivedMessage>| {
        let replier = replier.clone();
        async move {
            let body = format!("re: {}", std::str::from_utf8(message.body())?);
            match replier.reply(&message, Message::new("any", body).with_tag("t")).await {
                // Of the first request, which nobody waits for any more, or while the requester is not known everywhere:
                // asked again then.
                Ok(_) | Err(SendError::Refused { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    });
    let consumer = consumer.await.expect("a consumer");
    // Until a reply comes: a consumer's first heartbeats may be on their way.
    let ask = async |body: String| {
        let deadline = Env::real().clock.monotonic() + PATIENCE;
        loop {
            let asked = producer.request(Message::new("Questions", body.clone()), Duration::from_secs(5)).await;
            match asked {
                Ok(reply) => return reply,
                Err(error) => assert!(Env::real().clock.monotonic() < deadline, "{body}: {error}"),
            }
        }
    };
    for number in 0..20 {
        if number == 8 {
            let leader = cluster.leader().await.expect("a leader");
            cluster.kill(leader).await;
        }
        let reply = ask(format!("question {number}")).await;
        assert_eq!(reply.body(), format!("re: question {number}").as_bytes());
        assert_eq!(reply.tag(), Some("t"));
    }
    let all = futures::future::join_all((0..50).map(|number| ask(format!("at once {number}")))).await;
    for (number, reply) in all.iter().enumerate() {
        assert_eq!(reply.body(), format!("re: at once {number}").as_bytes());
    }
    consumer.shutdown().await;
    asking.shutdown().await;
    answering.shutdown().await;
    cluster.shutdown().await;
}
