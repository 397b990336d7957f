//! Connections to NameServers and brokers, by address.
//!
//! An address has as many connections ("lanes") as configured. Sends use all of them, so that one connection's task is
//! not the bound; all else uses the first, because brokers know a client's groups by the connection its heartbeats come
//! over, and send their callbacks over that one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use env::Env;
use parking_lot::Mutex;
use protocol::command::{RemotingCommand, SerializeType};
use protocol::language::Language;
use remoting::{CallError, Connection, Limits};

use crate::callbacks::Callbacks;

/// One address and its connections.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: String,
    lanes: Vec<Mutex<Option<Connection>>>,
    next_lane: AtomicUsize,
}

impl Endpoint {
    pub(crate) fn new(address: &str, lanes: usize) -> Endpoint {
        assert!(lanes > 0, "an endpoint has at least one connection");
        let lanes = (0..lanes).map(|_| Mutex::new(None)).collect();
        Endpoint { address: address.to_owned(), lanes, next_lane: AtomicUsize::new(0) }
    }

    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    fn lane(&self, lane: Lane) -> usize {
        match lane {
            Lane::First => 0,
            Lane::Any => self.next_lane.fetch_add(1, Ordering::Relaxed) % self.lanes.len(),
            Lane::Of(number) => number % self.lanes.len(),
        }
    }
}

/// Which of an address's connections to use.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Lane {
    /// The one that heartbeats use.
    First,
    /// The next in turn.
    Any,
    /// Always the same for the same number: requests over it leave in the order in which they were made.
    Of(usize),
}

#[derive(Debug)]
pub(crate) struct Network {
    env: Env,
    /// One `remoting::Client` per lane, because each keeps one connection per address.
    clients: Vec<remoting::Client<Callbacks>>,
    endpoints: Mutex<BTreeMap<String, Arc<Endpoint>>>,
    serialize: SerializeType,
    /// This machine's address as the first peer sees it.
    local_ip: OnceLock<IpAddr>,
}

impl Network {
    pub(crate) fn new(
        env: &Env,
        limits: &Limits,
        lanes: usize,
        serialize: SerializeType,
        callbacks: &Arc<Callbacks>,
    ) -> Network {
        let clients = (0..lanes).map(|_| remoting::Client::new(env, limits.clone(), callbacks.clone())).collect();
        Network {
            env: env.clone(),
            clients,
            endpoints: Mutex::new(BTreeMap::new()),
            serialize,
            local_ip: OnceLock::new(),
        }
    }

    pub(crate) fn endpoint(&self, address: &str) -> Arc<Endpoint> {
        let mut endpoints = self.endpoints.lock();
        if let Some(known) = endpoints.get(address) {
            return known.clone();
        }
        let endpoint = Arc::new(Endpoint::new(address, self.clients.len()));
        endpoints.insert(address.to_owned(), endpoint.clone());
        endpoint
    }

    /// This machine's address; known once any connection was made.
    pub(crate) fn local_ip(&self) -> Option<IpAddr> {
        self.local_ip.get().copied()
    }

    /// An open connection, made now if there is none.
    async fn connection(&self, endpoint: &Endpoint, lane: usize) -> Result<Connection, CallError> {
        if let Some(open) = open_connection(endpoint, lane) {
            return Ok(open);
        }
        let connection = self.clients[lane].connection(&endpoint.address).await?;
        self.local_ip.get_or_init(|| connection.local_addr().ip());
        *endpoint.lanes[lane].lock() = Some(connection.clone());
        Ok(connection)
    }

    /// Sends `request` and waits for its response, at most `limit` in all.
    ///
    /// Cancel-safe in the sense that nothing is left behind; the request may have been sent.
    pub(crate) async fn call(
        &self,
        endpoint: &Endpoint,
        lane: Lane,
        mut request: RemotingCommand,
        mut limit: Duration,
    ) -> Result<RemotingCommand, CallError> {
        let lane = endpoint.lane(lane);
        let connection = match open_connection(endpoint, lane) {
            Some(open) => open,
            None => {
                let begun = self.env.clock.monotonic();
                let connection = self.env.clock.timeout(limit, self.connection(endpoint, lane)).await;
                limit = limit.saturating_sub(self.env.clock.monotonic() - begun);
                connection.unwrap_or_else(|| Err(CallError::NotSent(late(endpoint))))?
            }
        };
        self.sign(&mut request);
        connection.call(request, limit).await
    }

    /// Queues `request` for `endpoint`; nobody will answer it.
    pub(crate) async fn one_way(
        &self,
        endpoint: &Endpoint,
        lane: Lane,
        mut request: RemotingCommand,
        limit: Duration,
    ) -> Result<(), CallError> {
        let connection = self.env.clock.timeout(limit, self.connection(endpoint, endpoint.lane(lane))).await;
        let connection = connection.unwrap_or_else(|| Err(CallError::NotSent(late(endpoint))))?;
        self.sign(&mut request);
        connection.one_way(request)
    }

    fn sign(&self, request: &mut RemotingCommand) {
        request.language = Language::RUST;
        // The binary header has 16 bits for the code.
        request.serialize = if i16::try_from(request.code).is_ok() { self.serialize } else { SerializeType::Json };
    }

    /// Closes every connection. Requests made later open new ones.
    pub(crate) fn close(&self) {
        for endpoint in self.endpoints.lock().values() {
            for lane in &endpoint.lanes {
                if let Some(connection) = lane.lock().take() {
                    connection.close();
                }
            }
        }
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.close();
    }
}

fn open_connection(endpoint: &Endpoint, lane: usize) -> Option<Connection> {
    endpoint.lanes[lane].lock().as_ref().filter(|connection| !connection.is_closed()).cloned()
}

fn late(endpoint: &Endpoint) -> String {
    format!("no connection to {} in time", endpoint.address)
}
