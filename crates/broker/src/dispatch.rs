//! Dispatch: the one gate. A request code that has no row here, with what it touches and how, does not route.
//!
//! A row also says where it is carried out. What only the leader may answer is carried out here if this replica leads and
//! is ready, and goes to the leader otherwise; while nobody leads it waits, and fails only when the wait is over.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::future::BoxFuture;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use raft_store::group::{Peer, Role};
use remoting::Connection;
use tokio::sync::Notify;

use crate::broker::BrokerGroup;
use crate::error::RequestError;
use crate::{
    admin, assignment, check_back, consumer_offset, forward, heartbeat, pop, pull, query_message, queue_lock, recall,
    reply, send, send_back, transaction, view_message,
};

/// The response of a request that was carried out, or why it was not.
pub type Answer = Result<RemotingCommand, RequestError>;

/// A request on its way through the broker.
#[derive(Debug)]
pub struct Call {
    /// Where it came from: the client, or the replica that forwarded it.
    pub connection: Connection,
    /// What is asked.
    pub request: RemotingCommand,
    /// The client's address.
    pub born_host: SocketAddr,
    /// The client's own name, if the replica that forwarded the request knew it.
    pub client_id: Option<String>,
    /// Monotonic time after which nobody waits for the answer any more.
    pub deadline: Duration,
    /// It has made its one hop.
    pub is_forwarded: bool,
}

/// What a request touches: RocketMQ's resource types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// The broker as a whole.
    Cluster,
}

/// How it touches it: RocketMQ's actions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Sends messages.
    Pub,
    /// Consumes messages, and what belongs to that.
    Sub,
    /// Makes.
    Create,
    /// Changes.
    Update,
    /// Deletes.
    Delete,
    /// Reads one.
    Get,
    /// Reads many.
    List,
}

/// Which replica carries it out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The leader.
    Leader,
    /// The one that was asked, if it holds all that is retained; else the leader. A replica that is on its way there lacks
    /// what others would show.
    CaughtUpReplica,
    /// The one that was asked.
    AnyReplica,
}

/// Carries out one request code.
pub type Handle = for<'a> fn(&'a Arc<BrokerGroup>, &'a Call) -> BoxFuture<'a, Answer>;

/// A request code that routes.
#[derive(Clone, Copy)]
pub struct Route {
    /// The code.
    pub code: RequestCode,
    /// What it touches.
    pub resource: Resource,
    /// How.
    pub action: Action,
    /// Where.
    pub place: Place,
    /// By whom.
    pub handle: Handle,
}

/// A row: `route!(CODE, resource, action, place, handler)`.
macro_rules! route {
    ($code:ident, $resource:ident, $action:ident, $place:ident, $handle:path) => {
        $crate::dispatch::Route {
            code: protocol::code::RequestCode::$code,
            resource: $crate::dispatch::Resource::$resource,
            action: $crate::dispatch::Action::$action,
            place: $crate::dispatch::Place::$place,
            handle: |broker, call| futures::future::FutureExt::boxed($handle(broker, call)),
        }
    };
}

pub(crate) use route;

