//! What ties a tag to a body, and a request to its answer.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;

/// Tags of all messages. A number is never given to another message; retired ones keep their name.
#[expect(missing_docs, reason = "each is documented at the message it names")]
pub mod tag {
    pub const FAULT: u16 = 1;
    pub const HELLO: u16 = 2;
    pub const HELLO_OK: u16 = 3;
    pub const DONE: u16 = 4;

    pub const APPEND: u16 = 16;
    pub const APPEND_OK: u16 = 17;
    pub const READ: u16 = 18;
    pub const DATA: u16 = 19;
    pub const FWD: u16 = 20;
    pub const UP: u16 = 21;
    pub const NAK: u16 = 22;
    pub const COMMIT: u16 = 23;
    pub const VERSION: u16 = 24;
    pub const VERSION_OK: u16 = 25;
    pub const CLOSE: u16 = 26;
    pub const FETCH: u16 = 27;

    pub const CREATE: u16 = 32;
    pub const PREPARE: u16 = 33;
    pub const PREPARE_OK: u16 = 34;
    pub const DIGEST: u16 = 35;
    pub const DIGEST_OK: u16 = 36;
    pub const SEAL: u16 = 37;
    pub const SEAL_OK: u16 = 38;
    pub const CONFIRM: u16 = 39;
    pub const TABLE: u16 = 40;
    pub const CONDEMN: u16 = 42;
    pub const FREE: u16 = 43;

    pub const REGISTER: u16 = 64;
    pub const REGISTERED: u16 = 65;
    pub const HEARTBEAT: u16 = 66;
    pub const HEARTBEAT_OK: u16 = 67;
    pub const REPORT: u16 = 68;
    pub const FINISHED: u16 = 69;
    pub const CLUSTER: u16 = 70;
    pub const CLUSTER_OK: u16 = 71;
    pub const TABLE_OK: u16 = 72;

    pub const LOCATE: u16 = 80;
    pub const LOCATIONS: u16 = 81;
    pub const MKDIR: u16 = 82;
    pub const LOCATE_CHUNK: u16 = 96;
    pub const TRASH: u16 = 97;
    pub const CREATE_FILE: u16 = 83;
    pub const DELETE: u16 = 84;
    pub const RENAME: u16 = 85;
    pub const STAT: u16 = 86;
    pub const ATTR: u16 = 87;
    pub const LIST: u16 = 88;
    pub const LISTING: u16 = 89;
    pub const UNDELETE: u16 = 90;
    pub const BEGIN_UPLOAD: u16 = 91;
    pub const UPLOAD: u16 = 92;
    pub const PUBLISH: u16 = 93;
    pub const SPLICE: u16 = 94;
    pub const ABORT_UPLOAD: u16 = 95;
}

/// Why the fields of a message could not be decoded. The peer's fault: close the connection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The bytes end before the fields do.
    #[error("message ends inside a field")]
    Short,
    /// Bytes are left over.
    #[error("bytes after the last field")]
    Trailing,
    /// A field has a value it cannot have.
    #[error("field {0} has an impossible value")]
    Field(&'static str),
    /// The codec rejected it.
    #[error("control message rejected: {0}")]
    Codec(String),
    /// Another message was expected.
    #[error("unexpected message tag {0}")]
    Tag(u16),
}

/// A message body: the fields of a frame, without payload.
pub trait Body: Sized {
    /// Which message this is.
    const TAG: u16;

    /// The fields as bytes. At most [`crate::limits::CONTROL_LEN_MAX`], or
    /// [`crate::limits::FIELDS_LEN_MAX`] for a message with a payload.
    fn encode(&self) -> Vec<u8>;

    /// Takes the fields back.
    ///
    /// # Errors
    ///
    /// [`Malformed`], for anything but exactly one message.
    fn decode(bytes: &[u8]) -> Result<Self, Malformed>;
}

/// A control message: goes through the codec.
pub trait Message: Serialize + DeserializeOwned {
    /// Which message this is.
    const TAG: u16;
}

impl<T: Message> Body for T {
    const TAG: u16 = <T as Message>::TAG;

    fn encode(&self) -> Vec<u8> {
        codec::encode(self)
    }

    fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        codec::decode(bytes)
    }
}

/// A message that has an answer. The answer is [`Request::Reply`] or a [`crate::Fault`].
pub trait Request: Body {
    /// What a successful answer carries.
    type Reply: Body;
}

/// The empty answer: it was done, and what it promised is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Done;

impl Message for Done {
    const TAG: u16 = tag::DONE;
}
