//! What went wrong, in terms of what the caller may do next.
//!
//! The question behind every error is whether the request may have been carried out. Each enum answers it with
//! `is_retry_safe`: `true` means that it certainly was not, so that doing it again cannot do it twice.

use protocol::code::ResponseCode;
use remoting::CallError;

/// The client cannot be built as configured. Correct the configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// No NameServer address, or one that is not `host:port`.
    #[error("name server addresses are `host:port` separated by `;`, not {0:?}")]
    NameServers(String),
    /// A setting outside its range.
    #[error("{setting} must be {expected}")]
    OutOfRange {
        /// Which one.
        setting: &'static str,
        /// What it may be.
        expected: &'static str,
    },
}

/// A message, topic or group that no broker would take. Correct it; nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidMessage {
    /// The topic's or group's name.
    #[error(transparent)]
    Name(#[from] protocol::names::NameError),
    /// A topic of the system that takes no messages from clients.
    #[error("clients may not send to {0}")]
    SystemTopic(String),
    /// A property name that the system uses.
    #[error("{0:?} is reserved; use the setter meant for it or another name")]
    ReservedProperty(String),
    /// A property without name or value.
    #[error("property {0:?} has an empty name or value")]
    EmptyProperty(String),
    /// A unique key that is not the text of one.
    #[error("{0:?} is no unique key: it has 32 or 56 hexadecimal digits")]
    UniqueKey(String),
    /// More bytes than fit.
    #[error("{part} of {part_bytes} bytes exceeds {limit_bytes}")]
    TooLarge {
        /// Which part.
        part: &'static str,
        /// Its size.
        part_bytes: usize,
        /// The most that fits.
        limit_bytes: usize,
    },
    /// Messages that cannot travel in one batch.
    #[error("these messages are no batch: {0}")]
    Batch(&'static str),
    /// A message that cannot be part of a transaction.
    #[error("this message cannot be sent in a transaction: {0}")]
    Transaction(&'static str),
    /// A reply to a message that is no request: it lacks a property.
    #[error("the message that is to be replied to is no request: it has no property {0}")]
    NoRequest(&'static str),
    /// A tag expression that names no tag.
    #[error(transparent)]
    Expression(#[from] protocol::tag::BadTagExpression),
    /// An SQL92 expression that is none.
    #[error("no SQL92 expression: {0}")]
    SqlExpression(#[from] protocol::sql92::BadSqlExpression),
}

/// No address to send a request to. Nothing was sent: asking again is safe.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RouteError {
    /// No NameServer knows the topic, and topics are not created on demand.
    #[error("no name server knows topic {0}")]
    TopicNotFound(String),
    /// No NameServer answered.
    #[error("no name server answers: {0}")]
    NameServersSilent(String),
    /// The topic has no queue that could be used.
    #[error("topic {topic} has no queue to {purpose}")]
    NoQueue {
        /// Which topic.
        topic: String,
        /// `write to` or `read from`.
        purpose: &'static str,
    },
    /// The route has no broker of that name.
    #[error("the route of topic {topic} has no broker {broker_name}")]
    NoBroker {
        /// Which topic.
        topic: String,
        /// Which broker.
        broker_name: String,
    },
}

/// Why a message was not acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// The message itself is wrong. Nothing was sent; sending it unchanged fails again.
    #[error(transparent)]
    Invalid(#[from] InvalidMessage),
    /// Certainly not stored: no broker could be reached in time, or all of them said "not now".
    #[error("not stored: {reason}")]
    NotStored {
        /// The last failure.
        reason: String,
    },
    /// It may or may not be stored: an answer was due and did not come. Where brokers recognise repeated sends, the
    /// message can be sent again under its key ([`crate::Message::with_unique_key`]) without being stored twice.
    #[error("unknown whether stored: {reason}")]
    Unknown {
        /// The failure that left it open.
        reason: String,
        /// The message's unique key; of a batch, its first message's.
        unique_key: String,
    },
    /// A broker refused it for a reason that time does not heal.
    #[error("refused: {code}: {remark}")]
    Refused {
        /// The broker's response code.
        code: ResponseCode,
        /// The broker's words.
        remark: String,
    },
}

impl SendError {
    /// Whether the message was certainly not stored, so that sending it again cannot store it twice.
    pub fn is_retry_safe(&self) -> bool {
        match self {
            SendError::Invalid(_) | SendError::NotStored { .. } => true,
            SendError::Unknown { .. } => false,
            SendError::Refused { code, .. } => is_certain(*code),
        }
    }

    /// Whether sending the same message again later may succeed.
    pub fn is_transient(&self) -> bool {
        matches!(self, SendError::NotStored { .. } | SendError::Unknown { .. })
    }
}

/// Why a request other than a send brought no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// There is nobody to ask.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The request never left this machine.
    #[error("not sent: {0}")]
    NotSent(String),
    /// The request was sent and no answer came: it may or may not have been carried out.
    #[error("no answer: {0}")]
    Unknown(String),
    /// The peer refused.
    #[error("refused: {code}: {remark}")]
    Refused {
        /// Its response code.
        code: ResponseCode,
        /// Its words.
        remark: String,
    },
    /// The peer answered with something that cannot be read.
    #[error("the answer cannot be read: {0}")]
    Malformed(String),
    /// What was asked for makes no sense.
    #[error(transparent)]
    Invalid(#[from] InvalidMessage),
}

impl RequestError {
    /// Whether the request was certainly not carried out.
    pub fn is_retry_safe(&self) -> bool {
        match self {
            RequestError::Route(_) | RequestError::NotSent(_) | RequestError::Invalid(_) => true,
            RequestError::Unknown(_) | RequestError::Malformed(_) => false,
            RequestError::Refused { code, .. } => is_certain(*code),
        }
    }

    /// The response code, if a peer refused.
    pub fn code(&self) -> Option<ResponseCode> {
        match self {
            RequestError::Refused { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(crate) fn refused(response: &protocol::command::RemotingCommand) -> RequestError {
        RequestError::Refused { code: response.response_code(), remark: response.remark_text().to_owned() }
    }
}

impl From<CallError> for RequestError {
    fn from(error: CallError) -> RequestError {
        match error {
            CallError::NotSent(reason) => RequestError::NotSent(reason),
            CallError::Unknown(reason) => RequestError::Unknown(reason),
        }
    }
}

/// Why a delayed message was not recalled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecallError {
    /// It is visible already, or the handle is not that of a delayed message: nothing to be done.
    #[error("too late: {0}")]
    TooLate(String),
    /// The request brought no result. A recall may be repeated whatever became of it: a message is recalled once.
    #[error(transparent)]
    Request(#[from] RequestError),
}

/// Why a consumer did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A bad group, topic or expression.
    #[error(transparent)]
    Invalid(#[from] InvalidMessage),
    /// This client is a member of the group already. Use another client: members are told apart by their client.
    #[error("this client already is a member of group {0}")]
    AlreadyMember(String),
    /// Nothing subscribed to.
    #[error("the consumer subscribes to no topic")]
    NoSubscription,
    /// A setting outside its range.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// No NameServer answered.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// A broker does not take the subscription.
    #[error("a broker refuses the subscription to {topic}: {reason}")]
    Subscription {
        /// Which topic.
        topic: String,
        /// The broker's words.
        reason: RequestError,
    },
    /// The file with a broadcasting group's offsets cannot be used.
    #[error("offset file: {0}")]
    Offsets(#[from] std::io::Error),
}

/// Whether a refusal with this code means that nothing was done. SYSTEM_ERROR is what brokers answer when they do not
/// know themselves; with the others something was done, and not all of it in time.
pub(crate) fn is_certain(code: ResponseCode) -> bool {
    !matches!(
        code,
        ResponseCode::SYSTEM_ERROR
            | ResponseCode::FLUSH_DISK_TIMEOUT
            | ResponseCode::SLAVE_NOT_AVAILABLE
            | ResponseCode::FLUSH_SLAVE_TIMEOUT
            | ResponseCode::CONSUME_MSG_TIMEOUT
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_certainly_did_not_happen_is_safe_to_repeat() {
        let refused = |code| SendError::Refused { code, remark: String::new() };
        assert!(SendError::NotStored { reason: String::new() }.is_retry_safe());
        assert!(refused(ResponseCode::MESSAGE_ILLEGAL).is_retry_safe());
        for code in [1, 10, 11, 12, 207].map(ResponseCode) {
            assert!(!refused(code).is_retry_safe(), "{code}");
            assert!(!RequestError::Refused { code, remark: String::new() }.is_retry_safe(), "{code}");
        }
        let unknown = SendError::Unknown { reason: String::new(), unique_key: String::new() };
        assert!(!unknown.is_retry_safe() && unknown.is_transient());
        assert!(RequestError::from(CallError::NotSent("x".into())).is_retry_safe());
        assert!(!RequestError::from(CallError::Unknown("x".into())).is_retry_safe());
    }
}
