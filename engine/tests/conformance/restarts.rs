use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use engine::runtime::shard::Spawn;
use engine::runtime::{FileId, Open};
use futures_util::FutureExt;

use crate::bed::on_shard;

const BLOCK: usize = 64 << 10;
const READS: usize = 64;

/// Memory as the allocator gives it, filled with a pattern: where a late read would land.
fn traps() -> Vec<Vec<u8>> {
    (0..2 * READS).map(|_| vec![0xEE; BLOCK]).collect()
}

pub(crate) async fn a_shard_waits_for_its_tasks_and_their_io<R: Spawn>(rt: R, root: PathBuf) {
    let file = rt.open(&root, FileId::Slot(0), Open::Create).await.unwrap();
    for part in 0..READS {
        let mut buf = rt.alloc(BLOCK).await;
        buf.as_mut().fill(0x11);
        rt.write_at(&file, rt.freeze(buf), (part * BLOCK) as u64).await.unwrap();
    }
    drop(file);
    // Restarts from another thread: a shard cannot wait for one.
    let (done, waits) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        for _ in 0..20 {
            restart::<R>(&root);
        }
        done.send(()).unwrap();
    });
    waits.await.unwrap();
}

fn restart<R: Spawn>(root: &Path) {
    let (folder, ended) = (root.to_owned(), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&ended);
    on_shard(move |rt: R| async move {
        let file = rt.open(&folder, FileId::Slot(0), Open::Existing).await.unwrap();
        for _ in 0..8 {
            let (task, file, count) = (rt.clone(), file.clone(), Arc::clone(&count));
            rt.spawn(async move {
                task.sleep(Duration::from_millis(1)).await;
                let read = task.read_at(&file, BLOCK, 0).await.unwrap();
                assert!(read.as_ref().iter().all(|byte| *byte == 0x11));
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(ended.load(Ordering::Relaxed), 8, "the shard ended before its tasks");
    let folder = root.to_owned();
    on_shard(move |rt: R| async move {
        let file = rt.open(&folder, FileId::Slot(0), Open::Existing).await.unwrap();
        // Begun, dropped, and nobody left to wait: the last half of the file is overwritten.
        for part in 0..READS as u64 {
            drop(Box::pin(rt.read_at(&file, BLOCK, part * BLOCK as u64)).now_or_never());
            let mut buf = rt.alloc(BLOCK).await;
            buf.as_mut().fill(0x22);
            let at = (READS as u64 + part) * BLOCK as u64;
            drop(Box::pin(rt.write_at(&file, rt.freeze(buf), at)).now_or_never());
        }
    });
    let traps = traps();
    let slot = root.join("slots/00000000");
    let written = std::fs::read(&slot).unwrap();
    assert_eq!(written.len(), 2 * READS * BLOCK, "a dropped write was lost");
    assert!(written[READS * BLOCK..].iter().all(|byte| *byte == 0x22), "a dropped write was lost");
    std::thread::sleep(Duration::from_millis(5));
    assert!(traps.iter().flatten().all(|byte| *byte == 0xEE), "a read landed after its shard had ended");
    File::options().write(true).open(slot).unwrap().set_len((READS * BLOCK) as u64).unwrap();
}
