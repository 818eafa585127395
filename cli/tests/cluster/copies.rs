//! Servers come and go, and every chunk keeps its copies.

use serde_json::Value;

use super::files::{read, upload};
use super::rig::{Cluster, Plan, noise, wait_for};
use super::rot::metric;

const FILES: u64 = 5;
const LEN: usize = 400_000;

fn plan(chunkservers: usize) -> Plan {
    Plan { chunkservers, gateway: false, scrub: false, ..Plan::default() }
}

async fn write(cluster: &Cluster, from: u64) {
    for file in from..from + FILES {
        upload(&cluster.client(), &format!("/file{file}"), &noise(file, LEN)).await;
    }
}

async fn check(cluster: &Cluster, upto: u64) {
    for file in 0..upto {
        assert!(read(&cluster.client(), &format!("/file{file}")).await == noise(file, LEN), "file {file}");
    }
}

async fn json(cluster: &Cluster, args: &[&str]) -> Value {
    serde_json::from_str(&cluster.hercules(args).await).expect("one JSON object")
}

/// Waits until no chunk waits for a copy and none is on its way; gives how repair stands then.
async fn settled(cluster: &Cluster, done: u64) -> Value {
    wait_for("all copies to be made", || async {
        let repairs = json(cluster, &["repairs", "--json"]).await;
        let waits = repairs["waiting_chunks"].as_object().is_some_and(|waiting| !waiting.is_empty());
        !waits && repairs["running_count"] == 0 && repairs["done"].as_u64() >= Some(done)
    })
    .await;
    json(cluster, &["repairs", "--json"]).await
}

async fn master_metric(cluster: &Cluster, name: &str) -> f64 {
    metric(&cluster.master, name).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_five_servers_one_is_wiped_and_every_chunk_has_three_copies_again() {
    let mut cluster = Cluster::start(plan(5)).await;
    write(&cluster, 0).await;
    let mut lost = 0;
    while metric(&cluster.chunkservers[lost], "hercules_chunks").await == 0.0 {
        lost += 1;
    }
    cluster.chunkservers[lost].kill();
    std::fs::remove_dir_all(&cluster.chunkservers[lost].data).unwrap();
    std::fs::create_dir_all(&cluster.chunkservers[lost].data).unwrap();
    cluster.wait_alive(4).await;
    wait_for("the death to be believed and what was lost to be copied", || async {
        cluster.master.log().contains("what it held is copied")
    })
    .await;
    let repairs = settled(&cluster, 1).await;
    assert_eq!(repairs["failed"], 0, "{repairs}");
    assert_eq!(master_metric(&cluster, "hercules_master_under_replicated_chunks").await, 0.0);
    // Three copies on four servers: any two may go.
    let others: Vec<usize> = (0..5).filter(|server| *server != lost).collect();
    for pair in [[others[0], others[1]], [others[2], others[3]]] {
        for server in pair {
            cluster.chunkservers[server].kill();
        }
        check(&cluster, FILES).await;
        for server in pair {
            cluster.chunkservers[server].start();
        }
        cluster.wait_alive(4).await;
    }
    // The wiped one comes back as a server with nothing.
    cluster.chunkservers[lost].start();
    cluster.wait_alive(5).await;
    let servers = json(&cluster, &["servers", "--json"]).await;
    let states: Vec<&str> =
        servers["servers"].as_array().unwrap().iter().filter_map(|it| it["state"].as_str()).collect();
    assert_eq!(states.iter().filter(|state| **state == "alive").count(), 5, "{servers}");
    let alive = servers["servers"].as_array().unwrap().iter().filter(|it| it["state"] == "alive");
    assert!(alive.clone().all(|it| it["disks"].as_array().is_some_and(|disks| disks.len() == 1)), "{servers}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_three_servers_one_is_away_while_others_write_and_is_whole_again_after_it_came_back() {
    let mut cluster = Cluster::start(plan(3)).await;
    write(&cluster, 0).await;
    cluster.chunkservers[2].kill();
    cluster.wait_alive(2).await;
    write(&cluster, FILES).await;
    check(&cluster, 2 * FILES).await;
    cluster.chunkservers[2].start();
    cluster.wait_alive(3).await;
    let repairs = settled(&cluster, FILES).await;
    let copied = metric(&cluster.chunkservers[2], "hercules_clone_bytes_total").await;
    #[allow(clippy::cast_precision_loss, reason = "a few megabytes")]
    let written = (FILES * LEN as u64) as f64;
    assert_eq!(copied, written, "what it had was not copied again: {repairs}");
    wait_for("no chunk to be degraded", || async {
        json(&cluster, &["status", "--json"]).await["degraded_chunks"] == 0
    })
    .await;
    for server in 0..2 {
        cluster.chunkservers[server].kill();
    }
    check(&cluster, 2 * FILES).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drained_server_ends_with_nothing_that_counts_and_every_byte_is_readable_without_it() {
    let mut cluster = Cluster::start(plan(4)).await;
    write(&cluster, 0).await;
    let address = cluster.chunkservers[1].address();
    let servers = json(&cluster, &["servers", "--json"]).await;
    let find = |servers: &Value| {
        let found = servers["servers"].as_array().unwrap().iter().find(|it| it["address"] == address.as_str());
        found.cloned().expect("it has registered")
    };
    let id = find(&servers)["server"].to_string();
    // While repair is paused nothing moves, and that is remembered.
    cluster.hercules(&["repairs", "pause"]).await;
    cluster.hercules(&["drain", &id]).await;
    assert_eq!(json(&cluster, &["repairs", "--json"]).await["paused"], true);
    cluster.hercules(&["repairs", "rate", "64M"]).await;
    cluster.hercules(&["repairs", "resume"]).await;
    let said = cluster.hercules(&["drain", &id, "--wait"]).await;
    assert!(said.contains("may be switched off"), "{said}");
    let drain = find(&json(&cluster, &["servers", "--json"]).await)["drain"].clone();
    assert_eq!((&drain["left_chunks"], &drain["is_empty"]), (&Value::from(0), &Value::from(true)));
    // What is written now goes elsewhere, also in the master's next life.
    cluster.master.kill();
    cluster.start_all().await;
    write(&cluster, FILES).await;
    cluster.chunkservers[1].terminate();
    check(&cluster, 2 * FILES).await;
    assert_eq!(find(&json(&cluster, &["servers", "--json"]).await)["drain"]["left_chunks"], 0);
    let other = if id == "3" { "4" } else { "3" };
    let again = cluster.hercules_output(&["drain", other]).await;
    let text = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(!again.status.success() && text.contains("add a server first"), "two would be left: {text}");
    cluster.hercules(&["drain", &id, "--cancel"]).await;
    assert_eq!(find(&json(&cluster, &["servers", "--json"]).await)["drain"], Value::Null);
}
