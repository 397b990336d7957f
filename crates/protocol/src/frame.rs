//! Frames: how commands follow each other on a connection.
//!
//! ```text
//! length            i32   bytes that follow this field: 4 + header + body
//! header word       i32   bits 31..24 serialize type, bits 23..0 header length
//! header            JSON text (type 0) or the binary header (type 1)
//! body              the rest
//! ```
//!
//! Two kinds of failure are told apart. A [`FrameError`] means the boundary of the next frame is unknown: close the
//! connection. An [`Undecodable`] frame was cut out whole, only its header makes no sense: answer an error if the
//! request id is known, and read on.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::command::{RemotingCommand, SerializeType};
use crate::{header_binary, header_json};

/// Largest whole frame, its length field included: what Java clients accept.
pub const MAX_FRAME_BYTES: usize = 16 * 1024 * 1024;
/// Largest header by default. The largest legal one carries 32 767 bytes of properties, six-fold when escaped.
pub const MAX_HEADER_BYTES: usize = 512 * 1024;
/// Room made at once for a frame that has begun.
const RESERVED_BYTES: usize = 256 * 1024;
/// The header word has 24 bits for the header's length.
const HEADER_LENGTH_MASK: u32 = 0x00FF_FFFF;

const TYPE_JSON: u8 = 0;
const TYPE_BINARY: u8 = 1;

/// Bounds on what is read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameLimits {
    /// Largest whole frame, its length field included.
    pub frame_bytes: usize,
    /// Largest header that is parsed.
    pub header_bytes: usize,
}

impl Default for FrameLimits {
    fn default() -> Self {
        Self { frame_bytes: MAX_FRAME_BYTES, header_bytes: MAX_HEADER_BYTES }
    }
}

/// The bytes cannot be cut into frames: the connection must be closed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The length field is negative or below the size of the header word.
    #[error("frame length {0} is impossible")]
    BadLength(i32),
    /// Longer than the limit.
    #[error("frame of {frame_bytes} bytes exceeds the limit of {limit_bytes}")]
    TooLarge {
        /// Size of the whole frame.
        frame_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// The header would reach beyond its frame.
    #[error("header of {header_bytes} bytes in a frame that has {available_bytes}")]
    BadHeaderLength {
        /// As the header word says.
        header_bytes: usize,
        /// What the frame has for it.
        available_bytes: usize,
    },
    /// Neither JSON nor the binary header: what follows is not this protocol.
    #[error("serialize type {0} is unknown")]
    UnknownSerializeType(u8),
}

/// A command that does not fit a frame; nothing was written. Send a smaller one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("command of {frame_bytes} bytes (header {header_bytes}) exceeds the frame limit of {limit_bytes}")]
pub struct EncodeError {
    /// Size the whole frame would have.
    pub frame_bytes: usize,
    /// Size of its header.
    pub header_bytes: usize,
    /// The limit.
    pub limit_bytes: usize,
}

/// Why a header that was cut out whole could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Not JSON, or a member of the wrong kind.
    #[error("header JSON: {0}")]
    Json(#[from] crate::json::JsonError),
    /// A binary header whose lengths do not add up.
    #[error("binary header: {0}")]
    Binary(&'static str),
    /// Longer than [`FrameLimits::header_bytes`].
    #[error("header of {header_bytes} bytes exceeds the limit of {limit_bytes}")]
    TooLarge {
        /// Its size.
        header_bytes: usize,
        /// The limit.
        limit_bytes: usize,
    },
    /// More entries than [`crate::ext_fields::MAX_EXT_FIELDS`].
    #[error("more than {} ext fields", crate::ext_fields::MAX_EXT_FIELDS)]
    TooManyFields,
}

/// A whole frame whose header makes no sense.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Undecodable {
    /// The request id, if it could be read: then the sender can be answered.
    pub opaque: Option<i32>,
    /// `flag`, if it could be read, else 0. See [`Undecodable::wants_answer`].
    pub flag: i32,
    /// In which form to answer.
    pub serialize: SerializeType,
    /// What is wrong.
    pub reason: HeaderError,
}

