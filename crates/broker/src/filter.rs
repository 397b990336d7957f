//! Filter: which messages of a topic a consumer wants, by tag or by an SQL92 expression over their properties.
//!
//! A tag is decided by its hash in the ConsumeQueue unit; an expression by the properties in the record.

use protocol::body::SubscriptionData;
use protocol::sql92::{BadSqlExpression, SqlFilter};
use protocol::tag::{self, BadTagExpression, EXPRESSION_TYPE_SQL92, TagExpression};

use crate::error::RequestError;

/// What a consumer wants of a topic.
#[derive(Clone, Debug, PartialEq)]
pub enum Filter {
    /// Messages with one of some tags, or all.
    Tags(TagExpression),
    /// Messages whose properties satisfy an expression.
    Sql(SqlFilter),
}

/// A subscription that selects nothing, because it makes no sense: the consumer must correct it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadFilter {
    /// A tag expression without tags.
    #[error("{0}")]
    Tags(#[from] BadTagExpression),
    /// An expression that is none.
    #[error("{0}")]
    Sql(#[from] BadSqlExpression),
    /// Neither tags nor SQL92.
    #[error("The broker does not support consumer to filter message by {0}")]
    Unknown(String),
}

impl Filter {
    /// The filter that an expression of this type means.
    pub fn parse(expression_type: Option<&str>, expression: &str) -> Result<Filter, BadFilter> {
        if tag::is_tag_type(expression_type) {
            return Ok(Filter::Tags(TagExpression::parse(expression)?));
        }
        match expression_type.unwrap_or_default() {
            EXPRESSION_TYPE_SQL92 => Ok(Filter::Sql(SqlFilter::parse(expression)?)),
            other => Err(BadFilter::Unknown(other.to_owned())),
        }
    }

    /// The filter of a subscription.
    pub fn of(subscription: &SubscriptionData) -> Result<Filter, BadFilter> {
        Filter::parse(Some(&subscription.expression_type), &subscription.sub_string)
    }

    /// Whether a message with this tag hash may match; what else it takes, its record says.
    pub fn may_match(&self, tag_hash: i32) -> bool {
        match self {
            Filter::Tags(tags) => tags.matches_hash(tag_hash),
            Filter::Sql(_) => true,
        }
    }

    /// Refuses expressions where they are switched off.
    pub fn allowed(&self, sql_filters: bool) -> Result<(), RequestError> {
        match self {
            Filter::Sql(_) if !sql_filters => {
                Err(refused(BadFilter::Unknown(EXPRESSION_TYPE_SQL92.to_owned()), "", RequestError::BadSubscription))
            }
            _ => Ok(()),
        }
    }
}

impl BadFilter {
    /// The answer to a consumer that asks whether it may subscribe so.
    pub fn at_check(self) -> RequestError {
        let words = if matches!(self, BadFilter::Sql(_)) { "Invalid MessageSelector. " } else { "" };
        refused(self, words, RequestError::BadSubscription)
    }

    /// The answer to a pull that carries the subscription.
    pub fn in_pull(self) -> RequestError {
        refused(self, "parse the consumer's subscription failed: ", RequestError::BadSubscription)
    }

    /// The answer to a pull whose subscription came with a heartbeat.
    pub fn in_heartbeat(self) -> RequestError {
        match self {
            BadFilter::Sql(_) => {
                let words = "The broker's consumer filter data is not exist!Your expression may be wrong! ";
                refused(self, words, RequestError::NoFilter)
            }
            other => other.in_pull(),
        }
    }
}

fn refused(error: BadFilter, words: &str, kind: fn(String) -> RequestError) -> RequestError {
    match error {
        BadFilter::Unknown(_) => RequestError::Failed(error.to_string()),
        _ => kind(format!("{words}{error}")),
    }
}

#[cfg(test)]
mod tests {
    use protocol::code::ResponseCode;

    use super::*;

    #[test]
    fn the_type_says_what_an_expression_means() {
        for tags in [None, Some(""), Some("TAG")] {
            let filter = Filter::parse(tags, "A || B").expect("tags");
            assert!(filter.may_match(65) && !filter.may_match(67), "{filter:?}");
            assert!(filter.allowed(false).is_ok());
        }
        let by_sql = Filter::parse(Some("SQL92"), "a > 1").expect("an expression");
        assert!(by_sql.may_match(67) && by_sql.allowed(true).is_ok());
        let switched_off = by_sql.allowed(false).expect_err("not allowed");
        assert_eq!(switched_off.response_code(), Some(ResponseCode::SYSTEM_ERROR));
        assert_eq!(switched_off.to_string(), "The broker does not support consumer to filter message by SQL92");
    }

    #[test]
    fn what_makes_no_sense_is_answered_with_rocketmqs_codes() {
        let bad = |kind, text| Filter::parse(Some(kind), text).expect_err("no filter");
        let cases = [
            (bad("SQL92", "a >").at_check(), 23, "Invalid MessageSelector. at character 4: "),
            (bad("SQL92", "a >").in_pull(), 23, "parse the consumer's subscription failed: at character 4: "),
            (bad("SQL92", "").in_heartbeat(), 27, "The broker's consumer filter data is not exist!"),
            (bad("TAG", "||").at_check(), 23, "the tag expression"),
            (bad("TAG", "||").in_pull(), 23, "parse the consumer's subscription failed: the tag"),
            (bad("TAG", "||").in_heartbeat(), 23, "parse the consumer's subscription failed: the tag"),
            (bad("GREP", "a").at_check(), 1, "The broker does not support consumer to filter message by GREP"),
            (bad("GREP", "a").in_pull(), 1, "The broker does not support"),
        ];
        for (error, code, words) in cases {
            assert_eq!(error.response_code().map(|code| code.0), Some(code), "{error}");
            assert!(error.to_string().starts_with(words), "{error}");
        }
    }
}
