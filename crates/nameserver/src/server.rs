//! Request codes to table calls. A code without an arm is answered with 3.
//!
//! Nothing runs by itself here: members that have been silent for too long leave before the next request looks.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use env::{Clock, Env};
use parking_lot::{Mutex, RwLock};
use protocol::body::{
    BrokerMemberGroupBody, DataVersion, KvTable, MAX_INFLATED_BYTES, RegisterBrokerBody, TopicRouteData,
    parse_config_text, to_config_text,
};
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::{
    AddWritePermResponse, BrokerHeartbeatRequest, BrokerNameRequest, BrokerRequest, ClusterRequest, FieldError,
    GetBrokerMemberGroupRequest, GetKvConfigResponse, GetRouteInfoRequest, KvConfigRequest, NamespaceRequest,
    NamesrvTopicRequest, PutKvConfigRequest, QueryDataVersionResponse, RegisterBrokerRequest, RegisterBrokerResponse,
    WipeWritePermResponse,
};
use protocol::json::{self, JsonError};
use protocol::names::ORDER_TOPIC_NAMESPACE;
use protocol::record::body_crc;
use remoting::{Connection, Handler, Limits, Server};

use crate::config::{NameServerConfig, SwitchError, Switches};
use crate::kv::{self, Kv};
use crate::route_table::{self, ConnectionId, MemberName, Registered, Registration, RouteTable};

/// Clients from V4_9_4 on read routes as standard JSON; before, as fastjson writes them.
const STANDARD_JSON_VERSION: i32 = 401;

/// Unit bits of a topic.
const FLAG_UNIT: i32 = 1;
const FLAG_UNIT_SUB: i32 = 2;

/// Bounds for the time of silence that a broker may ask for; brokers ask for two minutes.
const EXPIRY_MS: std::ops::RangeInclusive<i64> = 1_000..=600_000;

/// A running NameServer. Dropping it stops it as [`NameServer::stop`] does.
#[derive(Debug)]
pub struct NameServer {
    server: Server,
}

impl NameServer {
    /// Listens and serves until stopped.
    pub async fn start(env: Env, config: NameServerConfig) -> io::Result<NameServer> {
        let refused = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        config.check().map_err(refused)?;
        let desk = Arc::new(Desk {
            clock: env.clock.clone(),
            routes: RwLock::new(RouteTable::new(config.broker_expiry)),
            kv: RwLock::new(Kv::default()),
            switches: Mutex::new(Switches { order_message_enable: config.order_message_enable }),
            registering: tokio::sync::Mutex::new(()),
        });
        let limits = Limits { connections: config.connections, ..Limits::default() };
        let server = Server::start(&env, config.listen, limits, desk).await?;
        tracing::info!(listen = %server.local_addr(), "NameServer started");
        Ok(NameServer { server })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.server.local_addr()
    }

    /// Stops listening and closes every connection. Brokers and clients go on with the other NameServers.
    pub fn stop(&self) {
        self.server.stop();
    }
}

/// Where requests are answered.
struct Desk {
    clock: Clock,
    routes: RwLock<RouteTable>,
    kv: RwLock<Kv>,
    switches: Mutex<Switches>,
    /// A few bytes may inflate to many: registrations are read one at a time.
    registering: tokio::sync::Mutex<()>,
}