impl Undecodable {
    /// Whether to answer: the id is known, and it is neither a response nor one-way.
    pub fn wants_answer(&self) -> bool {
        self.opaque.is_some() && self.flag & 3 == 0
    }

    /// The error response to send, if one is wanted.
    pub fn answer(&self) -> Option<RemotingCommand> {
        let opaque = self.opaque.filter(|_| self.wants_answer())?;
        let code = crate::code::ResponseCode::SYSTEM_ERROR;
        Some(RemotingCommand::response_to(opaque, self.serialize, code).with_remark(self.reason.to_string()))
    }
}

/// One frame read from a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A command.
    Command(RemotingCommand),
    /// Cut out whole, but not a command.
    Undecodable(Undecodable),
}

/// Takes the next frame off the front of `buffer`: `Ok(None)` if it is not complete yet, an error if the connection
/// must be closed. The body shares the buffer's memory.
pub fn decode(buffer: &mut BytesMut, limits: &FrameLimits) -> Result<Option<Frame>, FrameError> {
    let Some(frame_bytes) = frame_bytes(buffer, limits)? else { return Ok(None) };
    if buffer.len() < 8 {
        return Ok(None);
    }
    let word = u32::from_be_bytes([buffer[4], buffer[5], buffer[6], buffer[7]]);
    let header_bytes = (word & HEADER_LENGTH_MASK) as usize;
    // Both are checked before the frame is complete, so that garbage is not buffered up to the frame limit.
    let serialize = match (word >> 24) as u8 {
        TYPE_JSON => SerializeType::Json,
        TYPE_BINARY => SerializeType::Binary,
        other => return Err(FrameError::UnknownSerializeType(other)),
    };
    let available_bytes = frame_bytes - 8;
    if header_bytes > available_bytes {
        return Err(FrameError::BadHeaderLength { header_bytes, available_bytes });
    }
    if buffer.len() < frame_bytes {
        // A part of what the length word claims: the rest is believed when that much has come.
        buffer.reserve((frame_bytes - buffer.len()).min(RESERVED_BYTES));
        return Ok(None);
    }
    let mut frame = buffer.split_to(frame_bytes);
    frame.advance(8);
    let header = frame.split_to(header_bytes);
    Ok(Some(decode_header(&header, serialize, frame, limits)))
}

/// Size of the frame at the front of `buffer`, its length field included, once the length field is there.
pub fn frame_bytes(buffer: &[u8], limits: &FrameLimits) -> Result<Option<usize>, FrameError> {
    let Some(&length) = buffer.first_chunk::<4>() else { return Ok(None) };
    let length = i32::from_be_bytes(length);
    if length < 4 {
        return Err(FrameError::BadLength(length));
    }
    let frame_bytes = 4 + length as usize;
    if frame_bytes > limits.frame_bytes {
        return Err(FrameError::TooLarge { frame_bytes, limit_bytes: limits.frame_bytes });
    }
    Ok(Some(frame_bytes))
}

fn decode_header(header: &[u8], serialize: SerializeType, body: BytesMut, limits: &FrameLimits) -> Frame {
    let mut draft = HeaderDraft::default();
    let result = match serialize {
        _ if header.len() > limits.header_bytes => {
            Err(HeaderError::TooLarge { header_bytes: header.len(), limit_bytes: limits.header_bytes })
        }
        SerializeType::Json => header_json::decode(header, &mut draft),
        SerializeType::Binary => header_binary::decode(header, &mut draft),
    };
    match result {
        Ok(()) => Frame::Command(RemotingCommand {
            code: draft.code,
            language: draft.language,
            version: draft.version,
            opaque: draft.opaque.unwrap_or(0),
            flag: draft.flag,
            remark: draft.remark,
            ext: draft.ext,
            body: if body.is_empty() { Bytes::new() } else { body.freeze() },
            body_pieces: Vec::new(),
            serialize,
        }),
        Err(reason) => Frame::Undecodable(Undecodable { opaque: draft.opaque, flag: draft.flag, serialize, reason }),
    }
}

/// What has been read of a header so far; a failed read leaves the fields it got.
#[derive(Debug, Default)]
pub(crate) struct HeaderDraft {
    pub(crate) code: i32,
    pub(crate) language: crate::language::Language,
    pub(crate) version: i32,
    pub(crate) opaque: Option<i32>,
    pub(crate) flag: i32,
    pub(crate) remark: Option<String>,
    pub(crate) ext: crate::ext_fields::ExtFields,
}

