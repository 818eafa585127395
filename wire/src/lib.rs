//! The nouns of Hercules, and the bytes on a socket.
//!
//! Pure: no I/O, no clock, no async. Whatever is decoded here came from outside, so every decoder
//! returns a `Result`, checks lengths before it believes them, and never panics.
//!
//! One message, one file, used by both ends. [`frame`] is the header in front of every message,
//! [`message`] the traits that tie a tag to a body, [`codec`] the one place that knows bincode.
//! Hot messages (`append`, `read`, `forward`) have hand-written fixed layouts; control messages
//! go through the codec.
#![forbid(unsafe_code)]

pub mod append;
mod bounds;
pub mod chain;
pub mod checksum;
pub mod clone;
pub mod codec;
pub mod error;
pub mod fetch;
pub mod forward;
pub mod frame;
pub mod handshake;
pub mod heartbeat;
pub mod hello;
pub mod ids;
pub mod key;
pub mod layout;
pub mod limits;
pub mod locate;
pub mod member;
pub mod message;
pub mod namespace;
pub mod op;
pub mod path;
pub mod read;
pub mod repairs;
pub mod report;
pub mod seal;
pub mod upload;
pub mod write;

pub use error::{Fault, Kind, Reason};
pub use ids::{ChunkHandle, ClusterId, Epoch, InodeId, RequestId, Seq, ServerId, StreamId, Term};
pub use key::ClusterKey;
pub use message::{Body, Message, Request};
pub use op::{DedupEntry, OpId};
pub use path::NamePath;
