//! RemotingCommand: the one message of the wire, request or response, before and after framing.

use bytes::Bytes;

use crate::code::{RequestCode, ResponseCode};
use crate::ext_fields::ExtFields;
use crate::header::{CommandHeader, FieldError};
use crate::language::Language;

/// The version ordinal in everything sent: RocketMQ 5.3.3. Java's SQL92 consumers refuse brokers below 232.
pub const CURRENT_VERSION: i32 = 479;

const RESPONSE_BIT: i32 = 1;
const ONE_WAY_BIT: i32 = 2;

/// How a header is written: the type byte of the frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SerializeType {
    /// JSON text; what every client understands.
    #[default]
    Json,
    /// The compact binary header named ROCKETMQ.
    Binary,
}

/// A request or a response.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemotingCommand {
    /// Request code or response code, by the response bit of `flag`.
    pub code: i32,
    /// The sender's language.
    pub language: Language,
    /// The sender's version ordinal.
    pub version: i32,
    /// Request id; a response repeats it. Each direction of a connection counts by itself.
    pub opaque: i32,
    /// Bit 0: response. Bit 1: one-way.
    pub flag: i32,
    /// Error text of a response.
    pub remark: Option<String>,
    /// Header fields of the code.
    pub ext: ExtFields,
    /// What follows the header.
    pub body: Bytes,
    /// What follows `body`, where a body is sent in pieces, so that they need not be copied together. Empty in what was
    /// read.
    pub body_pieces: Vec<Bytes>,
    /// How the header came, and how it is to be written.
    pub serialize: SerializeType,
}

impl RemotingCommand {
    /// A request without fields or body. The connection that sends it fills in `opaque`.
    pub fn request(code: RequestCode) -> Self {
        Self::new(code.0, 0, 0, SerializeType::Json)
    }

    /// A request with the fields of its typed header.
    pub fn request_with(code: RequestCode, header: &impl CommandHeader) -> Self {
        Self::request(code).with_header(header)
    }

    /// The answer to `self`: same opaque, and never binary to a peer that wrote JSON.
    pub fn reply(&self, code: ResponseCode) -> Self {
        Self::new(code.0, RESPONSE_BIT, self.opaque, self.serialize)
    }

    /// The answer to `self` with the fields of a typed header.
    pub fn reply_with(&self, code: ResponseCode, header: &impl CommandHeader) -> Self {
        self.reply(code).with_header(header)
    }

    /// The answer to `self` that says what went wrong.
    pub fn reply_error(&self, code: ResponseCode, remark: impl Into<String>) -> Self {
        self.reply(code).with_remark(remark)
    }

    /// An answer to a request of which only the opaque id is known.
    pub fn response_to(opaque: i32, serialize: SerializeType, code: ResponseCode) -> Self {
        Self::new(code.0, RESPONSE_BIT, opaque, serialize)
    }

    fn new(code: i32, flag: i32, opaque: i32, serialize: SerializeType) -> Self {
        Self {
            code,
            language: Language::JAVA,
            version: CURRENT_VERSION,
            opaque,
            flag,
            remark: None,
            ext: ExtFields::new(),
            body: Bytes::new(),
            body_pieces: Vec::new(),
            serialize,
        }
    }

    /// Adds the fields of a typed header.
    #[must_use]
    pub fn with_header(mut self, header: &impl CommandHeader) -> Self {
        header.write_to(&mut self.ext);
        self
    }

    /// Sets one field.
    #[must_use]
    pub fn with_field(mut self, name: &str, value: impl std::fmt::Display) -> Self {
        self.ext.set(name, value);
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn with_body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Length of the whole body.
    pub fn body_bytes(&self) -> usize {
        self.body.len() + self.body_pieces.iter().map(Bytes::len).sum::<usize>()
    }

    /// Sets the body to JSON as Java writes it.
    #[must_use]
    pub fn with_json(self, body: &(impl serde::Serialize + ?Sized)) -> Self {
        self.with_body(crate::json::to_vec(body))
    }

    /// Reads the body as JSON.
    pub fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, crate::json::JsonError> {
        crate::json::from_slice(&self.body)
    }

    /// Sets the error text.
    #[must_use]
    pub fn with_remark(mut self, remark: impl Into<String>) -> Self {
        self.remark = Some(remark.into());
        self
    }

    /// Marks the request as one that is never answered.
    #[must_use]
    pub fn one_way(mut self) -> Self {
        self.flag |= ONE_WAY_BIT;
        self
    }

    /// Reads the fields as a typed header.
    pub fn header<H: CommandHeader>(&self) -> Result<H, FieldError> {
        H::read_from(&self.ext)
    }

    /// `code` of a request.
    pub fn request_code(&self) -> RequestCode {
        RequestCode(self.code)
    }

    /// `code` of a response.
    pub fn response_code(&self) -> ResponseCode {
        ResponseCode(self.code)
    }

    /// Whether this answers a request.
    pub fn is_response(&self) -> bool {
        self.flag & RESPONSE_BIT != 0
    }

    /// Whether this is a request that must not be answered.
    pub fn is_one_way(&self) -> bool {
        self.flag & ONE_WAY_BIT != 0
    }

    /// Whether this is a response that says the request was done.
    pub fn is_success(&self) -> bool {
        self.is_response() && self.code == ResponseCode::SUCCESS.0
    }

    /// The error text, never absent.
    pub fn remark_text(&self) -> &str {
        self.remark.as_deref().unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_repeats_opaque_and_serialisation_and_speaks_java() {
        let mut request = RemotingCommand::request(RequestCode::HEART_BEAT).one_way();
        request.opaque = -7;
        request.serialize = SerializeType::Binary;
        request.language = Language::GO;
        assert!(request.is_one_way() && !request.is_response());
        let reply = request.reply_error(ResponseCode::SYSTEM_BUSY, "later");
        assert_eq!((reply.opaque, reply.serialize, reply.flag), (-7, SerializeType::Binary, 1));
        assert_eq!((reply.language.name(), reply.version, reply.remark_text()), ("JAVA", 479, "later"));
        assert!(reply.is_response() && !reply.is_success() && !reply.is_one_way());
    }
}