/// What clients ask for. Tools' codes have a table of their own.
const CLIENT_ROUTES: &[Route] = &[
    route!(SEND_MESSAGE, Topic, Pub, Leader, send::send),
    route!(SEND_MESSAGE_V2, Topic, Pub, Leader, send::send),
    route!(SEND_BATCH_MESSAGE, Topic, Pub, Leader, send::send),
    route!(SEND_REPLY_MESSAGE, Topic, Pub, AnyReplica, reply::reply),
    route!(SEND_REPLY_MESSAGE_V2, Topic, Pub, AnyReplica, reply::reply),
    route!(CONSUMER_SEND_MSG_BACK, Group, Sub, Leader, send_back::send_back),
    route!(END_TRANSACTION, Topic, Pub, Leader, transaction::end),
    route!(RECALL_MESSAGE, Topic, Pub, Leader, recall::recall),
    route!(CHECK_TRANSACTION_STATE, Cluster, Update, AnyReplica, check_back::relay),
    route!(PULL_MESSAGE, Topic, Sub, CaughtUpReplica, pull::pull),
    route!(LITE_PULL_MESSAGE, Topic, Sub, CaughtUpReplica, pull::pull),
    route!(POP_MESSAGE, Topic, Sub, Leader, pop::pop),
    route!(ACK_MESSAGE, Group, Sub, Leader, pop::ack),
    route!(BATCH_ACK_MESSAGE, Group, Sub, Leader, pop::batch_ack),
    route!(CHANGE_MESSAGE_INVISIBLETIME, Group, Sub, Leader, pop::change_invisible_time),
    route!(NOTIFICATION, Topic, Sub, Leader, pop::notification),
    route!(PEEK_MESSAGE, Topic, Sub, Leader, pop::peek),
    route!(POLLING_INFO, Topic, Get, Leader, pop::polling_info),
    route!(QUERY_ASSIGNMENT, Group, Sub, AnyReplica, assignment::query),
    route!(SET_MESSAGE_REQUEST_MODE, Group, Update, Leader, assignment::set_request_mode),
    route!(HEART_BEAT, Group, Sub, AnyReplica, heartbeat::heartbeat),
    route!(UNREGISTER_CLIENT, Group, Sub, AnyReplica, heartbeat::unregister),
    route!(CHECK_CLIENT_CONFIG, Group, Sub, AnyReplica, heartbeat::check_client),
    route!(GET_CONSUMER_LIST_BY_GROUP, Group, Sub, AnyReplica, heartbeat::consumer_list),
    route!(QUERY_CONSUMER_OFFSET, Group, Sub, Leader, consumer_offset::query),
    route!(UPDATE_CONSUMER_OFFSET, Group, Sub, Leader, consumer_offset::update),
    route!(SEARCH_OFFSET_BY_TIMESTAMP, Topic, Get, Leader, consumer_offset::search_by_time),
    route!(GET_MAX_OFFSET, Topic, Get, Leader, consumer_offset::max_offset),
    route!(GET_MIN_OFFSET, Topic, Get, Leader, consumer_offset::min_offset),
    route!(GET_EARLIEST_MSG_STORETIME, Topic, Get, Leader, consumer_offset::earliest_store_time),
    route!(LOCK_BATCH_MQ, Group, Sub, Leader, queue_lock::lock),
    route!(UNLOCK_BATCH_MQ, Group, Sub, Leader, queue_lock::unlock),
    route!(VIEW_MESSAGE_BY_ID, Topic, Get, CaughtUpReplica, view_message::view),
    route!(QUERY_MESSAGE, Topic, Get, CaughtUpReplica, query_message::query),
];

/// Every code that routes, by number.
pub struct Routes(Vec<Route>);

impl Routes {
    /// All tables together. Panics if two rows claim one code.
    pub fn new() -> Routes {
        let mut routes = [CLIENT_ROUTES, admin::ROUTES].concat();
        routes.sort_by_key(|route| route.code);
        for pair in routes.windows(2) {
            assert!(pair[0].code != pair[1].code, "two rows for {}", pair[0].code);
        }
        Routes(routes)
    }

    /// The row of a code.
    pub fn get(&self, code: RequestCode) -> Option<&Route> {
        self.0.binary_search_by_key(&code, |route| route.code).ok().map(|at| &self.0[at])
    }
}

impl Default for Routes {
    fn default() -> Routes {
        Routes::new()
    }
}

/// Answers one request; `None` for no answer.
pub async fn dispatch(
    broker: &Arc<BrokerGroup>,
    connection: &Connection,
    request: RemotingCommand,
) -> Option<RemotingCommand> {
    let Some(route) = broker.routes.get(request.request_code()) else {
        let remark = format!(" request type {} not supported", request.code);
        return Some(request.reply_error(ResponseCode::REQUEST_CODE_NOT_SUPPORTED, remark));
    };
    if !forward::is_believed(broker, &request) {
        tracing::debug!(code = request.code, peer = %connection.peer_addr(), "claims to be forwarded, and proves nothing");
        let answer =
            request.reply_error(ResponseCode::SERVICE_NOT_AVAILABLE, "not forwarded by a replica of this group");
        return Some(forward::mark_not_leader(answer));
    }
    let call = forward::call_of(broker, connection, request);
    let answer = match route.place {
        Place::AnyReplica => (route.handle)(broker, &call).await,
        Place::CaughtUpReplica if broker.raft.is_caught_up() => match (route.handle)(broker, &call).await {
            // What this replica has does not suffice for it.
            Err(RequestError::NotLeader { .. }) => at_leader(broker, route, &call).await,
            answer => answer,
        },
        Place::CaughtUpReplica | Place::Leader => at_leader(broker, route, &call).await,
    };
    match answer {
        Ok(answer) => Some(answer),
        Err(error) => {
            tracing::debug!(code = call.request.code, peer = %call.born_host, %error, "request not carried out");
            let answer = error.answer(&call.request);
            if call.is_forwarded && matches!(error, RequestError::NotLeader { .. } | RequestError::Stopped) {
                return answer.map(forward::mark_not_leader);
            }
            answer
        }
    }
}

