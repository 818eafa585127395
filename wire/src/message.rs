//! What ties a tag to a body, and a request to its answer.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::codec;

/// Tags of all messages. A number is never given to another message; retired ones keep their name.
#[expect(missing_docs, reason = "each is documented at the message it names")]
pub mod tag {
    macro_rules! tags {
        ($($name:ident = $number:literal,)*) => {
            $(pub const $name: u16 = $number;)*

            /// Every tag with its name, in the order of the numbers.
            pub const ALL: &[(u16, &str)] = &[$(($number, stringify!($name)),)*];
        };
    }

    tags! {
        FAULT = 1,
        HELLO = 2,
        HELLO_OK = 3,
        DONE = 4,
        CHALLENGE = 5,
        PROOF = 6,
        WELCOME = 7,

        APPEND = 16,
        APPEND_OK = 17,
        READ = 18,
        DATA = 19,
        FWD = 20,
        UP = 21,
        NAK = 22,
        COMMIT = 23,
        VERSION = 24,
        VERSION_OK = 25,
        CLOSE = 26,
        FETCH = 27,
        WRITE = 28,

        CREATE = 32,
        PREPARE = 33,
        PREPARE_OK = 34,
        DIGEST = 35,
        DIGEST_OK = 36,
        SEAL = 37,
        SEAL_OK = 38,
        CONFIRM = 39,
        TABLE = 40,
        REOPEN = 41,
        CONDEMN = 42,
        FREE = 43,

        CLONE = 48,
        CLONE_OK = 49,
        CRCS = 50,
        CRCS_OK = 51,

        REGISTER = 64,
        REGISTERED = 65,
        HEARTBEAT = 66,
        HEARTBEAT_OK = 67,
        REPORT = 68,
        FINISHED = 69,
        CLUSTER = 70,
        CLUSTER_OK = 71,
        TABLE_OK = 72,

        LOCATE = 80,
        LOCATIONS = 81,
        MKDIR = 82,
        CREATE_FILE = 83,
        DELETE = 84,
        RENAME = 85,
        STAT = 86,
        ATTR = 87,
        LIST = 88,
        LISTING = 89,
        UNDELETE = 90,
        BEGIN_UPLOAD = 91,
        UPLOAD = 92,
        PUBLISH = 93,
        SPLICE = 94,
        ABORT_UPLOAD = 95,
        LOCATE_CHUNK = 96,
        TRASH = 97,

        REPAIRS = 112,
        REPAIRS_OK = 113,
        TUNE_REPAIRS = 114,
        DRAIN = 115,
    }

    /// The name of a tag, for logs and counters; `None` for one this build does not know.
    #[must_use]
    pub fn name(tag: u16) -> Option<&'static str> {
        ALL.iter().find(|(number, _)| *number == tag).map(|(_, name)| *name)
    }
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
    /// The frame announces another payload than the fields describe.
    #[error("payload of {announced} bytes where the fields describe {described}")]
    Payload {
        /// Length in the header.
        announced: u32,
        /// Length by the fields.
        described: u32,
    },
    /// The fields are not those the header was made for.
    #[error("{0}")]
    Frame(#[from] crate::frame::Error),
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

    /// Length of the payload that follows these fields, bytes; a frame that announces another is malformed.
    fn payload_len(&self) -> u32 {
        0
    }
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
