//! Copies of whole chunks, and repair as operators see it.

use wire::clone::{CloneChunk, Cloned, Crcs, CrcsOk};
use wire::member::Member;
use wire::repairs::{Drain, DrainStatus, Repairs, RepairsOk, RunningCopy, TuneRepairs, Urgency, Waiting, WaitingChunk};
use wire::{ChunkHandle, Epoch, InodeId, RequestId, Seq, ServerId, Term};

use crate::common::Pins;

const CHUNK: ChunkHandle = ChunkHandle(0x1122_3344_5566_7788);
const DIGEST: [u8; 16] = [0xdd; 16];
const REQUEST: RequestId = RequestId { client: [0xaa; 16], number: 9 };

pub(crate) fn pin(pins: &mut Pins) {
    copies(pins);
    operators(pins);
}

fn copies(pins: &mut Pins) {
    let clone = CloneChunk {
        term: Term(2),
        chunk: CHUNK,
        epoch: Epoch(3),
        last_seq: Seq(12),
        len: 0x2001,
        digest: DIGEST,
        file: InodeId(6),
        prev: ChunkHandle(5),
        sources: vec![member(1, "a:1"), member(2, "b:2")],
        authority: 77,
        rate: 1 << 20,
    };
    pins.pin(
        &clone,
        "020000008877665544332211030000000c0000000000000001200000dddddddddddddddddddddddddddddddd06000000 \
            0000000005000000000000000200000000000000010000000300000000000000613a3102000000020000000300000000 \
            000000623a32020000004d000000000000000000100000000000",
    );
    pins.pin(&Cloned { fetched: 0x1000, kept: 0x1001 }, "0010000001100000");
    pins.pin(&Crcs { chunk: CHUNK, digest: DIGEST }, "8877665544332211dddddddddddddddddddddddddddddddd");
    pins.pin(&CrcsOk { crcs: vec![0xaabb_ccdd, 1] }, "0200000000000000ddccbbaa01000000");
}

fn operators(pins: &mut Pins) {
    pins.pin(&Repairs { limit: 20 }, "14000000");
    let waiting = |urgency| Waiting { urgency, chunks: 3, bytes: 4096 };
    let answer = RepairsOk {
        paused: true,
        safe_mode: false,
        server_rate: 1 << 20,
        cluster_rate: 0,
        waiting: Urgency::ALL.map(waiting).to_vec(),
        next: vec![WaitingChunk { chunk: CHUNK, urgency: Urgency::Last, len: 0x2001, copies: 1 }],
        running: vec![RunningCopy {
            chunk: CHUNK,
            urgency: Urgency::Balance,
            len: 0x2001,
            from: ServerId(1),
            to: ServerId(2),
            since_ms: 900,
        }],
        done: 7,
        done_bytes: 8,
        kept_bytes: 9,
        failed: 10,
        estimate_s: Some(60),
        draining: vec![DrainStatus { server: ServerId(3), since_ms: 1000, left: 5, left_bytes: 6, is_counted: true }],
    };
    pins.pin(
        &answer,
        "010000001000000000000000000000000000050000000000000000000000030000000000000000100000000000000100 \
            000003000000000000000010000000000000020000000300000000000000001000000000000003000000030000000000 \
            000000100000000000000400000003000000000000000010000000000000010000000000000088776655443322110000 \
            000001200000010000000100000000000000887766554433221104000000012000000100000002000000840300000000 \
            00000700000000000000080000000000000009000000000000000a00000000000000013c000000000000000100000000 \
            00000003000000e8030000000000000500000000000000060000000000000001",
    );
    let tune = TuneRepairs { request: REQUEST, paused: Some(true), server_rate: None, cluster_rate: Some(1 << 20) };
    pins.pin(&tune, "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0900000000000000010100010000100000000000");
    pins.pin(
        &Drain { request: REQUEST, server: ServerId(3), drain: true, force: false },
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa0900000000000000030000000100",
    );
}

fn member(server: u32, address: &str) -> Member {
    Member { server: ServerId(server), address: address.into(), shards: 2 }
}
