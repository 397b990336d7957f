//! Typed headers: the `extFields` of each code as a struct.
//!
//! A header is declared once, as a table of wire name, field and type; reading and writing follow from it. Reading is
//! lenient as Java is: an empty text is an absent one, booleans are never wrong, unknown fields are ignored. Only a
//! missing required field and a number that is none are errors, and they name the field.

mod admin;
mod callback;
mod consumer;
mod group;
mod message;
mod namesrv;
mod pop;
mod send;
mod topic;

pub use admin::*;
pub use callback::*;
pub use consumer::*;
pub use group::*;
pub use message::*;
pub use namesrv::*;
pub use pop::*;
pub use send::*;
pub use topic::*;

use crate::ext_fields::ExtFields;

/// The fields of one request or response.
pub trait CommandHeader: Sized {
    /// The names of its fields on the wire.
    const FIELDS: &'static [&'static str];

    /// Reads the header out of the fields of a command.
    fn read_from(ext: &ExtFields) -> Result<Self, FieldError>;

    /// Sets the header's fields; absent ones are not written.
    fn write_to(&self, ext: &mut ExtFields);
}

/// A header whose fields make no sense. The sender must correct its request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldError {
    /// A required field is absent or empty.
    #[error("the custom field <{0}> is null")]
    Missing(&'static str),
    /// A field's text is not of its type.
    #[error("the custom field <{field}> is not {expected}: {text:?}")]
    Invalid {
        /// The field's name on the wire.
        field: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is; cut to 64 characters.
        text: String,
    },
}

impl FieldError {
    pub(crate) fn invalid(field: &'static str, expected: &'static str, text: &str) -> Self {
        Self::Invalid { field, expected, text: text.chars().take(64).collect() }
    }
}

/// A type that a header field can have.
pub(crate) trait FieldValue: Sized {
    /// The value of a text that is not empty.
    fn parse(field: &'static str, text: &str) -> Result<Self, FieldError>;

    /// The value of an absent field.
    fn absent(field: &'static str) -> Result<Self, FieldError> {
        Err(FieldError::Missing(field))
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields);
}

impl FieldValue for String {
    fn parse(_: &'static str, text: &str) -> Result<Self, FieldError> {
        Ok(text.to_owned())
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        ext.set_text(field, self);
    }
}

impl FieldValue for i32 {
    fn parse(field: &'static str, text: &str) -> Result<Self, FieldError> {
        text.trim().parse().map_err(|_| FieldError::invalid(field, "an i32", text))
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        ext.set(field, self);
    }
}

impl FieldValue for i64 {
    fn parse(field: &'static str, text: &str) -> Result<Self, FieldError> {
        text.trim().parse().map_err(|_| FieldError::invalid(field, "an i64", text))
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        ext.set(field, self);
    }
}

/// Only our own codes have such fields: Java has no unsigned numbers.
impl FieldValue for u64 {
    fn parse(field: &'static str, text: &str) -> Result<Self, FieldError> {
        text.trim().parse().map_err(|_| FieldError::invalid(field, "a u64", text))
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        ext.set(field, self);
    }
}

/// Java's `Boolean.parseBoolean`, never wrong and false when absent; and "1", which C++ clients write for true.
impl FieldValue for bool {
    fn parse(_: &'static str, text: &str) -> Result<Self, FieldError> {
        let text = text.trim();
        Ok(text.eq_ignore_ascii_case("true") || text == "1")
    }

    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(false)
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        ext.set_text(field, if *self { "true" } else { "false" });
    }
}

impl<T: FieldValue> FieldValue for Option<T> {
    fn parse(field: &'static str, text: &str) -> Result<Self, FieldError> {
        T::parse(field, text).map(Some)
    }

    fn absent(_: &'static str) -> Result<Self, FieldError> {
        Ok(None)
    }

    fn write(&self, field: &'static str, ext: &mut ExtFields) {
        if let Some(value) = self {
            value.write(field, ext);
        }
    }
}

pub(crate) fn read_field<T: FieldValue>(ext: &ExtFields, field: &'static str) -> Result<T, FieldError> {
    match ext.text(field) {
        Some(text) => T::parse(field, text),
        None => T::absent(field),
    }
}

