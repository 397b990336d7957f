//! Asks for prices and answers them: two clients in one program, as two services would be. The requests carry a W3C trace
//! context, so that what the answering side does is part of the asking side's trace.
//!
//! `cargo run -p client --example request_reply -- 127.0.0.1:9876 Prices`

use std::sync::Arc;
use std::time::Duration;

use client::{Client, Message, ReceivedMessage, SendError, TraceParent};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let name_servers = arguments.next().unwrap_or_else(|| "127.0.0.1:9876".to_owned());
    let topic = arguments.next().unwrap_or_else(|| "Prices".to_owned());

    // The answering side is a consumer like any other, and replies with a producer.
    let answering = Client::builder().name_servers(name_servers.clone()).build()?;
    let replier = answering.producer("example-answering").start()?;
    let consumer = answering.push_consumer("example-answering").subscribe(topic.clone(), "*");
    let consumer = consumer.start(move |request: Arc<ReceivedMessage>| {
        let replier = replier.clone();
        async move {
            let item = std::str::from_utf8(request.body())?;
            // A tracing library makes its spans from these two numbers, and the numbers of its own spans in turn.
            if let Some(parent) = request.trace_parent() {
                println!("  asked for {item:?} in trace {:032x}, by span {:016x}", parent.trace_id(), parent.span_id());
            }
            match replier.reply(&request, Message::new("any", format!("{} cents", 10 * item.len()))).await {
                // Refused: the asking side does not wait any more. The request is done all the same.
                Ok(_) | Err(SendError::Refused { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    });
    let consumer = consumer.await?;

    let asking = Client::builder().name_servers(name_servers).build()?;
    let producer = asking.producer("example-asking").start()?;
    let trace: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse()?;
    for item in ["apple", "pear", "pineapple"] {
        let request = Message::new(topic.as_str(), item).with_trace_parent(&trace);
        // Neither request nor reply is kept for the other: without a reply in time, ask again or give up.
        match producer.request(request, Duration::from_secs(10)).await {
            Ok(reply) => println!("{item}: {}", std::str::from_utf8(reply.body())?),
            Err(error) => println!("{item}: {error}"),
        }
    }
    consumer.shutdown().await;
    asking.shutdown().await;
    answering.shutdown().await;
    Ok(())
}