/// Carries the request out here or at the leader.
async fn at_leader(broker: &Arc<BrokerGroup>, route: &Route, call: &Call) -> Answer {
    let _work = broker.work.begin();
    let mut in_doubt = false;
    let answer = tried_at_leader(broker, route, call, &mut in_doubt).await;
    let is_done = matches!(&answer, Ok(answer) if answer.is_success());
    // Whatever the last copy met, an earlier one may yet be carried out.
    if in_doubt && !is_done { Err(RequestError::Unknown) } else { answer }
}

/// Tries again as long as it was certainly not carried out, or nothing changes if it is carried out twice. `in_doubt`: an
/// earlier try may have had its effect.
async fn tried_at_leader(broker: &Arc<BrokerGroup>, route: &Route, call: &Call, in_doubt: &mut bool) -> Answer {
    let arrived = broker.env.clock.monotonic();
    let patience = (arrived + broker.config.limits.leader_wait).min(call.deadline);
    loop {
        let answer = match broker.wait_for_leader(patience).await? {
            Leader::Here => (route.handle)(broker, call).await,
            // One hop only: the replica that sent it here finds out by itself who leads.
            Leader::At(leader) if call.is_forwarded => return Err(RequestError::NotLeader { leader: Some(leader) }),
            Leader::At(leader) => forward::forward(broker, call, &leader).await,
        };
        let may_try_again = match &answer {
            Err(RequestError::NotLeader { leader }) => {
                tracing::debug!(code = call.request.code, ?leader, "certainly not carried out; looking for the leader");
                true
            }
            Err(RequestError::Unknown) => match Repeat::of(broker, call) {
                Repeat::Reads => true,
                Repeat::ChangesNothing => {
                    *in_doubt = true;
                    true
                }
                Repeat::IsAnother => false,
            },
            _ => false,
        };
        if !may_try_again || broker.env.clock.monotonic() >= patience {
            return answer;
        }
        broker.role_changed_within(NEXT_TRY).await;
    }
}

/// What a request does that may have been carried out before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Repeat {
    /// It has no effect in any case.
    Reads,
    /// It is answered as it was the first time.
    ChangesNothing,
    /// The same once more.
    IsAnother,
}

impl Repeat {
    fn of(broker: &BrokerGroup, call: &Call) -> Repeat {
        match call.request.request_code() {
            RequestCode::QUERY_CONSUMER_OFFSET
            | RequestCode::SEARCH_OFFSET_BY_TIMESTAMP
            | RequestCode::GET_MAX_OFFSET
            | RequestCode::GET_MIN_OFFSET
            | RequestCode::GET_EARLIEST_MSG_STORETIME
            | RequestCode::PULL_MESSAGE
            | RequestCode::LITE_PULL_MESSAGE
            | RequestCode::VIEW_MESSAGE_BY_ID
            | RequestCode::QUERY_MESSAGE
            | RequestCode::NOTIFICATION
            | RequestCode::PEEK_MESSAGE
            | RequestCode::POLLING_INFO => Repeat::Reads,
            // The first end counts.
            RequestCode::END_TRANSACTION => Repeat::ChangesNothing,
            _ if send::is_stored_once(broker, call) => Repeat::ChangesNothing,
            _ => Repeat::IsAnother,
        }
    }
}

/// Whoever was said to lead said no: ask again when the role here changes, or after this.
const NEXT_TRY: Duration = Duration::from_millis(50);

/// How long a request waits for a leader that no majority answers: probably another one leads by now, and only the client
/// can get there. Three tries in a row, which clients make, are a moment of patience.
const ISOLATED_WAIT: Duration = Duration::from_millis(500);

/// Who leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This replica, and it is ready.
    Here,
    /// Another one.
    At(Peer),
}

impl BrokerGroup {
    /// Waits until somebody leads, at most until the monotonic time `until`.
    pub(crate) async fn wait_for_leader(&self, until: Duration) -> Result<Leader, RequestError> {
        if let Some(leader) = leader_of(&self.role.borrow())? {
            return Ok(leader);
        }
        let mut role = self.role.clone();
        let is_isolated = matches!(&*role.borrow(), Role::Isolated { .. });
        let limit = if is_isolated { ISOLATED_WAIT } else { Duration::MAX };
        let remaining = until.saturating_sub(self.env.clock.monotonic()).min(limit);
        let known = self.env.clock.timeout(remaining, async {
            loop {
                if let Some(leader) = leader_of(&role.borrow_and_update())? {
                    return Ok(leader);
                }
                if role.changed().await.is_err() {
                    return Err(RequestError::Stopped);
                }
            }
        });
        known.await.unwrap_or(Err(RequestError::NotLeader { leader: None }))
    }

