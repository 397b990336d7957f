//! What a producer does after a failed attempt: where to try next, after which pause, or what to report. Pure.
//!
//! The rule behind all of it: an attempt that certainly stored nothing may be repeated anywhere; one whose outcome is
//! unknown is repeated, by default, only where a broker can recognise the repetition, that is in the same broker group,
//! whose log either has the message under its unique key or not.

use std::time::Duration;

use protocol::code::ResponseCode;

use crate::errors::{SendError, is_certain};

/// Pause before the second attempt at the same broker group; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// Attempts after a refusal that another broker may not share. A refusal everywhere is not worth the whole deadline.
const RETRIES_AFTER_REFUSAL: u32 = 2;

/// What to do after an attempt whose outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AfterUnknown {
    /// Try again in the same broker group, under the same unique key: stored once where the brokers recognise repeated sends,
    /// as ours do, else at least once.
    #[default]
    SameBroker,
    /// Try again anywhere, as RocketMQ's own producers do: at least once, and sooner when a whole group is gone.
    AnyBroker,
    /// Report it.
    GiveUp,
}

/// How an attempt failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// There is no queue to send to, as far as the route tells.
    NoRoute(String),
    /// It never left this machine.
    NotSent(String),
    /// It left, and no answer came.
    Unknown(String),
    /// A broker refused.
    Refused { code: ResponseCode, remark: String },
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another attempt after the pause.
    Retry(Duration),
    /// The error is final: see [`Attempts::error`].
    GiveUp,
}

/// The attempts made so far to send one message.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    made: u32,
    refusals: u32,
    /// Failures in a row at the broker group tried last.
    in_a_row: u32,
    last_broker: Option<String>,
    last: Option<Failure>,
    /// Why an earlier attempt may have stored the message. Once set, the outcome can only be success or unknown.
    in_doubt: Option<String>,
    /// The next attempt must go to the group of the last one.
    is_bound: bool,
}

impl Attempts {
    /// Takes in that an attempt at `broker` failed.
    pub(crate) fn failed(&mut self, broker: Option<&str>, failure: Failure, policy: AfterUnknown, most: u32) -> Next {
        self.made += 1;
        self.in_a_row = if self.last_broker.as_deref() == broker { self.in_a_row + 1 } else { 1 };
        self.last_broker = broker.map(str::to_owned);
        let may_go_on = match &failure {
            Failure::NoRoute(_) | Failure::NotSent(_) => true,
            Failure::Unknown(reason) => self.doubted(reason.clone(), policy),
            Failure::Refused { code, remark } => match *code {
                ResponseCode::SERVICE_NOT_AVAILABLE | ResponseCode::SYSTEM_BUSY | ResponseCode::GO_AWAY => true,
                ResponseCode::NO_PERMISSION
                | ResponseCode::TOPIC_NOT_EXIST
                | ResponseCode::NO_BUYER_ID
                | ResponseCode::NOT_IN_CURRENT_UNIT => self.refused(),
                code if !is_certain(code) => self.doubted(format!("{code}: {remark}"), policy) && self.refused(),
                _ => false,
            },
        };
        self.last = Some(failure);
        if !may_go_on || self.made >= most {
            return Next::GiveUp;
        }
        Next::Retry((FIRST_PAUSE * (1 << (self.in_a_row - 1).min(8))).min(LONGEST_PAUSE))
    }

    /// The message may be stored now; whether to go on.
    fn doubted(&mut self, reason: String, policy: AfterUnknown) -> bool {
        self.in_doubt = Some(reason);
        self.is_bound = policy == AfterUnknown::SameBroker;
        policy != AfterUnknown::GiveUp
    }

    /// A broker does not want it, though another might; whether to go on.
    fn refused(&mut self) -> bool {
        self.refusals += 1;
        self.refusals <= RETRIES_AFTER_REFUSAL
    }

    /// Attempts that failed.
    pub(crate) fn made(&self) -> u32 {
        self.made
    }

    /// The broker group that the next attempt must go to.
    pub(crate) fn bound_to(&self) -> Option<&str> {
        self.last_broker.as_deref().filter(|_| self.is_bound)
    }

    /// The broker group that the next attempt had better not go to.
    pub(crate) fn avoided(&self) -> Option<&str> {
        self.last_broker.as_deref().filter(|_| !self.is_bound)
    }

    /// Which member of `broker` to try, out of `members`: the leader first, then the others in turn, which pass it on
    /// or refuse it. An unknown outcome is not held against a member: its answer may be there now.
    pub(crate) fn member(&self, broker: &str, members: usize) -> usize {
        if self.last_broker.as_deref() == Some(broker) { self.in_a_row as usize % members } else { 0 }
    }

