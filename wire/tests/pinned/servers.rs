//! Connections, registration, heartbeats and the state of the cluster.

use wire::handshake::{Challenge, Proof, Welcome};
use wire::heartbeat::{
    ChunkReport, Cluster, ClusterOk, Heartbeat, HeartbeatOk, InventoryPage, Liveness, Register, Registered,
    ServerStatus, Space,
};
use wire::hello::{Hello, HelloOk, Role};
use wire::member::ReplicaState;
use wire::message::Done;
use wire::{ChunkHandle, ClusterId, Epoch, Seq, ServerId, Term};

use crate::common::Pins;

const CLUSTER: ClusterId = ClusterId([0xcc; 16]);
const BOOT: u64 = 0xb007_b007_b007_b007;
const SPACE: Space = Space { total: 1 << 40, free: 1 << 39, used: 1 << 20 };

pub(crate) fn pin(pins: &mut Pins) {
    connections(pins);
    registration(pins);
    heartbeats(pins);
    cluster(pins);
}

fn connections(pins: &mut Pins) {
    for (role, pinned) in [
        (Role::Client, "000000000200000007b007b007b007b0cccccccccccccccccccccccccccccccc0100000002000000"),
        (Role::Member, "010000000200000007b007b007b007b0cccccccccccccccccccccccccccccccc0100000002000000"),
        (Role::Master, "020000000200000007b007b007b007b0cccccccccccccccccccccccccccccccc0100000002000000"),
        (Role::Chunkserver, "030000000200000007b007b007b007b0cccccccccccccccccccccccccccccccc0100000002000000"),
    ] {
        let hello = Hello { role, server: ServerId(2), boot: BOOT, cluster: CLUSTER, shard: 1, term: Term(2) };
        pins.pin(&hello, pinned);
    }
    let answer = HelloOk { server: ServerId(2), boot: BOOT, cluster: CLUSTER, shards: 4, version: "0.1.0".into() };
    pins.pin(&answer, "0200000007b007b007b007b0cccccccccccccccccccccccccccccccc040000000500000000000000302e312e30");
    pins.pin(&Done, "");
    let (ones, macs) = ("01".repeat(32), "ac".repeat(32));
    pins.pin(&Challenge { nonce: [1; 32] }, &ones);
    let proof = Proof { nonce: [1; 32], to: ServerId(2), address: "b:2".into(), mac: [0xac; 32] };
    pins.pin(&proof, &format!("{ones}02000000 0300000000000000623a32 {macs}"));
    let pinned = "0200000007b007b007b007b0cccccccccccccccccccccccccccccccc040000000500000000000000302e312e30";
    pins.pin(&Welcome { hello: answer, mac: [0xac; 32] }, &format!("{pinned}{macs}"));
}

fn registration(pins: &mut Pins) {
    let register = Register {
        server: ServerId(2),
        cluster: CLUSTER,
        boot: BOOT,
        disk: [0xdd; 16],
        address: "b:2".into(),
        admin: "b:3".into(),
        shards: 4,
        zone: "z".into(),
        version: "0.1.0".into(),
    };
    pins.pin(
        &register,
        "02000000cccccccccccccccccccccccccccccccc07b007b007b007b0dddddddddddddddddddddddddddddddd03000000 \
            00000000623a320300000000000000623a330400000001000000000000007a0500000000000000302e312e30",
    );
    pins.pin(
        &Registered { server: ServerId(2), cluster: CLUSTER, term: Term(2) },
        "02000000cccccccccccccccccccccccccccccccc02000000",
    );
}

fn heartbeats(pins: &mut Pins) {
    let report = ChunkReport {
        chunk: ChunkHandle(5),
        state: ReplicaState::Sealed,
        epoch: Epoch(3),
        promised: Epoch(4),
        last_seq: Seq(12),
        len: 0x2001,
        committed_len: 0x2000,
        digest: [0xdd; 16],
        damaged: true,
    };
    let heartbeat = Heartbeat {
        server: ServerId(2),
        boot: BOOT,
        space: SPACE,
        chunk_count: 1,
        chunks: vec![report],
        inventory: Some(InventoryPage { first: true, last: false }),
    };
    pins.pin(
        &heartbeat,
        "0200000007b007b007b007b0000000000001000000000000800000000000100000000000010000000000000001000000 \
            0000000005000000000000000200000003000000040000000c000000000000000120000000200000dddddddddddddddd \
            dddddddddddddddd01010100",
    );
    pins.pin(
        &Heartbeat { chunks: vec![], inventory: None, ..heartbeat },
        "0200000007b007b007b007b0000000000001000000000000800000000000100000000000010000000000000000000000 \
            0000000000",
    );
    pins.pin(&HeartbeatOk { term: Term(2), want_inventory: true }, "0200000001");
}

fn cluster(pins: &mut Pins) {
    pins.pin(&Cluster, "");
    let state = ClusterOk {
        cluster: CLUSTER,
        term: Term(2),
        admin: "m:1".into(),
        safe_mode: true,
        uptime_ms: 1000,
        servers: [Liveness::Alive, Liveness::Suspect, Liveness::Dead].map(status).into(),
        files: 1,
        directories: 2,
        chunks: 3,
        open_chunks: 4,
        degraded_chunks: 5,
        replicas: 3,
        version: "0.1.0".into(),
    };
    pins.pin(
        &state,
        "cccccccccccccccccccccccccccccccc0200000003000000000000006d3a3101e8030000000000000300000000000000 \
            020000000300000000000000623a32000000000000000001000000000000007a04000000000000001400000000000000 \
            00000000000100000000000080000000000010000000000001000000000000000500000000000000302e312e30020000 \
            000300000000000000623a32000000000000000001000000000000007a04000000010000001400000000000000000000 \
            00000100000000000080000000000010000000000001000000000000000500000000000000302e312e30020000000300 \
            000000000000623a32000000000000000001000000000000007a04000000020000001400000000000000000000000001 \
            00000000000080000000000010000000000001000000000000000500000000000000302e312e30010000000000000002 \
            00000000000000030000000000000004000000000000000500000000000000030000000500000000000000302e312e30",
    );
}

fn status(liveness: Liveness) -> ServerStatus {
    ServerStatus {
        server: ServerId(2),
        address: "b:2".into(),
        admin: String::new(),
        zone: "z".into(),
        shards: 4,
        liveness,
        silent_ms: 20,
        space: SPACE,
        chunks: 1,
        version: "0.1.0".into(),
    }
}