    async fn role_changed_within(&self, limit: Duration) {
        let mut role = self.role.clone();
        role.borrow_and_update();
        let _ = self.env.clock.timeout(limit, role.changed()).await;
    }
}

fn leader_of(role: &Role) -> Result<Option<Leader>, RequestError> {
    match role {
        Role::Leader { ready: true, .. } => Ok(Some(Leader::Here)),
        Role::Follower { leader: Some(leader), .. } => Ok(Some(Leader::At(leader.clone()))),
        Role::Leader { ready: false, .. } | Role::Isolated { .. } => Ok(None),
        Role::Follower { leader: None, .. } | Role::Candidate { .. } => Ok(None),
        Role::Stopped { .. } => Err(RequestError::Stopped),
    }
}

/// Requests for the leader between arrival and answer.
#[derive(Debug, Default)]
pub struct Work {
    count: AtomicUsize,
    ended: Notify,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub struct Working<'a>(&'a Work);

impl Work {
    /// Another one.
    pub fn begin(&self) -> Working<'_> {
        self.count.fetch_add(1, Ordering::AcqRel);
        Working(self)
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Acquire)
    }

    /// Resolves when there is none.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            tokio::pin!(ended);
            // Registered before looking, so that the last one is either seen or wakes us.
            ended.as_mut().enable();
            if self.count() == 0 {
                return;
            }
            ended.await;
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        if self.0.count.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.ended.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer() -> Peer {
        Peer { id: 7, peer_address: "127.0.0.1:2".to_owned(), client_address: "127.0.0.1:1".to_owned() }
    }

    #[test]
    fn every_row_is_found_and_nothing_else_is() {
        let routes = Routes::new();
        for route in CLIENT_ROUTES {
            assert_eq!(routes.get(route.code).expect("a row").code, route.code);
        }
        assert!(routes.get(RequestCode(999)).is_none());
    }

    /// The page that tells users which codes are answered, and where.
    const PAGE: &str = include_str!("../../../docs/compatibility.md");

    #[test]
    fn the_page_on_compatibility_says_who_answers_each_code() {
        let routes = Routes::new();
        for code in RequestCode::ALL {
            let wanted = routes.get(*code).map(|route| match route.place {
                Place::Leader => "broker: leader",
                Place::CaughtUpReplica => "broker: replica that has all",
                Place::AnyReplica => "broker: any replica",
            });
            let row = PAGE.lines().find_map(|line| line.strip_prefix(&format!("| {} |", code.0)));
            let row = row.unwrap_or_else(|| panic!("docs/compatibility.md has no row for {code}"));
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let says = Some(cells[1]).filter(|says| says.starts_with("broker"));
            assert_eq!(says, wanted, "docs/compatibility.md on {code}");
            assert!(!cells[2].is_empty(), "docs/compatibility.md does not say where {code} is shown, or why it is not");
        }
    }

    #[test]
    fn what_changes_the_log_is_the_leader_s_alone() {
        let routes = Routes::new();
        for code in [
            RequestCode::SEND_MESSAGE,
            RequestCode::CONSUMER_SEND_MSG_BACK,
            RequestCode::UPDATE_CONSUMER_OFFSET,
            RequestCode::LOCK_BATCH_MQ,
        ] {
            assert_eq!(routes.get(code).expect("a row").place, Place::Leader, "{code}");
        }
    }

    #[test]
    fn a_leader_that_is_not_ready_is_waited_for() {
        assert_eq!(leader_of(&Role::Leader { term: 1, ready: true }).expect("not stopped"), Some(Leader::Here));
        for waiting in [
            Role::Leader { term: 1, ready: false },
            Role::Isolated { term: 1 },
            Role::Candidate { term: 1 },
            Role::Follower { term: 1, leader: None },
        ] {
            assert_eq!(leader_of(&waiting).expect("not stopped"), None, "{waiting:?}");
        }
        let following = Role::Follower { term: 1, leader: Some(peer()) };
        assert_eq!(leader_of(&following).expect("not stopped"), Some(Leader::At(peer())));
        assert!(matches!(leader_of(&Role::Stopped { reason: None }), Err(RequestError::Stopped)));
    }

    #[tokio::test]
    async fn idle_means_that_the_last_request_has_ended() {
        let work = Work::default();
        work.idle().await;
        let (first, second) = (work.begin(), work.begin());
        drop(first);
        assert!(futures::poll!(Box::pin(work.idle())).is_pending());
        drop(second);
        work.idle().await;
    }
}
