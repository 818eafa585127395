//! The chunk store of one shard on one disk: the disk format, and the code that keeps its promise.
//!
//! When an operation is acknowledged, its bytes survive power loss. After a crash every chunk is the
//! result of a prefix of the operations issued to it, and that prefix holds everything acknowledged.
//! No byte is served that has not passed its checksum.
//!
//! ```text
//! pure    layout  page  header  record  batch     the bytes
//!         replica  dedup  crcs  image  fold  log  what they mean, and what is decided
//! drivers append  overwrite  repair  read  seal  life  slots   one operation each
//!         commit  checkpoint  recover  walk  format  open
//! ```
//!
//! The lower half is generic over [`crate::runtime::Runtime`]. A shard's store is used by one thread;
//! the shards of a disk share only `shared`. The format is drawn in `docs/disk-format.md`.

mod append;
mod batch;
mod cache;
mod canary;
mod checkpoint;
mod clone;
mod commit;
mod crcs;
mod dedup;
mod error;
mod event;
mod files;
mod fold;
mod format;
mod header;
mod image;
mod import;
mod io;
mod layout;
mod life;
mod log;
mod open;
mod overwrite;
mod page;
mod read;
mod record;
mod recover;
mod reopen;
mod repair;
mod replica;
mod seal;
mod shard;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod types;
mod walk;

#[cfg(feature = "canary")]
pub use canary::plant;
pub use clone::{Lender, Lent};
pub use error::{OpenError, StoreError};
pub use import::Import;
pub use open::{DiskLock, identity};
pub use overwrite::Edges;
pub use recover::{Recovered, ShardSeed, recover};
pub use repair::REPAIR_BLOCKS_MAX;
pub use shard::{STORE_MEMORY, Store};
pub use types::{
    Blocks, Counters, CreateArgs, DiskConfig, Entry, Identity, ImportArgs, Promised, RecoverySummary, ReopenArgs,
    Space, Upto, View,
};
