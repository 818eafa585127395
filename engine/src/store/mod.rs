//! The chunk store of one shard on one disk: the disk format, and the code that keeps its promise.
//!
//! When an operation is acknowledged, its bytes survive power loss. After a crash every chunk is the
//! result of a prefix of the operations issued to it, and that prefix holds everything acknowledged.
//! No byte is served that has not passed its checksum.
//!
//! ```text
//! pure    layout  page  header  record  batch     the bytes
//!         replica  dedup  crcs  image  fold  log  what they mean, and what is decided
//!         blocks  ahead  reads                    what is kept in memory, what is read before it is asked for
//! drivers append  overwrite  repair  reopen  import  replace  clone  read  many  seal  life   one operation each
//!         load  slots  zero_ahead  commit  checkpoint  recover  walk  format  open  scrub  disk
//! tools   check  inspect  rebuild                what an operator looks at a disk with
//! ```
//!
//! The lower half is generic over [`crate::runtime::Runtime`]. A shard's store is used by one thread;
//! the shards of a disk share only `shared`. The format is drawn in `docs/disk-format.md`.

mod ahead;
mod append;
mod batch;
mod blocks;
mod cache;
mod canary;
pub mod check;
mod checkpoint;
mod clone;
mod commit;
mod crcs;
mod dedup;
mod disk;
mod error;
mod event;
mod files;
mod flushes;
mod fold;
mod format;
mod header;
mod image;
mod import;
pub mod inspect;
mod io;
mod layout;
mod life;
mod load;
mod log;
mod many;
mod open;
mod overwrite;
mod page;
mod read;
mod reads;
pub mod rebuild;
mod record;
mod recover;
mod reopen;
mod repair;
mod replace;
mod replica;
mod scrub;
mod seal;
mod shard;
mod shared;
mod slots;
#[cfg(test)]
mod tests;
mod types;
mod walk;
mod zero_ahead;

#[cfg(feature = "canary")]
pub use canary::plant;
pub use clone::{Lender, Lent};
pub use error::{OpenError, StoreError};
pub use import::Import;
pub use open::{DiskLock, identity, in_use};
pub use overwrite::Edges;
pub use page::DiskState;
pub use recover::{Recovered, ShardSeed, recover};
pub use repair::REPAIR_BLOCKS_MAX;
pub use scrub::{BlocksScrubbed, PagesScrubbed, SCRUB_BLOCKS_MAX};
pub use shard::{STORE_MEMORY, Store};
pub use types::{
    BadBlock, Blocks, Counters, CreateArgs, DiskConfig, Entry, Identity, ImportArgs, Promised, ReadConfig,
    RecoverySummary, ReopenArgs, Space, Upto, View,
};