/// Appends the whole frame to `out`.
pub fn encode(command: &RemotingCommand, limits: &FrameLimits, out: &mut BytesMut) -> Result<(), EncodeError> {
    encode_head(command, limits, out)?;
    out.put_slice(&command.body);
    command.body_pieces.iter().for_each(|piece| out.put_slice(piece));
    Ok(())
}

/// Appends everything but the body, which the caller sends next by itself: bodies made of several pieces reach the socket
/// without being copied together.
pub fn encode_head(command: &RemotingCommand, limits: &FrameLimits, out: &mut BytesMut) -> Result<(), EncodeError> {
    let body_bytes = command.body_bytes();
    let start = out.len();
    out.reserve(160 + command.ext.text_bytes() + 8 * command.ext.len());
    out.put_u64(0);
    // A value that does not fit its binary field would arrive as another value: such commands go as JSON.
    let binary = command.serialize == SerializeType::Binary && header_binary::fits(command);
    let kind = if binary {
        header_binary::encode(command, out);
        TYPE_BINARY
    } else {
        header_json::encode(command, out);
        TYPE_JSON
    };
    let header_bytes = out.len() - start - 8;
    let frame_bytes = 8 + header_bytes + body_bytes;
    if frame_bytes > limits.frame_bytes.min(i32::MAX as usize) || header_bytes > HEADER_LENGTH_MASK as usize {
        out.truncate(start);
        return Err(EncodeError { frame_bytes, header_bytes, limit_bytes: limits.frame_bytes });
    }
    let word = u32::from(kind) << 24 | header_bytes as u32;
    out[start..start + 4].copy_from_slice(&((frame_bytes - 4) as i32).to_be_bytes());
    out[start + 4..start + 8].copy_from_slice(&word.to_be_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::code::{RequestCode, ResponseCode};
    use crate::ext_fields::{ExtFields, MAX_EXT_FIELDS};
    use crate::language::Language;

    const LIMITS: FrameLimits = FrameLimits { frame_bytes: MAX_FRAME_BYTES, header_bytes: MAX_HEADER_BYTES };

    fn framed(kind: u8, header: &[u8], body: &[u8]) -> BytesMut {
        let mut out = BytesMut::new();
        out.put_u32((4 + header.len() + body.len()) as u32);
        out.put_u32(u32::from(kind) << 24 | header.len() as u32);
        out.put_slice(header);
        out.put_slice(body);
        out
    }

    fn decode_one(mut buffer: BytesMut) -> Frame {
        let frame = decode(&mut buffer, &LIMITS).expect("framed").expect("complete");
        assert!(buffer.is_empty());
        frame
    }

    fn command(header: &str) -> RemotingCommand {
        match decode_one(framed(TYPE_JSON, header.as_bytes(), b"")) {
            Frame::Command(command) => command,
            Frame::Undecodable(bad) => panic!("{header}: {bad:?}"),
        }
    }

    fn undecodable(kind: u8, header: &[u8]) -> Undecodable {
        match decode_one(framed(kind, header, b"")) {
            Frame::Command(command) => panic!("{command:?}"),
            Frame::Undecodable(bad) => bad,
        }
    }

    fn encoded(command: &RemotingCommand) -> BytesMut {
        let mut out = BytesMut::new();
        encode(command, &LIMITS, &mut out).unwrap();
        out
    }

    /// The send that RocketMQ's own classes were made to print.
    fn example_send() -> RemotingCommand {
        let pairs = [
            ("a", "pg"),
            ("b", "T"),
            ("c", "TBW102"),
            ("d", "4"),
            ("e", "1"),
            ("f", "0"),
            ("g", "1700000000000"),
            ("h", "0"),
            ("i", "k\u{1}v\u{2}"),
            ("j", "0"),
            ("k", "false"),
            ("m", "false"),
        ];
        let mut command = RemotingCommand::request(RequestCode::SEND_MESSAGE_V2).with_body(&b"hi"[..]);
        command.version = 478;
        command.ext = pairs.into_iter().collect();
        command
    }

    #[test]
    fn the_example_send_is_written_and_read_byte_for_byte() {
        let header = concat!(
            r#"{"code":310,"extFields":{"a":"pg","b":"T","c":"TBW102","d":"4","e":"1","f":"0","g":"1700000000000","#,
            r#""h":"0","i":"k\u0001v\u0002","j":"0","k":"false","m":"false"},"flag":0,"language":"JAVA","opaque":0,"#,
            r#""serializeTypeCurrentRPC":"JSON","version":478}"#
        );
        let bytes = encoded(&example_send());
        assert_eq!(bytes[..8], [0, 0, 0, 0xFC, 0, 0, 0, 0xF6]);
        assert_eq!(bytes, framed(TYPE_JSON, header.as_bytes(), b"hi"));
        assert_eq!(decode_one(bytes), Frame::Command(example_send()));
    }

    #[test]
    fn the_example_send_in_binary_begins_as_java_wrote_it() {
        let mut command = example_send();
        command.serialize = SerializeType::Binary;
        command.opaque = 7;
        command.body = Bytes::new();
        let bytes = encoded(&command);
        let expected = [
            &[0, 0, 0, 0x96, 1, 0, 0, 0x92, 0x01, 0x36, 0, 0x01, 0xDE, 0, 0, 0, 7, 0, 0, 0, 0][..],
            &[0, 0, 0, 0, 0, 0, 0, 0x7D, 0, 1, b'a', 0, 0, 0, 2, b'p', b'g', 0, 1, b'b', 0, 0, 0, 1, b'T'],
            &[0, 1, b'c', 0, 0, 0, 6, b'T', b'B', b'W', b'1', b'0', b'2', 0, 1, b'd'],
        ]
        .concat();
        assert_eq!(bytes[..expected.len()], expected);
        assert_eq!(decode_one(bytes), Frame::Command(command));
    }

    #[test]
    fn a_minimal_response_gets_javas_defaults() {
        let response = command(r#"{"code":0,"flag":1,"opaque":7}"#);
        assert!(response.is_success());
        assert_eq!((response.opaque, response.version, response.language), (7, 0, Language::JAVA));
        assert!(response.ext.is_empty() && response.remark.is_none() && response.body.is_empty());
    }

    #[test]
    fn the_first_frame_of_a_cpp_client_is_taken() {
        // No serializeTypeCurrentRPC, bare numbers and booleans, empty credentials, a trailing newline.
        let request = command(concat!(
            r#"{"code":310,"extFields":{"AccessKey":"","OnsChannel":"","Signature":"","e":0,"k":false,"u":"0","g":"17"},"#,
            r#""flag":0,"language":"CPP","opaque":3,"remark":"","version":333}"#,
            "\n"
        ));
        assert_eq!(
            (request.ext.get("e"), request.ext.get("k"), request.ext.get("g")),
            (Some("0"), Some("false"), Some("17"))
        );
        assert_eq!((request.ext.get("AccessKey"), request.ext.text("AccessKey")), (Some(""), None));
        assert_eq!((request.remark, request.language), (None, Language::CPP));
    }

    #[test]
    fn odd_members_pass() {
        let request = command(
            r#"{'extFields':{"x":null,y:1.5,"z":{"a":[1]},"i":"\u4e2d"},"language":"COBOL","code":"5","opaque":"-1","version":99999,"what":[{}],}"#,
        );
        assert_eq!((request.code, request.opaque, request.version, request.language.name()), (5, -1, 99_999, "COBOL"));
        assert_eq!(request.ext.get("x"), None);
        assert_eq!((request.ext.get("y"), request.ext.get("z")), (Some("1.5"), Some(r#"{"a":[1]}"#)));
        assert_eq!(request.ext.get("i"), Some("中"));
        for (language, name) in [("9", "GO"), ("null", "JAVA"), ("\"\"", "JAVA"), ("\"9\"", "9"), ("77", "OTHER")] {
            assert_eq!(command(&format!(r#"{{"language":{language}}}"#)).language.name(), name);
        }
        assert!(command(r#"{"extFields":null}"#).ext.is_empty());
    }

    #[test]
    fn a_bad_header_in_a_good_frame_still_tells_whom_to_answer() {
        let bad =
            undecodable(TYPE_JSON, br#"{"code":11,"extFields":{"a":"b",,"c" 1},"flag":0,"opaque":-42,"version":1}"#);
        assert_eq!((bad.opaque, bad.wants_answer()), (Some(-42), true));
        let answer = bad.answer().unwrap();
        assert_eq!((answer.code, answer.opaque), (ResponseCode::SYSTEM_ERROR.0, -42));
        assert!(answer.is_response() && answer.remark_text().contains("header JSON"));
        let one_way = undecodable(TYPE_JSON, br#"{"extFields":[,"flag":2,"opaque":4"#);
        assert_eq!((one_way.opaque, one_way.answer()), (Some(4), None));
        assert_eq!(undecodable(TYPE_JSON, b"").opaque, None);
        let out_of_range = undecodable(TYPE_JSON, br#"{"opaque":9,"code":5000000000}"#);
        assert_eq!(out_of_range.opaque, Some(9));
        let binary = undecodable(TYPE_BINARY, &[0, 11, 0, 1, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 9]);
        assert_eq!((binary.opaque, binary.serialize), (Some(5), SerializeType::Binary));
    }

    #[test]
    fn what_cannot_be_framed_closes_the_connection() {
        let error = |bytes: &[u8]| decode(&mut BytesMut::from(bytes), &LIMITS).unwrap_err();
        assert_eq!(error(&[0, 0, 0, 3]), FrameError::BadLength(3));
        assert_eq!(error(&[0xFF, 0, 0, 0]), FrameError::BadLength(-16_777_216));
        assert!(matches!(error(b"GET / HTTP/1.1"), FrameError::TooLarge { .. }));
        assert_eq!(
            error(&[0, 0xFF, 0xFF, 0xFD]),
            FrameError::TooLarge { frame_bytes: MAX_FRAME_BYTES + 1, limit_bytes: MAX_FRAME_BYTES }
        );
        assert_eq!(
            error(&[0, 0, 0, 9, 0, 0, 0, 6]),
            FrameError::BadHeaderLength { header_bytes: 6, available_bytes: 5 }
        );
        assert_eq!(error(&[0, 0, 0, 9, 2, 0, 0, 1]), FrameError::UnknownSerializeType(2));
        assert_eq!(decode(&mut BytesMut::from(&[0, 0xFF, 0xFF, 0xFC][..]), &LIMITS), Ok(None));
    }

    #[test]
    fn headers_are_bounded_without_losing_the_connection() {
        let fields: String = (0..=MAX_EXT_FIELDS).map(|n| format!("\"{n}\":1,")).collect();
        let bad = undecodable(TYPE_JSON, format!(r#"{{"extFields":{{{fields}}},"opaque":8}}"#).as_bytes());
        assert_eq!((bad.reason, bad.opaque), (HeaderError::TooManyFields, Some(8)));
        let small = FrameLimits { header_bytes: 10, ..LIMITS };
        let frame = decode(&mut framed(TYPE_JSON, b"{\"opaque\":1}", b""), &small).unwrap().unwrap();
        assert!(matches!(frame, Frame::Undecodable(Undecodable { reason: HeaderError::TooLarge { .. }, .. })));
        let deep = format!("{{\"x\":{}", "[".repeat(100_000));
        assert!(matches!(undecodable(TYPE_JSON, deep.as_bytes()).reason, HeaderError::Json(_)));
    }

    #[test]
    fn a_command_too_large_for_a_frame_writes_nothing() {
        let mut out = BytesMut::from(&b"before"[..]);
        let command = RemotingCommand::request(RequestCode::SEND_MESSAGE).with_body(vec![0; MAX_FRAME_BYTES]);
        let error = encode(&command, &LIMITS, &mut out).unwrap_err();
        assert_eq!((error.limit_bytes, &out[..]), (MAX_FRAME_BYTES, &b"before"[..]));
    }

    #[test]
    fn codes_above_16_bits_never_go_in_binary() {
        let mut request = RemotingCommand::request(RequestCode::POP_MESSAGE);
        request.serialize = SerializeType::Binary;
        let bytes = encoded(&request);
        assert_eq!(bytes[4], TYPE_JSON);
        let Frame::Command(read) = decode_one(bytes) else { panic!("undecodable") };
        assert_eq!((read.code, read.serialize), (200_050, SerializeType::Json));
        // A client that did write it in binary sent the low 16 bits; only requests are widened.
        for (flag, code) in [(0, 200_050), (1, 3442)] {
            let header = [&[0x0D, 0x72, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, flag][..], &[0; 8]].concat();
            let Frame::Command(read) = decode_one(framed(TYPE_BINARY, &header, b"")) else { panic!("undecodable") };
            assert_eq!(read.code, code);
        }
    }

    #[test]
    fn a_body_in_pieces_arrives_as_one() {
        let mut request = RemotingCommand::request(RequestCode::HEART_BEAT).with_body("a");
        request.body_pieces = vec!["".into(), "bc".into(), "d".into()];
        assert_eq!(request.body_bytes(), 4);
        let Frame::Command(read) = decode_one(encoded(&request)) else { panic!("undecodable") };
        assert_eq!((&read.body[..], read.body_pieces.len()), (&b"abcd"[..], 0));
    }

    fn arbitrary_command() -> impl Strategy<Value = RemotingCommand> {
        let ext = proptest::collection::vec(("[a-zA-Z_]{1,12}", any::<String>()), 0..20);
        let head = (any::<i32>(), 0..14_u8, any::<i32>(), any::<i32>(), any::<i32>(), any::<bool>());
        let remark = proptest::option::of(".{1,40}");
        (head, remark, ext, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(|(head, remark, ext, body)| {
            let (code, language, version, opaque, flag, binary) = head;
            RemotingCommand {
                code,
                language: Language::from_code(language),
                version,
                opaque,
                flag,
                remark,
                ext: ext.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<ExtFields>(),
                body: body.into(),
                body_pieces: Vec::new(),
                serialize: if binary { SerializeType::Binary } else { SerializeType::Json },
            }
        })
    }

    proptest! {
        #[test]
        fn commands_survive_the_wire_in_any_pieces(
            commands in proptest::collection::vec(arbitrary_command(), 1..4),
            piece in 1..300_usize,
        ) {
            let mut wire = BytesMut::new();
            for command in &commands {
                encode(command, &LIMITS, &mut wire).unwrap();
            }
            let mut buffer = BytesMut::new();
            let mut read = Vec::new();
            for chunk in wire.chunks(piece) {
                buffer.extend_from_slice(chunk);
                while let Some(frame) = decode(&mut buffer, &LIMITS).unwrap() {
                    let Frame::Command(command) = frame else { panic!("undecodable") };
                    read.push(command);
                }
            }
            prop_assert_eq!(read.len(), commands.len());
            for (mut read, mut sent) in read.into_iter().zip(commands) {
                if !header_binary::fits(&sent) {
                    sent.serialize = SerializeType::Json;
                }
                if sent.serialize == SerializeType::Binary {
                    // Codes of pop requests are widened on arrival; see above.
                    read.code = i32::from(read.code as i16);
                }
                prop_assert_eq!(read, sent);
            }
        }

        #[test]
        fn what_we_write_is_standard_json(command in arbitrary_command()) {
            let mut header = BytesMut::new();
            header_json::encode(&command, &mut header);
            let value: serde_json::Value = serde_json::from_slice(&header).unwrap();
            prop_assert_eq!(&value["code"], &serde_json::json!(command.code));
            for (name, text) in command.ext.iter() {
                prop_assert_eq!(&value["extFields"][name], text);
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(kind in 0..3_u8, header in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&mut framed(kind, &header, b"body"), &LIMITS);
            let _ = decode(&mut BytesMut::from(&header[..]), &LIMITS);
        }

        #[test]
        fn no_text_makes_the_json_decoder_panic(text in r#"[{}\[\]",:'a-f0-9\\u/* \n-]{0,120}"#) {
            let _ = decode(&mut framed(TYPE_JSON, text.as_bytes(), b""), &LIMITS);
            let _ = decode(&mut framed(TYPE_JSON, format!("{{\"opaque\":1,{text}").as_bytes(), b""), &LIMITS);
        }
    }
}