    /// The error to report. `unique_key` is the message's.
    pub(crate) fn error(self, unique_key: &str) -> SendError {
        match (self.in_doubt, self.last) {
            (_, Some(Failure::Refused { code, remark })) if !is_certain(code) => SendError::Refused { code, remark },
            (Some(reason), _) => SendError::Unknown { reason, unique_key: unique_key.to_owned() },
            (None, Some(Failure::Refused { code, remark })) => match code {
                ResponseCode::SERVICE_NOT_AVAILABLE | ResponseCode::SYSTEM_BUSY | ResponseCode::GO_AWAY => {
                    SendError::NotStored { reason: format!("{code}: {remark}") }
                }
                _ => SendError::Refused { code, remark },
            },
            (None, Some(Failure::NoRoute(reason) | Failure::NotSent(reason))) => SendError::NotStored { reason },
            (None, Some(Failure::Unknown(_))) => unreachable!("an unknown outcome leaves a doubt"),
            (None, None) => SendError::NotStored { reason: "no time for an attempt".to_owned() },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 100;

    fn not_sent() -> Failure {
        Failure::NotSent("refused".into())
    }

    fn refused(code: ResponseCode) -> Failure {
        Failure::Refused { code, remark: "why".into() }
    }

    fn unknown() -> Failure {
        Failure::Unknown("silence".into())
    }

    #[test]
    fn what_was_not_stored_goes_elsewhere_and_pauses_grow_only_in_place() {
        let mut attempts = Attempts::default();
        let policy = AfterUnknown::default();
        assert_eq!(attempts.failed(Some("a"), not_sent(), policy, MOST), Next::Retry(FIRST_PAUSE));
        assert_eq!((attempts.bound_to(), attempts.avoided()), (None, Some("a")));
        assert_eq!((attempts.member("a", 3), attempts.member("b", 3)), (1, 0));
        assert_eq!(attempts.failed(Some("b"), not_sent(), policy, MOST), Next::Retry(FIRST_PAUSE));
        assert_eq!(attempts.failed(Some("b"), not_sent(), policy, MOST), Next::Retry(FIRST_PAUSE * 2));
        for _ in 0..20 {
            let Next::Retry(pause) = attempts.failed(Some("b"), not_sent(), policy, MOST) else { panic!("goes on") };
            assert!(pause <= LONGEST_PAUSE);
        }
        assert_eq!(attempts.error("K"), SendError::NotStored { reason: "refused".into() });
    }

    #[test]
    fn an_unknown_outcome_binds_to_its_broker_group_and_is_never_forgotten() {
        let mut attempts = Attempts::default();
        let policy = AfterUnknown::SameBroker;
        assert!(matches!(attempts.failed(Some("a"), unknown(), policy, MOST), Next::Retry(_)));
        assert_eq!((attempts.bound_to(), attempts.avoided()), (Some("a"), None));
        assert!(matches!(attempts.failed(Some("a"), not_sent(), policy, MOST), Next::Retry(_)));
        assert_eq!(attempts.bound_to(), Some("a"), "the first attempt may still have stored it there");
        let gave_up = attempts.failed(Some("a"), refused(ResponseCode::MESSAGE_ILLEGAL), policy, MOST);
        assert_eq!(gave_up, Next::GiveUp);
        assert_eq!(attempts.error("K"), SendError::Unknown { reason: "silence".into(), unique_key: "K".into() });
    }

    #[test]
    fn the_policy_decides_after_an_unknown_outcome() {
        let mut anywhere = Attempts::default();
        assert!(matches!(anywhere.failed(Some("a"), unknown(), AfterUnknown::AnyBroker, MOST), Next::Retry(_)));
        assert_eq!((anywhere.bound_to(), anywhere.avoided()), (None, Some("a")));
        let mut careful = Attempts::default();
        assert_eq!(careful.failed(Some("a"), unknown(), AfterUnknown::GiveUp, MOST), Next::GiveUp);
        assert!(!careful.error("K").is_retry_safe());
    }

    #[test]
    fn refusals_are_final_tried_elsewhere_or_waited_out() {
        let policy = AfterUnknown::default();
        let tries = |code| {
            let mut attempts = Attempts::default();
            let tries = (1..=20).take_while(|_| attempts.failed(Some("a"), refused(code), policy, 20) != Next::GiveUp);
            (tries.count() + 1, attempts.error("K"))
        };
        let (count, error) = tries(ResponseCode::MESSAGE_ILLEGAL);
        assert_eq!((count, error.is_retry_safe(), error.is_transient()), (1, true, false));
        let (count, error) = tries(ResponseCode::TOPIC_NOT_EXIST);
        assert_eq!((count, matches!(error, SendError::Refused { .. })), (3, true));
        let (count, error) = tries(ResponseCode::SYSTEM_BUSY);
        assert_eq!((count, error.is_retry_safe(), error.is_transient()), (20, true, true));
        let (count, error) = tries(ResponseCode::SYSTEM_ERROR);
        assert_eq!((count, error.is_retry_safe()), (3, false));
    }

    #[test]
    fn an_error_that_brokers_make_when_they_do_not_know_leaves_a_doubt() {
        let mut attempts = Attempts::default();
        let policy = AfterUnknown::default();
        assert!(matches!(
            attempts.failed(Some("a"), refused(ResponseCode::SYSTEM_ERROR), policy, MOST),
            Next::Retry(_)
        ));
        assert_eq!(attempts.failed(Some("a"), not_sent(), policy, 2), Next::GiveUp);
        assert!(!attempts.error("K").is_retry_safe());
    }
}
