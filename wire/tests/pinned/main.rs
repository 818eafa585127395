//! The bytes of every message, pinned: a promise to every other build.
//!
//! A pin that must change is another protocol: raise `wire::frame::PROTOCOL` with it.
#![forbid(unsafe_code)]

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "shared with other tests, which use other parts of it")]
mod common;

mod chain;
mod data;
mod names;
mod repairs;
mod servers;

use common::Pins;
use wire::error::{Kind, Reason};
use wire::message::tag;

#[test]
fn the_layouts_between_clients_and_chains_are_pinned() {
    data::pin(&mut Pins::default());
}

#[test]
fn the_messages_of_chains_and_seals_are_pinned() {
    chain::pin(&mut Pins::default());
}

#[test]
fn the_messages_of_repair_are_pinned() {
    repairs::pin(&mut Pins::default());
}

#[test]
fn the_messages_between_servers_are_pinned() {
    servers::pin(&mut Pins::default());
}

#[test]
fn the_messages_about_names_are_pinned() {
    names::pin(&mut Pins::default());
}

#[test]
fn every_tag_is_in_the_list_once_and_has_a_pinned_message() {
    let numbers: Vec<u16> = tag::ALL.iter().map(|(number, _)| *number).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "tags are distinct, and listed in order");
    let mut pins = Pins::default();
    data::pin(&mut pins);
    chain::pin(&mut pins);
    servers::pin(&mut pins);
    names::pin(&mut pins);
    repairs::pin(&mut pins);
    pins.tags.sort_unstable();
    pins.tags.dedup();
    assert_eq!(pins.tags, numbers);
}

#[test]
fn a_tag_is_never_given_to_another_message() {
    let list: Vec<String> = tag::ALL.iter().map(|(number, name)| format!("{number} {name}")).collect();
    assert_eq!(list.join(", "), TAGS.split_whitespace().collect::<Vec<_>>().join(" "));
    assert_eq!((tag::name(tag::FETCH), tag::name(u16::MAX)), (Some("FETCH"), None));
}

#[test]
fn numbers_of_errors_are_pinned() {
    let kinds: Vec<String> = Kind::ALL.iter().map(|kind| format!("{} {kind:?}", *kind as u16)).collect();
    assert_eq!(kinds.join(", "), KINDS.split_whitespace().collect::<Vec<_>>().join(" "));
    let reasons: Vec<String> = Reason::ALL.iter().map(|reason| format!("{} {reason:?}", *reason as u16)).collect();
    assert_eq!(reasons.join(", "), REASONS.split_whitespace().collect::<Vec<_>>().join(" "));
}

const TAGS: &str = "1 FAULT, 2 HELLO, 3 HELLO_OK, 4 DONE, 5 CHALLENGE, 6 PROOF, 7 WELCOME, 16 APPEND, 17 APPEND_OK, 18 READ, 19 DATA, 20 FWD, 21 UP, 22 NAK, \
    23 COMMIT, 24 VERSION, 25 VERSION_OK, 26 CLOSE, 27 FETCH, 28 WRITE, 32 CREATE, 33 PREPARE, 34 PREPARE_OK, 35 \
    DIGEST, 36 DIGEST_OK, 37 SEAL, 38 SEAL_OK, 39 CONFIRM, 40 TABLE, 41 REOPEN, 42 CONDEMN, 43 FREE, 48 CLONE, 49 CLONE_OK, \
    50 CRCS, 51 CRCS_OK, 64 REGISTER, 65 \
    REGISTERED, 66 HEARTBEAT, 67 HEARTBEAT_OK, 68 REPORT, 69 FINISHED, 70 CLUSTER, 71 CLUSTER_OK, 72 \
    TABLE_OK, 80 LOCATE, 81 LOCATIONS, 82 MKDIR, 83 CREATE_FILE, 84 DELETE, 85 RENAME, 86 STAT, 87 ATTR, 88 \
    LIST, 89 LISTING, 90 UNDELETE, 91 BEGIN_UPLOAD, 92 UPLOAD, 93 PUBLISH, 94 SPLICE, 95 ABORT_UPLOAD, 96 \
    LOCATE_CHUNK, 97 TRASH, 112 REPAIRS, 113 REPAIRS_OK, 114 TUNE_REPAIRS, 115 DRAIN";

const KINDS: &str = "1 NotFound, 2 Exists, 3 Invalid, 4 StaleEpoch, 5 NotPrimary, 6 Sealed, 7 NotCommitted, 8 Corrupt, 9 \
    Overloaded, 10 NoSpace, 11 Unavailable, 12 Unauthorized, 13 Unknown, 14 Conflict, 15 Precondition, 16 \
    NotLeader";

const REASONS: &str = "0 Plain, 1 UnknownChunk, 2 NotPrimary, 3 StaleEpoch, 4 Rwr, 5 Sealed, 6 ChunkFull, 7 Busy, 8 OutOfOrder, \
    9 StaleOp, 10 BadOffset, 11 BadCrc, 12 Disk, 13 DiskFull, 14 NotCommitted, 15 LostOps, 16 ChunkExists, 17 \
    TooFar, 18 Longer, 19 OldTerm";
