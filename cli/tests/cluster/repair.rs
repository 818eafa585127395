//! Damage on one disk is repaired from the others, whoever finds it.

use std::os::unix::fs::FileExt;

use super::files::{read, upload};
use super::rig::{Cluster, Plan, noise, wait_for};
use super::rot::{find, metric};

/// Turns over a byte of the block in the server's slot file.
fn rot(cluster: &Cluster, server: usize, block: &[u8]) -> (std::path::PathBuf, u64) {
    let (slot, at) = find(&cluster.chunkservers[server], block).expect("the block is in a slot file, byte for byte");
    let file = std::fs::File::options().write(true).open(&slot).unwrap();
    file.write_all_at(&[!block[100]], at + 100).unwrap();
    file.sync_all().unwrap();
    (slot, at)
}

async fn repaired(cluster: &Cluster, server: usize, count: f64) {
    wait_for("the block to be repaired", || async move {
        metric(&cluster.chunkservers[server], "hercules_bad_blocks_repaired_total").await >= count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_repaired_whether_a_client_or_scrub_finds_it_and_the_server_alone_has_it_right() {
    let mut cluster = Cluster::start(Plan { gateway: false, ..Plan::default() }).await;
    let content = noise(12, 5 << 20);
    upload(&cluster.client(), "/rotten", &content).await;
    for server in &mut cluster.chunkservers {
        server.terminate();
    }
    // Found by reads: whichever replica a client prefers, sooner or later it is this one.
    let read_block = &content[8192..12_288];
    let (slot, at) = rot(&cluster, 0, read_block);
    cluster.start_all().await;
    wait_for("a read to find the block", || async {
        assert!(read(&cluster.client(), "/rotten").await == content, "a wrong byte was read");
        metric(&cluster.chunkservers[0], "hercules_bad_blocks_found_total").await >= 1.0
    })
    .await;
    repaired(&cluster, 0, 1.0).await;
    let mut now = vec![0; 4096];
    std::fs::File::open(&slot).unwrap().read_exact_at(&mut now, at).unwrap();
    assert!(now == read_block, "it is right in its place");

    // Found by scrub: nobody reads it.
    let scrubbed_block = &content[(3 << 20)..(3 << 20) + 4096];
    rot(&cluster, 0, scrubbed_block);
    let text = cluster.hercules(&["scrub"]).await;
    assert_eq!(text.lines().filter(|line| line.ends_with("begun")).count(), 3, "{text}");
    repaired(&cluster, 0, 2.0).await;

    // The other two are gone: what the repaired one says is from its own disk.
    for server in &mut cluster.chunkservers {
        server.terminate();
    }
    cluster.chunkservers[0].start();
    cluster.wait_alive(1).await;
    assert!(read(&cluster.client(), "/rotten").await == content);
    let alone = cluster.hercules(&["scrub", "--server", &cluster.chunkservers[0].admin()]).await;
    assert!(alone.contains("begun"), "{alone}");
    wait_for("the scrub to end", || async {
        metric(&cluster.chunkservers[0], "hercules_scrub_passes_total").await >= 1.0
    })
    .await;
    assert!(metric(&cluster.chunkservers[0], "hercules_scrub_errors_total").await == 0.0, "nothing is left to find");
    let master = cluster.hercules_output(&["scrub", "--server", &cluster.master.admin()]).await;
    assert_eq!(master.status.code(), Some(1), "a master has no disk to scrub");
}