/// A request that is not carried out.
#[derive(Debug, thiserror::Error)]
enum Refusal {
    #[error("{0}")]
    Header(#[from] FieldError),
    #[error("the body cannot be read: {0}")]
    Body(#[from] JsonError),
    #[error("register broker failed: {0}")]
    Registration(#[from] protocol::body::RegisterBodyError),
    #[error("crc32 not match")]
    Checksum,
    #[error("No topic route info in name server for the topic: {0}")]
    NoRoute(String),
    #[error("No config item, Namespace: {namespace} Key: {key}")]
    NoText { namespace: String, key: String },
    #[error("{0}")]
    TextsFull(#[from] kv::Full),
    #[error("{0}")]
    RoutesFull(#[from] route_table::Full),
    #[error("{0}")]
    Switch(#[from] SwitchError),
    #[error(" request type {0} not supported")]
    UnknownCode(i32),
}

impl Refusal {
    fn code(&self) -> ResponseCode {
        match self {
            Refusal::Header(_)
            | Refusal::Body(_)
            | Refusal::Registration(_)
            | Refusal::Checksum
            | Refusal::TextsFull(_)
            | Refusal::RoutesFull(_) => ResponseCode::SYSTEM_ERROR,
            Refusal::NoRoute(_) => ResponseCode::TOPIC_NOT_EXIST,
            Refusal::NoText { .. } => ResponseCode::QUERY_NOT_FOUND,
            Refusal::Switch(SwitchError::NotChangeable(_)) => ResponseCode::NO_PERMISSION,
            Refusal::Switch(SwitchError::BadValue { .. }) => ResponseCode::INVALID_PARAMETER,
            Refusal::UnknownCode(_) => ResponseCode::REQUEST_CODE_NOT_SUPPORTED,
        }
    }
}

impl Handler for Desk {
    async fn handle(self: &Arc<Self>, connection: &Connection, request: RemotingCommand) -> Option<RemotingCommand> {
        self.expire();
        let _turn = match request.request_code() {
            RequestCode::REGISTER_BROKER => Some(self.registering.lock().await),
            _ => None,
        };
        Some(self.answer(connection, &request).unwrap_or_else(|refusal| {
            tracing::debug!(peer = %connection.peer_addr(), code = request.code, %refusal, "request refused");
            request.reply_error(refusal.code(), refusal.to_string())
        }))
    }

    fn closed(&self, connection: &Connection) {
        let gone = self.routes.write().disconnect(ConnectionId(connection.id()));
        log_gone(&gone, "its connection was closed");
    }
}

fn log_gone(gone: &[MemberName], reason: &str) {
    for MemberName { broker_name, broker_id, address } in gone {
        tracing::info!(%broker_name, broker_id, %address, "broker removed: {reason}");
    }
}

impl Desk {
    fn now(&self) -> Duration {
        self.clock.monotonic()
    }

    fn expire(&self) {
        let now = self.now();
        // Bound first: the guard of an `if` condition would live on into its block.
        let is_due = self.routes.read().is_expiry_due(now);
        if is_due {
            let gone = self.routes.write().expire(now);
            log_gone(&gone, "silent for too long");
        }
    }

    fn answer(&self, connection: &Connection, request: &RemotingCommand) -> Result<RemotingCommand, Refusal> {
        let connection = ConnectionId(connection.id());
        let done = request.reply(ResponseCode::SUCCESS);
        match request.request_code() {
            RequestCode::GET_ROUTEINFO_BY_TOPIC => self.route(request),
            RequestCode::REGISTER_BROKER => self.register_broker(connection, request),
            RequestCode::BROKER_HEARTBEAT => {
                let header: BrokerHeartbeatRequest = request.header()?;
                let expiry = expiry(header.heartbeat_timeout_mills);
                let (name, address) = (&header.broker_name, &header.broker_addr);
                self.routes.write().heartbeat(name, address, expiry, connection, self.now());
                Ok(done)
            }
            RequestCode::QUERY_DATA_VERSION => self.query_data_version(connection, request),
            RequestCode::UNREGISTER_BROKER => {
                let header: BrokerRequest = request.header()?;
                let gone = self.routes.write().unregister(&header.broker_name, &header.broker_addr);
                log_gone(&gone, "it said so");
                Ok(done)
            }
            RequestCode::GET_BROKER_CLUSTER_INFO => Ok(done.with_json(&self.routes.read().cluster_info())),
            RequestCode::GET_BROKER_MEMBER_GROUP => {
                let header: GetBrokerMemberGroupRequest = request.header()?;
                let group = self.routes.read().member_group(&header.cluster_name, &header.broker_name);
                Ok(done.with_json(&BrokerMemberGroupBody { broker_member_group: group }))
            }
            RequestCode::GET_ALL_TOPIC_LIST_FROM_NAMESERVER => Ok(done.with_json(&self.routes.read().topics())),
            RequestCode::GET_TOPICS_BY_CLUSTER => {
                let header: ClusterRequest = request.header()?;
                Ok(done.with_json(&self.routes.read().topics_of_cluster(&header.cluster)))
            }
            RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_NS => Ok(done.with_json(&self.routes.read().system_topics())),
            RequestCode::GET_UNIT_TOPIC_LIST => {
                Ok(done.with_json(&self.routes.read().topics_by_flag(|flag| flag & FLAG_UNIT != 0)))
            }
            RequestCode::GET_HAS_UNIT_SUB_TOPIC_LIST => {
                Ok(done.with_json(&self.routes.read().topics_by_flag(|flag| flag & FLAG_UNIT_SUB != 0)))
            }
            RequestCode::GET_HAS_UNIT_SUB_UNUNIT_TOPIC_LIST => {
                let chosen = |flag: i32| flag & (FLAG_UNIT | FLAG_UNIT_SUB) == FLAG_UNIT_SUB;
                Ok(done.with_json(&self.routes.read().topics_by_flag(chosen)))
            }
            RequestCode::DELETE_TOPIC_IN_NAMESRV => {
                let header: NamesrvTopicRequest = request.header()?;
                self.routes.write().delete_topic(&header.topic, header.cluster_name.as_deref());
                Ok(done)
            }
            RequestCode::REGISTER_TOPIC_IN_NAMESRV => {
                let header: NamesrvTopicRequest = request.header()?;
                let route: TopicRouteData = request.json()?;
                self.routes.write().register_topic(&header.topic, route.queue_datas)?;
                Ok(done)
            }
            RequestCode::WIPE_WRITE_PERM_OF_BROKER => {
                let header: BrokerNameRequest = request.header()?;
                let topics = self.routes.write().set_write_permission(&header.broker_name, false);
                Ok(done.with_header(&WipeWritePermResponse { wipe_topic_count: count(topics) }))
            }
            RequestCode::ADD_WRITE_PERM_OF_BROKER => {
                let header: BrokerNameRequest = request.header()?;
                let topics = self.routes.write().set_write_permission(&header.broker_name, true);
                Ok(done.with_header(&AddWritePermResponse { add_topic_count: count(topics) }))
            }
            RequestCode::PUT_KV_CONFIG => {
                let header: PutKvConfigRequest = request.header()?;
                self.kv.write().put(header.namespace, header.key, header.value.unwrap_or_default())?;
                Ok(done)
            }
            RequestCode::GET_KV_CONFIG => {
                let KvConfigRequest { namespace, key } = request.header()?;
                let value = self.kv.read().get(&namespace, &key).map(str::to_owned);
                let value = value.ok_or(Refusal::NoText { namespace, key })?;
                Ok(done.with_header(&GetKvConfigResponse { value: Some(value) }))
            }
            RequestCode::DELETE_KV_CONFIG => {
                let header: KvConfigRequest = request.header()?;
                self.kv.write().delete(&header.namespace, &header.key);
                Ok(done)
            }
            RequestCode::GET_KVLIST_BY_NAMESPACE => {
                let NamespaceRequest { namespace } = request.header()?;
                let body = self.texts(&namespace);
                Ok(done.with_json(&body.ok_or(Refusal::NoText { namespace, key: "*".to_owned() })?))
            }
            RequestCode::UPDATE_NAMESRV_CONFIG => {
                let change = parse_config_text(&String::from_utf8_lossy(&request.body));
                let mut switches = self.switches.lock();
                *switches = switches.changed(&change)?;
                tracing::info!(switches = ?*switches, "switches changed over the network");
                Ok(done)
            }
            RequestCode::GET_NAMESRV_CONFIG => Ok(done.with_body(to_config_text(&self.switches.lock().to_table()))),
            RequestCode(code) => Err(Refusal::UnknownCode(code)),
        }
    }

    fn route(&self, request: &RemotingCommand) -> Result<RemotingCommand, Refusal> {
        let header: GetRouteInfoRequest = request.header()?;
        let route = self.routes.read().route(&header.topic);
        let mut route = route.ok_or_else(|| Refusal::NoRoute(header.topic.clone()))?;
        if self.switches.lock().order_message_enable {
            route.order_topic_conf = self.kv.read().get(ORDER_TOPIC_NAMESPACE, &header.topic).map(str::to_owned);
        }
        let is_standard = request.version >= STANDARD_JSON_VERSION || header.accept_standard_json_only;
        let body = if is_standard { json::to_vec(&route) } else { json::to_vec_legacy(&route) };
        Ok(request.reply(ResponseCode::SUCCESS).with_body(body))
    }

    fn register_broker(&self, connection: ConnectionId, request: &RemotingCommand) -> Result<RemotingCommand, Refusal> {
        let header: RegisterBrokerRequest = request.header()?;
        match header.body_crc32 {
            None | Some(0) => {}
            Some(claimed) if claimed == body_crc(&request.body) => {}
            Some(_) => return Err(Refusal::Checksum),
        }
        let body = if request.body.is_empty() {
            RegisterBrokerBody::default()
        } else {
            RegisterBrokerBody::decode(&request.body, header.compressed, MAX_INFLATED_BYTES)?
        };
        let wrapper = body.topic_config_serialize_wrapper;
        let registration = Registration {
            cluster: header.cluster_name,
            broker_name: header.broker_name.clone(),
            broker_id: header.broker_id,
            address: header.broker_addr.clone(),
            ha_address: header.ha_server_addr,
            zone: header.zone_name,
            enable_acting_master: header.enable_acting_master.unwrap_or(false),
            expiry: expiry(header.heartbeat_timeout_millis),
            version: wrapper.data_version,
            topics: wrapper.topic_config_table.into_values().collect(),
        };
        let (broker_name, broker_id, address) = (&header.broker_name, header.broker_id, &header.broker_addr);
        let term = registration.version.state_version;
        let mut routes = self.routes.write();
        match routes.register(registration, connection, self.now())? {
            Registered::Accepted { leader_changed: true } => {
                tracing::info!(%broker_name, broker_id, %address, term, "broker registered: the leader changed");
            }
            Registered::Accepted { leader_changed: false } => {
                tracing::debug!(%broker_name, broker_id, %address, term, "broker registered");
            }
            Registered::Ignored { known_term } => {
                tracing::info!(%broker_name, broker_id, %address, term, known_term, "registration of a past term ignored");
            }
        }
        // A replica learns who leads, and so does one that believed to lead.
        let leader = routes.leader(broker_name).filter(|(leader, _)| leader != address);
        let told = RegisterBrokerResponse {
            ha_server_addr: leader.and_then(|(_, ha_address)| ha_address).map(str::to_owned),
            master_addr: leader.map(|(leader, _)| leader.to_owned()),
        };
        drop(routes);
        let response = request.reply_with(ResponseCode::SUCCESS, &told);
        Ok(match self.texts(ORDER_TOPIC_NAMESPACE) {
            Some(texts) => response.with_json(&texts),
            None => response,
        })
    }

    fn query_data_version(
        &self,
        connection: ConnectionId,
        request: &RemotingCommand,
    ) -> Result<RemotingCommand, Refusal> {
        let header: BrokerRequest = request.header()?;
        let theirs: DataVersion = request.json()?;
        let mut routes = self.routes.write();
        let ours = routes.known_version(&header.broker_name, header.broker_id, &header.broker_addr);
        if ours.is_some() {
            routes.heartbeat(&header.broker_name, &header.broker_addr, None, connection, self.now());
        }
        let response =
            request.reply_with(ResponseCode::SUCCESS, &QueryDataVersionResponse { changed: ours != Some(theirs) });
        Ok(match ours {
            Some(ours) => response.with_json(&ours),
            None => response,
        })
    }

    fn texts(&self, namespace: &str) -> Option<KvTable> {
        self.kv.read().list(namespace).map(|texts| KvTable { table: texts.clone() })
    }
}

/// The time of silence that a broker asks for, within reason.
fn expiry(asked_ms: Option<i64>) -> Option<Duration> {
    let asked = asked_ms.filter(|ms| *ms > 0)?;
    Some(Duration::from_millis(asked.clamp(*EXPIRY_MS.start(), *EXPIRY_MS.end()) as u64))
}

fn count(topics: usize) -> i32 {
    i32::try_from(topics).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use protocol::body::{TopicConfig, TopicList};
    use remoting::{Client, NoRequests};

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    struct World {
        env: Env,
        server: NameServer,
        address: String,
        client: Client<NoRequests>,
    }

    async fn world() -> World {
        let env = Env::real();
        let config = NameServerConfig {
            listen: "127.0.0.1:0".parse().expect("an address"),
            order_message_enable: true,
            ..NameServerConfig::default()
        };
        let server = NameServer::start(env.clone(), config).await.expect("loopback can be listened on");
        let address = server.local_addr().to_string();
        let client = Client::new(&env, Limits::default(), Arc::new(NoRequests));
        World { env, server, address, client }
    }

    impl World {
        async fn ask(&self, request: RemotingCommand) -> RemotingCommand {
            self.client.call(&self.address, request, PATIENCE).await.expect("it answers")
        }

        async fn route(&self, client: &Client<NoRequests>, topic: &str, version: i32) -> RemotingCommand {
            let header = GetRouteInfoRequest { topic: topic.to_owned(), accept_standard_json_only: false };
            let mut request = RemotingCommand::request_with(RequestCode::GET_ROUTEINFO_BY_TOPIC, &header);
            request.version = version;
            client.call(&self.address, request, PATIENCE).await.expect("it answers")
        }
    }

    fn registration(id: i64, address: &str, term: i64, compressed: bool) -> RemotingCommand {
        let mut body = RegisterBrokerBody::default();
        let wrapper = &mut body.topic_config_serialize_wrapper;
        wrapper.data_version = DataVersion { counter: 1, state_version: term, timestamp: 5 };
        wrapper.topic_config_table.insert("T".into(), TopicConfig::new("T", 4, 6));
        let bytes = if compressed { body.to_compressed() } else { json::to_bytes(&body) };
        let header = RegisterBrokerRequest {
            broker_name: "broker-a".into(),
            broker_addr: address.into(),
            cluster_name: "DefaultCluster".into(),
            ha_server_addr: Some(format!("{address}/ha")),
            broker_id: id,
            compressed,
            body_crc32: Some(body_crc(&bytes)),
            ..RegisterBrokerRequest::default()
        };
        RemotingCommand::request_with(RequestCode::REGISTER_BROKER, &header).with_body(bytes)
    }

    fn broker(id: i64, address: &str) -> BrokerRequest {
        BrokerRequest {
            broker_name: "broker-a".into(),
            broker_addr: address.into(),
            cluster_name: "DefaultCluster".into(),
            broker_id: id,
        }
    }

    #[tokio::test]
    async fn brokers_register_and_clients_find_them_in_either_dialect() {
        let world = world().await;
        let missing = world.route(&world.client, "T", 479).await;
        assert_eq!(missing.response_code(), ResponseCode::TOPIC_NOT_EXIST);
        assert_eq!(missing.remark_text(), "No topic route info in name server for the topic: T");

        let leader = world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        assert!(leader.is_success() && leader.ext.get("masterAddr").is_none(), "{leader:?}");
        let follower = world.ask(registration(1, "10.0.0.2:10911", 3, false)).await;
        assert_eq!(follower.ext.get("masterAddr"), Some("10.0.0.1:10911"));
        assert_eq!(follower.ext.get("haServerAddr"), Some("10.0.0.1:10911/ha"));

        let standard = world.route(&world.client, "T", 401).await;
        assert_eq!(
            String::from_utf8_lossy(&standard.body),
            r#"{"brokerDatas":[{"brokerAddrs":{"0":"10.0.0.1:10911","1":"10.0.0.2:10911"},"brokerName":"broker-a","cluster":"DefaultCluster","enableActingMaster":false}],"filterServerTable":{},"queueDatas":[{"brokerName":"broker-a","perm":6,"readQueueNums":4,"topicSysFlag":0,"writeQueueNums":4}]}"#
        );
        let legacy = world.route(&world.client, "T", 400).await;
        assert_eq!(
            String::from_utf8_lossy(&legacy.body),
            String::from_utf8_lossy(&standard.body).replace(r#""0":"#, "0:").replace(r#""1":"#, "1:")
        );

        let ordered = PutKvConfigRequest {
            namespace: ORDER_TOPIC_NAMESPACE.into(),
            key: "T".into(),
            value: Some("broker-a:4".into()),
        };
        assert!(world.ask(RemotingCommand::request_with(RequestCode::PUT_KV_CONFIG, &ordered)).await.is_success());
        let route: TopicRouteData = world.route(&world.client, "T", 479).await.json().expect("a route");
        assert_eq!(route.order_topic_conf.as_deref(), Some("broker-a:4"));
        let told: KvTable = world.ask(registration(0, "10.0.0.1:10911", 3, false)).await.json().expect("a table");
        assert_eq!(told.table["T"], "broker-a:4");
    }

    /// The page that tells users which codes are answered, and where.
    const PAGE: &str = include_str!("../../../docs/compatibility.md");

    #[tokio::test]
    async fn the_page_on_compatibility_says_which_codes_are_answered_here() {
        let world = world().await;
        for code in RequestCode::ALL {
            let answer = world.ask(RemotingCommand::request(*code)).await;
            let is_answered = answer.response_code() != ResponseCode::REQUEST_CODE_NOT_SUPPORTED;
            let row = PAGE.lines().find(|line| line.starts_with(&format!("| {} |", code.0)));
            let row = row.unwrap_or_else(|| panic!("docs/compatibility.md has no row for {code}"));
            assert_eq!(row.contains("| NameServer |"), is_answered, "docs/compatibility.md on {code}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn a_damaged_registration_and_a_deposed_leader_change_nothing() {
        let world = world().await;
        let mut damaged = registration(0, "10.0.0.1:10911", 3, true);
        damaged.ext.set("bodyCrc32", 7);
        let answer = world.ask(damaged).await;
        assert_eq!((answer.response_code(), answer.remark_text()), (ResponseCode::SYSTEM_ERROR, "crc32 not match"));
        let mut cut = registration(0, "10.0.0.1:10911", 3, true);
        cut.body.truncate(20);
        cut.ext.remove("bodyCrc32");
        assert_eq!(world.ask(cut).await.response_code(), ResponseCode::SYSTEM_ERROR);
        assert!(!world.route(&world.client, "T", 479).await.is_success());

        assert!(world.ask(registration(0, "10.0.0.2:10911", 4, true)).await.is_success());
        let deposed = world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        assert_eq!(deposed.ext.get("masterAddr"), Some("10.0.0.2:10911"));
        let route: TopicRouteData = world.route(&world.client, "T", 479).await.json().expect("a route");
        assert_eq!(route.broker_datas[0].broker_addrs, [(0, "10.0.0.2:10911".to_owned())].into());
    }

    #[test]
    fn nobody_asks_to_be_remembered_for_a_day() {
        assert_eq!(expiry(Some(86_400_000)), Some(Duration::from_secs(600)));
        assert_eq!(expiry(Some(120_000)), Some(Duration::from_secs(120)));
        assert_eq!(expiry(Some(1)), Some(Duration::from_secs(1)));
        assert_eq!((expiry(Some(0)), expiry(None)), (None, None));
    }

    #[tokio::test]
    async fn versions_tell_a_broker_whether_to_register() {
        let world = world().await;
        let ask = |version: DataVersion| {
            let request = RemotingCommand::request_with(RequestCode::QUERY_DATA_VERSION, &broker(0, "10.0.0.1:10911"));
            world.ask(request.with_json(&version))
        };
        let version = DataVersion { counter: 1, state_version: 3, timestamp: 5 };
        let unknown = ask(version).await;
        assert_eq!((unknown.ext.get("changed"), unknown.body.len()), (Some("true"), 0));
        world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        assert_eq!(ask(version).await.ext.get("changed"), Some("false"));
        let other = ask(version.next(9)).await;
        assert_eq!((other.ext.get("changed"), other.json::<DataVersion>()), (Some("true"), Ok(version)));
    }

    #[tokio::test]
    async fn a_closed_connection_and_a_farewell_remove_the_broker() {
        let world = world().await;
        world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        let other = Client::new(&world.env, Limits::default(), Arc::new(NoRequests));
        assert!(world.route(&other, "T", 479).await.is_success());
        world.client.close().await;
        let gone = world.env.clock.timeout(PATIENCE, async {
            while world.route(&other, "T", 479).await.is_success() {
                world.env.clock.sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(gone.await.is_some(), "the broker stayed after its connection was closed");

        world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        assert!(world.route(&other, "T", 479).await.is_success());
        world.ask(RemotingCommand::request_with(RequestCode::UNREGISTER_BROKER, &broker(0, "10.0.0.1:10911"))).await;
        assert!(!world.route(&other, "T", 479).await.is_success());
    }

    #[tokio::test]
    async fn tools_list_drain_delete_and_switch() {
        let world = world().await;
        world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        let topics: TopicList = world
            .ask(RemotingCommand::request(RequestCode::GET_SYSTEM_TOPIC_LIST_FROM_NS))
            .await
            .json()
            .expect("topics");
        assert_eq!(topics.topic_list, ["DefaultCluster".to_owned(), "broker-a".to_owned()].into());

        let drain = BrokerNameRequest { broker_name: "broker-a".into() };
        let drained = world.ask(RemotingCommand::request_with(RequestCode::WIPE_WRITE_PERM_OF_BROKER, &drain)).await;
        assert_eq!(drained.ext.get("wipeTopicCount"), Some("1"));
        let route: TopicRouteData = world.route(&world.client, "T", 479).await.json().expect("a route");
        assert_eq!(route.queue_datas[0].perm, 4);

        let delete = NamesrvTopicRequest { topic: "T".into(), cluster_name: Some("OtherCluster".into()) };
        world.ask(RemotingCommand::request_with(RequestCode::DELETE_TOPIC_IN_NAMESRV, &delete)).await;
        assert!(world.route(&world.client, "T", 479).await.is_success());
        let delete = NamesrvTopicRequest { cluster_name: None, ..delete };
        world.ask(RemotingCommand::request_with(RequestCode::DELETE_TOPIC_IN_NAMESRV, &delete)).await;
        world.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        assert!(!world.route(&world.client, "T", 479).await.is_success());

        let switch = |text: &'static str| {
            world.ask(RemotingCommand::request(RequestCode::UPDATE_NAMESRV_CONFIG).with_body(text))
        };
        assert!(switch("orderMessageEnable=false\n").await.is_success());
        assert_eq!(switch("kvConfigPath=/etc/passwd\n").await.response_code(), ResponseCode::NO_PERMISSION);
        let config = world.ask(RemotingCommand::request(RequestCode::GET_NAMESRV_CONFIG)).await;
        assert_eq!(&config.body[..], b"orderMessageEnable=false\n");
        let unknown = world.ask(RemotingCommand::request(RequestCode::SEND_MESSAGE)).await;
        assert_eq!((unknown.code, unknown.remark_text()), (3, " request type 10 not supported"));
    }

    #[tokio::test]
    async fn a_stopped_server_is_gone_and_several_are_independent() {
        let (one, two) = (world().await, world().await);
        one.ask(registration(0, "10.0.0.1:10911", 3, true)).await;
        assert!(!two.route(&two.client, "T", 479).await.is_success());
        one.server.stop();
        let gone = one.env.clock.timeout(PATIENCE, async {
            while one.env.net.connect(&one.address).await.is_ok() {
                one.env.clock.sleep(Duration::from_millis(1)).await;
            }
        });
        assert!(gone.await.is_some(), "it still listens");
        assert!(!two.route(&two.client, "T", 479).await.is_success());
    }
}
