//! Connects, and keeps one connection per address.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use env::Env;
use parking_lot::Mutex;
use protocol::command::RemotingCommand;

use crate::connection::{CallError, Connection, Handler};
use crate::limits::Limits;

/// Connections by address, made on demand and again after they were lost. Cheap to clone; with the last clone they close,
/// once what was queued is sent.
#[derive(Debug)]
pub struct Client<H>(Arc<Inner<H>>);

impl<H> Clone for Client<H> {
    fn clone(&self) -> Self {
        Client(self.0.clone())
    }
}

#[derive(Debug)]
struct Inner<H> {
    env: Env,
    limits: Limits,
    handler: Arc<H>,
    /// One slot per address; the lock inside makes callers of one address wait for one connection attempt, not start
    /// one each.
    slots: Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<Option<Connection>>>>>,
}

impl<H> Drop for Inner<H> {
    fn drop(&mut self) {
        for slot in self.slots.get_mut().values() {
            // Who holds a slot's lock holds the client, too.
            if let Some(connection) = slot.try_lock().ok().and_then(|mut slot| slot.take()) {
                connection.close();
            }
        }
    }
}

impl<H: Handler> Client<H> {
    /// A client whose peers may send requests back over its connections: `handler` answers them.
    pub fn new(env: &Env, limits: Limits, handler: Arc<H>) -> Client<H> {
        Client(Arc::new(Inner { env: env.clone(), limits, handler, slots: Mutex::new(BTreeMap::new()) }))
    }

    /// The connection to `address` ("host:port"), made now if there is none.
    pub async fn connection(&self, address: &str) -> Result<Connection, CallError> {
        let slot = self.0.slots.lock().entry(address.to_owned()).or_default().clone();
        let mut slot = slot.lock().await;
        if let Some(connection) = slot.as_ref().filter(|connection| !connection.is_closed()) {
            return Ok(connection.clone());
        }
        let inner = &self.0;
        let connect = inner.env.net.connect(address);
        let stream = match inner.env.clock.timeout(inner.limits.connect, connect).await {
            Some(Ok(stream)) => stream,
            Some(Err(error)) => return Err(CallError::NotSent(format!("cannot connect to {address}: {error}"))),
            None => {
                return Err(CallError::NotSent(format!(
                    "cannot connect to {address} within {:?}",
                    inner.limits.connect
                )));
            }
        };
        let connection = Connection::new(&stream, inner.env.clock.clone(), inner.limits.frame)
            .map_err(|error| CallError::NotSent(format!("cannot connect to {address}: {error}")))?;
        *slot = Some(connection.clone());
        let (running, handler, limits) = (connection.clone(), inner.handler.clone(), inner.limits.clone());
        tokio::spawn(async move {
            let peer = running.peer_addr();
            if let Err(reason) = running.run(stream, handler, &limits).await {
                tracing::debug!(%peer, %reason, "connection closed");
            }
        });
        Ok(connection)
    }

    /// Sends `request` to `address` and waits for its response, at most `limit` once connected.
    pub async fn call(
        &self,
        address: &str,
        request: RemotingCommand,
        limit: Duration,
    ) -> Result<RemotingCommand, CallError> {
        self.connection(address).await?.call(request, limit).await
    }

    /// Sends `request` to `address` without waiting for an answer.
    pub async fn one_way(&self, address: &str, request: RemotingCommand) -> Result<(), CallError> {
        self.connection(address).await?.one_way(request)
    }

    /// Addresses with an open connection.
    pub fn connected(&self) -> Vec<String> {
        let slots = self.0.slots.lock();
        let open = |slot: &tokio::sync::Mutex<Option<Connection>>| {
            slot.try_lock().is_ok_and(|slot| slot.as_ref().is_some_and(|connection| !connection.is_closed()))
        };
        slots.iter().filter(|(_, slot)| open(slot)).map(|(address, _)| address.clone()).collect()
    }

    /// Closes every connection.
    pub async fn close(&self) {
        let slots: Vec<_> = self.0.slots.lock().values().cloned().collect();
        for slot in slots {
            if let Some(connection) = slot.lock().await.take() {
                connection.close();
            }
        }
    }
}
