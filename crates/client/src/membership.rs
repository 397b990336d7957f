//! Membership: heartbeats say which groups this client is in; leaving says that it is no longer.
//!
//! Brokers keep members in memory only, by connection. So a heartbeat goes out every 30 s, and at once when a group is
//! entered, when a route has changed (there may be a new broker) and when a connection was lost (a broker has forgotten
//! this client). Consumers tell every member of every broker group, because any of them may be asked for the member
//! list, and may lead next; so do transactional producers, because whoever leads next asks them at once, and those that wait for replies, because it
//! brings them these.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use env::Clock;
use parking_lot::Mutex;
use protocol::body::{HeartbeatData, ProducerData};
use protocol::code::RequestCode;
use protocol::command::RemotingCommand;
use protocol::header::UnregisterClientRequest;
use tokio::sync::watch;

use crate::builder::{Client, Inner, is_not_now};
use crate::callbacks::Callbacks;
use crate::network::{Endpoint, Lane};

const HEARTBEAT_INTERVAL: Duration = Duration::from_secs(30);
/// Until the next heartbeat if a broker did not take the last one.
const HEARTBEAT_RETRY: Duration = Duration::from_secs(2);
/// Changes come in bursts: a broker that goes down closes several connections and changes several routes.
const SETTLE: Duration = Duration::from_millis(100);
const REFRESH_INTERVAL: Duration = Duration::from_secs(30);
const HEARTBEAT_TIMEOUT: Duration = Duration::from_secs(3);
const LEAVE_TIMEOUT: Duration = Duration::from_secs(1);

/// Producer groups of a client, with the number of producers in each.
#[derive(Debug, Default)]
pub(crate) struct Producers(Mutex<BTreeMap<String, usize>>);

impl Producers {
    pub(crate) fn enter(&self, group: &str) {
        *self.0.lock().entry(group.to_owned()).or_default() += 1;
    }

    /// Whether that was the last one of the group.
    pub(crate) fn leave(&self, group: &str) -> bool {
        let mut groups = self.0.lock();
        let left = groups.get_mut(group).map(|count| {
            *count -= 1;
            *count
        });
        if left == Some(0) {
            groups.remove(group);
        }
        left == Some(0)
    }

    pub(crate) fn groups(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}

/// Keeps routes fresh and brokers informed until the client is gone or stopped.
pub(crate) async fn keep_up(
    client: Weak<Inner>,
    clock: Clock,
    callbacks: Arc<Callbacks>,
    mut routes_changed: watch::Receiver<u64>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut refresh_at = clock.monotonic() + REFRESH_INTERVAL;
    let mut heartbeat_at = clock.monotonic() + SETTLE;
    loop {
        let until = |at: Duration| at.saturating_sub(clock.monotonic());
        tokio::select! {
            biased;
            () = stop_wanted(&mut stopped) => return,
            () = callbacks.connection_lost.notified() => {
                // Most likely a leader is gone, too.
                refresh_at = refresh_at.min(clock.monotonic() + SETTLE);
                heartbeat_at = heartbeat_at.min(clock.monotonic() + SETTLE);
            }
            Ok(()) = routes_changed.changed() => heartbeat_at = heartbeat_at.min(clock.monotonic() + SETTLE),
            () = clock.sleep(until(refresh_at)) => {
                let Some(client) = client.upgrade() else { return };
                client.routes.refresh_all().await;
                refresh_at = clock.monotonic() + REFRESH_INTERVAL;
            }
            () = clock.sleep(until(heartbeat_at)) => {
                let Some(client) = client.upgrade() else { return };
                let is_heard = heartbeat(&Client(client)).await;
                heartbeat_at = clock.monotonic() + if is_heard { HEARTBEAT_INTERVAL } else { HEARTBEAT_RETRY };
            }
        }
    }
}

/// Resolves when a stop is wanted, or when nobody is left who could want it. Cancel-safe.
pub(crate) async fn stop_wanted(stopped: &mut watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stopped| *stopped).await;
}

/// Tells brokers which groups this client is in; whether all of them took it.
pub(crate) async fn heartbeat(client: &Client) -> bool {
    let inner = &client.0;
    let Some(client_id) = client.client_id() else { return true };
    let consumers: Vec<_> = inner.callbacks.consumers().iter().map(|consumer| consumer.membership()).collect();
    let producers: Vec<ProducerData> =
        inner.producers.groups().into_iter().map(|group_name| ProducerData { group_name }).collect();
    if consumers.is_empty() && producers.is_empty() {
        return true;
    }
    let endpoints = brokers(client, !consumers.is_empty() || inner.callbacks.is_asked_by_any());
    let data = HeartbeatData {
        client_id: client_id.to_owned(),
        consumer_data_set: consumers,
        producer_data_set: producers,
        ..HeartbeatData::default()
    };
    let request = RemotingCommand::request(RequestCode::HEART_BEAT).with_json(&data);
    let told = endpoints.values().map(|endpoint| {
        let request = request.clone();
        async move {
            match inner.network.call(endpoint, Lane::First, request, HEARTBEAT_TIMEOUT).await {
                Ok(response) if response.is_success() => true,
                Ok(response) => {
                    let (broker, remark) = (endpoint.address(), response.remark_text());
                    tracing::warn!(broker, code = response.code, remark, "heartbeat refused");
                    !is_not_now(response.response_code())
                }
                Err(error) => {
                    tracing::debug!(broker = endpoint.address(), %error, "heartbeat not heard");
                    false
                }
            }
        }
    });
    futures::future::join_all(told).await.into_iter().all(|heard| heard)
}

/// Tells brokers that this client is no longer in the groups. Best effort: a broker that does not hear it finds out when
/// the connection closes.
pub(crate) async fn leave(client: &Client, producer_group: Option<&str>, consumer_group: Option<&str>) {
    let Some(client_id) = client.client_id() else { return };
    let header = UnregisterClientRequest {
        client_id: client_id.to_owned(),
        producer_group: producer_group.map(str::to_owned),
        consumer_group: consumer_group.map(str::to_owned),
        broker_name: None,
    };
    let request = RemotingCommand::request_with(RequestCode::UNREGISTER_CLIENT, &header);
    let endpoints = brokers(client, consumer_group.is_some() || client.0.callbacks.is_asked_by_any());
    let told =
        endpoints.values().map(|endpoint| client.0.network.call(endpoint, Lane::First, request.clone(), LEAVE_TIMEOUT));
    futures::future::join_all(told).await;
}

/// Members of all broker groups in use, by address; or only their leaders.
fn brokers(client: &Client, with_followers: bool) -> BTreeMap<String, Arc<Endpoint>> {
    let mut endpoints = BTreeMap::new();
    for route in client.0.routes.all() {
        for broker in &route.brokers {
            let members = if with_followers { broker.members.len() } else { usize::from(broker.has_master) };
            for member in &broker.members[..members] {
                endpoints.insert(member.address().to_owned(), member.clone());
            }
        }
    }
    endpoints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_producer_group_is_left_with_its_last_producer() {
        let producers = Producers::default();
        producers.enter("g");
        producers.enter("g");
        assert!(!producers.leave("g"));
        assert_eq!(producers.groups(), ["g"]);
        assert!(producers.leave("g") && !producers.leave("g"));
        assert!(producers.groups().is_empty());
    }
}
