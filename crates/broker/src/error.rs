//! Why a request is not carried out, in the caller's words, and the one place that turns it into a response code.
//!
//! Three kinds, and the code tells the client which: it must change the request (13, 16, 17, 23, 26, 29 …); it may send
//! the same again, here or elsewhere (2, 14: certainly not carried out); or nobody knows, and then there is no answer at
//! all, because every code would make a client send again.

use std::io;

use protocol::batch::BatchError;
use protocol::code::{RequestCode, ResponseCode};
use protocol::command::RemotingCommand;
use protocol::header::FieldError;
use protocol::json::JsonError;
use protocol::names::NameError;
use protocol::record::RecordError;
use raft_store::consume_queue::UnitsError;
use raft_store::group::{Peer, ReadError};
use raft_store::planted::{self, Bug};
use raft_store::proposer::ProposeError;

use crate::admission::Overload;
use crate::clients::TooManyGroups;
use crate::tables::command::Refusal;

/// Why a request is not carried out.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// The header cannot be read: correct the request.
    #[error("{0}")]
    Header(#[from] FieldError),
    /// The body cannot be read: correct the request.
    #[error("the body is not what this request carries: {0}")]
    Body(#[from] JsonError),
    /// A name is illegal: choose another.
    #[error("{0}")]
    Name(#[from] NameError),
    /// A value is out of its range: correct the request.
    #[error("{0}")]
    InvalidParameter(String),
    /// The message breaks a limit: shorten it.
    #[error("{0}")]
    MessageIllegal(String),
    /// The operation is not allowed here, whoever asks.
    #[error("{remark}")]
    Forbidden {
        /// Says what is not allowed.
        remark: String,
        /// The pull header's `forbiddenType`: whose setting it is.
        whose: Option<i32>,
    },
    /// No such topic, and it is not created on demand.
    #[error("topic[{0}] not exist, apply first please!")]
    NoTopic(String),
    /// No such consumer group, and it is not created on demand.
    #[error("subscription group not exist, {0}")]
    NoGroup(String),
    /// The group has not said in a heartbeat what it wants: send one, then ask again.
    #[error("{0}")]
    NoSubscription(String),
    /// The heartbeat's subscription is older than the request's: ask again after the next heartbeat.
    #[error("subscription is not latest")]
    SubscriptionNotLatest,
    /// The filter expression makes no sense: correct it.
    #[error("{0}")]
    BadSubscription(String),
    /// The filter expression that the heartbeat brought makes no sense: correct it and subscribe again.
    #[error("{0}")]
    NoFilter(String),
    /// There is nothing of that kind.
    #[error("{0}")]
    NotFound(String),
    /// Too much in flight here: the same again, a little later.
    #[error("{0}")]
    Overload(#[from] Overload),
    /// A stage behind this one is full: the same again, a little later.
    #[error("[OVERLOAD] broker busy at {0}; slow down or send again shortly")]
    Busy(String),
    /// Nothing more is stored while this replica's disk is nearly full: free space, or wait until retention has.
    #[error(
        "service not available now: the broker's disk is {used} % full, at {limit} % no message is stored any more; free \
         space, or let retention do it (file_reserved_hours, log_limit_mib)"
    )]
    DiskFull {
        /// Of the file system with the data directory, in percent.
        used: u8,
        /// From where on sends are refused.
        limit: u8,
    },
    /// Certainly not carried out, because another replica leads or none does: the same again, there.
    #[error("not the leader of this broker group{}", where_else(.leader))]
    NotLeader {
        /// Who leads, as far as this replica knows.
        leader: Option<Peer>,
    },
    /// This replica is stopping: the same again, elsewhere.
    #[error("this broker is stopping")]
    Stopped,
    /// It may or may not have been carried out.
    #[error("the outcome is unknown")]
    Unknown,
    /// Allowed only earlier, or only to somebody else: too late.
    #[error("{0}")]
    TooLate(String),
    /// The handle names nothing that this could be done to: use the one that was given out.
    #[error("{0}")]
    BadHandle(String),
    /// The message is not leased to the caller: it is somebody else's by now, or done.
    #[error("{0}")]
    NotLeased(String),
    /// There is no message now.
    #[error("no new message")]
    Nothing,
    /// Something is wrong on this side; the remark says what.
    #[error("{0}")]
    Failed(String),
}

fn where_else(leader: &Option<Peer>) -> String {
    leader.as_ref().map(|leader| format!("; {} is", leader.client_address)).unwrap_or_default()
}

impl RequestError {
    /// The response code; `None` to stay silent.
    pub fn response_code(&self) -> Option<ResponseCode> {
        Some(match self {
            RequestError::Header(_) | RequestError::Body(_) | RequestError::Failed(_) => ResponseCode::SYSTEM_ERROR,
            RequestError::Name(_) | RequestError::InvalidParameter(_) => ResponseCode::INVALID_PARAMETER,
            RequestError::MessageIllegal(_) => ResponseCode::MESSAGE_ILLEGAL,
            RequestError::Forbidden { .. } => ResponseCode::NO_PERMISSION,
            RequestError::NoTopic(_) => ResponseCode::TOPIC_NOT_EXIST,
            RequestError::NoGroup(_) => ResponseCode::SUBSCRIPTION_GROUP_NOT_EXIST,
            RequestError::NoSubscription(_) => ResponseCode::SUBSCRIPTION_NOT_EXIST,
            RequestError::SubscriptionNotLatest => ResponseCode::SUBSCRIPTION_NOT_LATEST,
            RequestError::BadSubscription(_) => ResponseCode::SUBSCRIPTION_PARSE_FAILED,
            RequestError::TooLate(_) | RequestError::BadHandle(_) => ResponseCode::ILLEGAL_OPERATION,
            RequestError::NoFilter(_) => ResponseCode::FILTER_DATA_NOT_EXIST,
            RequestError::Nothing => ResponseCode::PULL_NOT_FOUND,
            RequestError::NotLeased(_) => ResponseCode::NO_MESSAGE,
            RequestError::NotFound(_) => ResponseCode::QUERY_NOT_FOUND,
            RequestError::Overload(_) | RequestError::Busy(_) => ResponseCode::SYSTEM_BUSY,
            RequestError::NotLeader { .. } | RequestError::Stopped | RequestError::DiskFull { .. } => {
                ResponseCode::SERVICE_NOT_AVAILABLE
            }
            RequestError::Unknown if planted::is(Bug::UnknownIsFailure) => ResponseCode::SERVICE_NOT_AVAILABLE,
            RequestError::Unknown => return None,
        })
    }

    /// The response to `request`; `None` to stay silent.
    pub fn answer(&self, request: &RemotingCommand) -> Option<RemotingCommand> {
        let is_harmless = is_harmless_twice(request.request_code()).then_some(ResponseCode::SYSTEM_ERROR);
        let mut answer = request.reply_error(self.response_code().or(is_harmless)?, self.to_string());
        if let RequestError::Forbidden { whose: Some(whose), .. } = self {
            answer = answer.with_field("forbiddenType", whose);
        }
        if is_send(request.request_code()) {
            answer = with_send_fields(answer);
        }
        Some(answer)
    }
}

/// Whoever hears nothing of these waits for longer than the same again takes, which does no harm.
fn is_harmless_twice(code: RequestCode) -> bool {
    matches!(
        code,
        RequestCode::POP_MESSAGE
            | RequestCode::ACK_MESSAGE
            | RequestCode::BATCH_ACK_MESSAGE
            | RequestCode::NOTIFICATION
            | RequestCode::PEEK_MESSAGE
    )
}

fn is_send(code: RequestCode) -> bool {
    matches!(
        code,
        RequestCode::SEND_MESSAGE
            | RequestCode::SEND_MESSAGE_V2
            | RequestCode::SEND_BATCH_MESSAGE
            | RequestCode::SEND_REPLY_MESSAGE
            | RequestCode::SEND_REPLY_MESSAGE_V2
    )
}

/// Java reads these two out of every answer to a send, without asking whether there are fields at all.
pub(crate) fn with_send_fields(answer: RemotingCommand) -> RemotingCommand {
    answer.with_field("MSG_REGION", crate::send::REGION).with_field("TRACE_ON", true)
}

impl From<ProposeError> for RequestError {
    fn from(error: ProposeError) -> RequestError {
        match error {
            ProposeError::NotLeader { leader } => RequestError::NotLeader { leader },
            ProposeError::Unknown => RequestError::Unknown,
            ProposeError::Busy { stage } => RequestError::Busy(stage.to_owned()),
            too_large @ ProposeError::TooLarge { .. } => RequestError::MessageIllegal(too_large.to_string()),
            ProposeError::Stopped => RequestError::Stopped,
        }
    }
}

impl From<ReadError> for RequestError {
    fn from(error: ReadError) -> RequestError {
        match error {
            ReadError::NotLeader { leader } => RequestError::NotLeader { leader },
            // A read has no effect: the same again is always safe, here once a majority answers, or at its leader.
            ReadError::NoQuorum => RequestError::NotLeader { leader: None },
            ReadError::Stopped => RequestError::Stopped,
        }
    }
}

impl From<RecordError> for RequestError {
    fn from(error: RecordError) -> RequestError {
        RequestError::MessageIllegal(error.to_string())
    }
}

impl From<BatchError> for RequestError {
    fn from(error: BatchError) -> RequestError {
        RequestError::MessageIllegal(error.to_string())
    }
}

impl From<io::Error> for RequestError {
    fn from(error: io::Error) -> RequestError {
        RequestError::Failed(format!("reading the store: {error}"))
    }
}

impl From<UnitsError> for RequestError {
    fn from(error: UnitsError) -> RequestError {
        RequestError::Failed(format!("reading the store: {error}"))
    }
}

impl From<TooManyGroups> for RequestError {
    fn from(error: TooManyGroups) -> RequestError {
        match error {
            TooManyGroups::OfClient(_) => RequestError::InvalidParameter(error.to_string()),
            TooManyGroups::OfAll(_) => RequestError::Busy(error.to_string()),
        }
    }
}

impl From<Refusal> for RequestError {
    fn from(refusal: Refusal) -> RequestError {
        match refusal {
            Refusal::NotLeased => RequestError::NotLeased(refusal.to_string()),
            Refusal::OffsetReset => RequestError::TooLate(refusal.to_string()),
            _ => RequestError::Failed(refusal.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_outcome_has_no_answer_and_a_certain_refusal_one_that_every_client_retries() {
        let request = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2);
        assert!(RequestError::from(ProposeError::Unknown).answer(&request).is_none());
        let pop = RemotingCommand::request(RequestCode::POP_MESSAGE);
        let harmless = RequestError::Unknown.answer(&pop).map(|answer| answer.response_code());
        assert_eq!(harmless, Some(ResponseCode::SYSTEM_ERROR));
        let refused = RequestError::from(ProposeError::NotLeader { leader: None }).answer(&request).expect("an answer");
        assert_eq!(refused.response_code(), ResponseCode::SERVICE_NOT_AVAILABLE);
        let busy = RequestError::from(ProposeError::Busy { stage: "proposals in flight" });
        assert!(busy.to_string().starts_with("[OVERLOAD]") && busy.to_string().contains("proposals in flight"));
    }

    #[test]
    fn a_refused_send_has_the_fields_that_java_reads_unasked() {
        let refusal = RequestError::NoTopic("T".to_owned());
        let send = refusal.answer(&RemotingCommand::request(RequestCode::SEND_MESSAGE)).expect("an answer");
        assert_eq!((send.ext.get("MSG_REGION"), send.ext.get("TRACE_ON")), (Some("DefaultRegion"), Some("true")));
        let other = refusal.answer(&RemotingCommand::request(RequestCode::PULL_MESSAGE)).expect("an answer");
        assert!(other.ext.is_empty());
        let forbidden = RequestError::Forbidden { remark: "no".to_owned(), whose: Some(2) };
        let pull = forbidden.answer(&RemotingCommand::request(RequestCode::PULL_MESSAGE)).expect("an answer");
        assert_eq!((pull.code, pull.ext.get("forbiddenType")), (16, Some("2")));
    }
}
