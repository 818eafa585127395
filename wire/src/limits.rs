//! Every bound of the wire, each with its reason.

/// 64 MiB: a petabyte is 16 million chunks, whose metadata fit into a few gigabytes.
pub const CHUNK_SIZE: u32 = 64 << 20;

/// 4 KiB: the unit of checksum, and of direct I/O.
pub const BLOCK_SIZE: u32 = 4096;

/// Largest payload of one frame, and so of one journal record: 1 MiB bounds what a receiver must hold.
pub const PAYLOAD_LEN_MAX: u32 = 1 << 20;

/// Largest part of a frame before its payload, when it has one: 256 checksums of 4 bytes and the fields.
pub const FIELDS_LEN_MAX: u32 = 8 << 10;

/// Largest body of a frame without payload: control messages and pages of listings.
pub const CONTROL_LEN_MAX: u32 = 1 << 20;

/// Largest append, as in the original and GFS section 3.3: a quarter of a chunk, so that a chunk
/// that ends early is at least three quarters full.
pub const APPEND_LEN_MAX: u32 = 16 << 20;

/// Longest path in bytes.
pub const PATH_LEN_MAX: usize = 4096;

/// Longest name of one path segment in bytes.
pub const SEGMENT_LEN_MAX: usize = 255;

/// Deepest path: recursion over a tree is bounded by it.
pub const PATH_DEPTH_MAX: usize = 128;

/// Longest address and other short text: a DNS name of 253 bytes, brackets, a colon and a port.
pub const ADDRESS_LEN_MAX: usize = 262;

/// Longest chain.
pub const MEMBERS_MAX: usize = 8;

/// Entries of one chunk's dedup table.
pub const DEDUP_ENTRIES_MAX: usize = 400;

/// Operations of one stream without an answer.
pub const OPS_IN_FLIGHT_MAX: u64 = 32;

/// Unacknowledged bytes of one chunk.
pub const WINDOW_LEN_MAX: u64 = 32 << 20;

/// Most entries in one page of a listing, a location reply or a chunk report.
pub const PAGE_ENTRIES_MAX: u32 = 1000;

/// Reserved prefix of deleted names, as in the original.
pub const DELETED_PREFIX: &str = "___deleted__";

const _: () = assert!(APPEND_LEN_MAX * 4 <= CHUNK_SIZE); // a chunk that ends early is 3/4 full
const _: () = assert!(PAYLOAD_LEN_MAX / BLOCK_SIZE * 4 + 512 <= FIELDS_LEN_MAX); // checksums and fields fit