/// Declares a header: `"wire name" field: Type,` per line. `Option` makes a field optional, `bool` is false if absent.
macro_rules! command_header {
    ($($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $wire:literal $field:ident: $type:ty,)* })*) => {$(
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, Default)]
        pub struct $name {
            $($(#[$doc])* #[doc = concat!("`", $wire, "` on the wire.")] pub $field: $type,)*
        }

        impl $crate::header::CommandHeader for $name {
            const FIELDS: &'static [&'static str] = &[$($wire,)*];

            #[allow(unused_variables)]
            fn read_from(ext: &$crate::ext_fields::ExtFields) -> Result<Self, $crate::header::FieldError> {
                Ok(Self { $($field: $crate::header::read_field(ext, $wire)?,)* })
            }

            #[allow(unused_variables)]
            fn write_to(&self, ext: &mut $crate::ext_fields::ExtFields) {
                $($crate::header::FieldValue::write(&self.$field, $wire, ext);)*
            }
        }
    )*};
}
pub(crate) use command_header;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn check<H: CommandHeader + PartialEq + std::fmt::Debug>(header: &str) {
        let unique: BTreeSet<_> = H::FIELDS.iter().collect();
        assert_eq!(unique.len(), H::FIELDS.len(), "{header} names a field twice");
        // "1" is a text, a number and a boolean.
        let full: ExtFields = H::FIELDS.iter().map(|field| (*field, "1")).collect();
        let read = H::read_from(&full).unwrap_or_else(|error| panic!("{header}: {error}"));
        let mut written = ExtFields::new();
        read.write_to(&mut written);
        assert_eq!(written.len(), full.len(), "{header} does not write all it reads");
        assert_eq!(H::read_from(&written), Ok(read), "{header} reads back differently");
        for &field in H::FIELDS {
            let mut without = full.clone();
            without.remove(field);
            match H::read_from(&without) {
                Ok(_) => {}
                Err(error) => assert_eq!(error, FieldError::Missing(field), "{header} blames another field"),
            }
            let mut empty = full.clone();
            empty.set_text(field, "");
            assert_eq!(H::read_from(&empty), H::read_from(&without), "{header}: an empty <{field}> is an absent one");
            let mut garbled = full.clone();
            garbled.set_text(field, "x");
            match H::read_from(&garbled) {
                Ok(_) => {}
                Err(FieldError::Invalid { field: blamed, .. }) => assert_eq!(blamed, field, "{header}"),
                Err(error) => panic!("{header}: a garbled <{field}> is not missing: {error}"),
            }
        }
    }

    #[test]
    fn every_header_reads_what_it_writes_and_blames_the_right_field() {
        macro_rules! check_all {
            ($($name:ident)*) => { $(check::<$name>(stringify!($name));)* };
        }
        check_all! { GetBrokerConfigResponse MakeCheckpointResponse ViewBrokerStatsRequest ReplicaStatusRequest ListTransactionsRequest UserRequest ListUserRequest AclRequest ListAclRequest CheckTransactionStateRequest ResetConsumerClientOffsetRequest GetConsumerRunningInfoRequest ConsumeMessageDirectlyRequest PushReplyRequest PullMessageRequest PullMessageResponse QueryConsumerOffsetRequest UpdateConsumerOffsetRequest OffsetResponse SearchOffsetRequest QueueRequest EarliestStoreTimeResponse ConsumerSendMessageBackRequest ConsumerGroupRequest HeartbeatResponse UnregisterClientRequest ProducerGroupRequest GetAllGroupsRequest GetAllGroupsResponse DeleteGroupRequest GroupRequest GroupTopicRequest GroupForbiddenRequest GetConsumeStatsRequest GetBrokerConsumeStatsRequest ResetOffsetRequest GetConsumerStatusRequest CloneGroupOffsetRequest QueryCorrectionOffsetRequest ViewMessageRequest QueryMessageRequest QueryMessageResponse QueryConsumeQueueRequest ResumeCheckHalfMessageRequest GetRouteInfoRequest RegisterBrokerRequest RegisterBrokerResponse BrokerRequest QueryDataVersionResponse BrokerHeartbeatRequest GetBrokerMemberGroupRequest NamesrvTopicRequest PutKvConfigRequest KvConfigRequest GetKvConfigResponse NamespaceRequest BrokerNameRequest WipeWritePermResponse AddWritePermResponse ClusterRequest PopMessageRequest PopMessageResponse AckMessageRequest ChangeInvisibleTimeRequest ChangeInvisibleTimeResponse PeekMessageRequest PollingInfoResponse NotificationRequest NotificationResponse SendMessageRequest SendMessageResponse EndTransactionRequest RecallMessageRequest RecallMessageResponse CreateTopicRequest TopicRequest GetAllTopicsRequest GetAllTopicsResponse SendMessageRequestV2 }
    }
}
