use std::io;
use std::path::PathBuf;
use std::time::Duration;

use engine::runtime::{FileId, Folder, Open, Runtime};
use futures_util::FutureExt;

const SLOT: FileId = FileId::Slot(12);

/// `blocks` blocks, each full of its own number plus `first`.
async fn numbered<R: Runtime>(rt: &R, blocks: usize, first: u8) -> R::Buf {
    let mut buf = rt.alloc(blocks * 4096).await;
    let mut number = first;
    for block in buf.as_mut().chunks_mut(4096) {
        block.fill(number);
        number = number.wrapping_add(1);
    }
    rt.freeze(buf)
}

/// The first byte of each block, after a check that all of the block is like it.
fn numbers(bytes: &[u8]) -> Vec<u8> {
    let blocks = bytes.chunks(4096);
    blocks.map(|block| *block.first().filter(|first| block.iter().all(|byte| byte == *first)).unwrap()).collect()
}

async fn write<R: Runtime>(rt: &R, file: &R::File, buf: R::Buf, offset: u64) {
    let len = buf.as_ref().len();
    assert_eq!(rt.write_at(file, buf, offset).await.unwrap(), len);
}

pub(crate) async fn what_is_written_is_read<R: Runtime>(rt: R, root: PathBuf) {
    for id in [FileId::DiskA, FileId::DiskB, FileId::Ring(3), SLOT] {
        let file = rt.open(&root, id, Open::Create).await.unwrap();
        write(&rt, &file, numbered(&rt, 256, 0).await, 0).await;
        write(&rt, &file, numbered(&rt, 2, 100).await, 8192).await;
        assert_eq!(numbers(rt.read_at(&file, 6 * 4096, 0).await.unwrap().as_ref()), [0, 1, 100, 101, 4, 5]);
        drop(file);
        let again = rt.open(&root, id, Open::Existing).await.unwrap();
        assert_eq!(numbers(rt.read_at(&again, 3 * 4096, 4096).await.unwrap().as_ref()), [1, 100, 101]);
        assert_eq!(rt.file_len(&root, id).await.unwrap(), Some(256 * 4096));
    }
}

pub(crate) async fn a_read_is_short_only_at_the_end<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    assert!(rt.read_at(&file, 4096, 0).await.unwrap().as_ref().is_empty());
    write(&rt, &file, numbered(&rt, 3, 1).await, 0).await;
    let read = rt.read_at(&file, 8 * 4096, 4096).await.unwrap();
    assert_eq!(numbers(read.as_ref()), [2, 3]);
    assert_eq!(numbers(rt.slice(&read, 4096..8192).as_ref()), [3]);
    assert!(rt.slice(&read, 8192..8192).as_ref().is_empty());
    assert!(rt.read_at(&file, 4096, 3 * 4096).await.unwrap().as_ref().is_empty());
    assert!(rt.read_at(&file, 4096, 1 << 30).await.unwrap().as_ref().is_empty());
}

pub(crate) async fn a_slice_of_a_frozen_buffer_is_written<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    let buf = numbered(&rt, 5, 1).await;
    write(&rt, &file, rt.slice(&buf, 0..8192), 0).await;
    write(&rt, &file, rt.slice(&buf, 12_288..20_480), 8192).await;
    // Aligned in the file, not in memory.
    let shifted = rt.slice(&buf, 4000..4000 + 4096);
    write(&rt, &file, shifted, 16_384).await;
    let read = rt.read_at(&file, 5 * 4096, 0).await.unwrap();
    assert_eq!(numbers(&read.as_ref()[..16_384]), [1, 2, 4, 5]);
    assert_eq!(read.as_ref()[16_384..16_480], [1; 96]);
    assert_eq!(read.as_ref()[16_480..], [2; 4000]);
}

pub(crate) async fn what_was_read_can_be_written<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    write(&rt, &file, numbered(&rt, 4, 1).await, 0).await;
    let read = rt.read_at(&file, 16_384, 0).await.unwrap();
    write(&rt, &file, rt.slice(&read, 4096..12_288), 16_384).await;
    write(&rt, &file, read, 24_576).await;
    let read = rt.read_at(&file, 10 * 4096, 0).await.unwrap();
    assert_eq!(numbers(read.as_ref()), [1, 2, 3, 4, 2, 3, 1, 2, 3, 4]);
}

pub(crate) async fn a_dropped_write_happens_all_the_same<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    write(&rt, &file, numbered(&rt, 64, 1).await, 0).await;
    for offset in 0..64 {
        let buf = numbered(&rt, 1, 200).await;
        drop(Box::pin(rt.write_at(&file, buf, offset * 4096)).now_or_never());
    }
    let deadline = rt.now() + Duration::from_secs(10);
    loop {
        let read = rt.read_at(&file, 64 * 4096, 0).await.unwrap();
        if read.as_ref().iter().all(|byte| *byte == 200) {
            return;
        }
        assert!(rt.now() < deadline, "a write was lost");
        rt.yield_now().await;
    }
}

pub(crate) async fn many_writes_at_once_all_land<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    let mut writes = Vec::new();
    for block in 0..200u8 {
        let (rt, file) = (rt.clone(), file.clone());
        writes.push(async move {
            write(&rt, &file, numbered(&rt, 1, block).await, u64::from(block) * 4096).await;
            rt.fdatasync(&file).await.unwrap();
        });
    }
    futures_util::future::join_all(writes).await;
    let read = rt.read_at(&file, 200 * 4096, 0).await.unwrap();
    assert_eq!(numbers(read.as_ref()), (0..200).collect::<Vec<u8>>());
}

pub(crate) async fn preallocated_space_reads_as_zeros_and_keeps_data<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    write(&rt, &file, numbered(&rt, 1, 9).await, 0).await;
    rt.preallocate(&file, 0, 1 << 20).await.unwrap();
    assert_eq!(rt.file_len(&root, SLOT).await.unwrap(), Some(1 << 20));
    let read = rt.read_at(&file, 1 << 20, 0).await.unwrap();
    assert_eq!(numbers(&read.as_ref()[..8192]), [9, 0]);
    assert_eq!(read.as_ref().len(), 1 << 20);
    assert!(read.as_ref()[4096..].iter().all(|byte| *byte == 0));
    rt.preallocate(&file, 0, 8192).await.unwrap();
    assert_eq!(rt.file_len(&root, SLOT).await.unwrap(), Some(1 << 20));
}

pub(crate) async fn syncs_succeed<R: Runtime>(rt: R, root: PathBuf) {
    let slot = rt.open(&root, SLOT, Open::Create).await.unwrap();
    let ring = rt.open(&root, FileId::Ring(0), Open::Create).await.unwrap();
    write(&rt, &slot, numbered(&rt, 1, 9).await, 0).await;
    write(&rt, &ring, numbered(&rt, 1, 9).await, 0).await;
    rt.fdatasync(&slot).await.unwrap();
    rt.fsync(&ring).await.unwrap();
    for folder in [Folder::Slots, Folder::Journal, Folder::Root] {
        rt.sync_folder(&root, folder).await.unwrap();
    }
    rt.sync_file_system(&root).await.unwrap();
}

pub(crate) async fn a_missing_file_is_told_from_an_error<R: Runtime>(rt: R, root: PathBuf) {
    assert_eq!(rt.file_len(&root, SLOT).await.unwrap(), None);
    let error = rt.open(&root, SLOT, Open::Existing).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::NotFound);
    drop(rt.open(&root, SLOT, Open::Create).await.unwrap());
    drop(rt.open(&root, FileId::Slot(13), Open::Create).await.unwrap());
    assert_eq!(rt.file_len(&root, SLOT).await.unwrap(), Some(0));
}

pub(crate) async fn space_is_sane<R: Runtime>(rt: R, root: PathBuf) {
    let space = rt.space(&root).await.unwrap();
    assert!(space.total > 1 << 20 && space.free <= space.total, "{space:?}");
}

pub(crate) async fn errors_keep_their_number<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    let error = rt.preallocate(&file, 0, 1 << 60).await.unwrap_err();
    assert!(matches!(error.raw_os_error(), Some(libc::EFBIG | libc::ENOSPC)), "{error:?}");
    let error = rt.write_at(&file, numbered(&rt, 1, 1).await, 1 << 60).await.unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EFBIG), "{error:?}");
}

pub(crate) async fn preallocation_takes_no_space_before_its_offset<R: Runtime>(rt: R, root: PathBuf) {
    use std::os::unix::fs::MetadataExt;

    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    rt.preallocate(&file, 64 << 20, 96 << 10).await.unwrap();
    assert_eq!(rt.file_len(&root, SLOT).await.unwrap(), Some((64 << 20) + (96 << 10)));
    let taken = std::fs::metadata(root.join("slots/00000012")).unwrap().blocks() * 512;
    assert!((96 << 10..1 << 20).contains(&taken), "{taken} bytes");
}

pub(crate) async fn a_clone_reads_the_same_and_neither_side_changes_the_other<R: Runtime>(rt: R, root: PathBuf) {
    let from = rt.open(&root, SLOT, Open::Create).await.unwrap();
    let to = rt.open(&root, FileId::Slot(13), Open::Create).await.unwrap();
    write(&rt, &from, numbered(&rt, 6, 1).await, 0).await;
    write(&rt, &to, numbered(&rt, 6, 101).await, 0).await;
    rt.fsync(&from).await.unwrap();
    let all = async |file: &R::File| numbers(rt.read_at(file, 6 * 4096, 0).await.unwrap().as_ref());
    if let Err(error) = rt.clone_range(&from, &to, 4096, 4 * 4096).await {
        // A result too: then the store copies. Nothing has changed.
        let cannot = [libc::EOPNOTSUPP, libc::EXDEV, libc::EINVAL, libc::ENOTTY];
        assert!(error.raw_os_error().is_some_and(|code| cannot.contains(&code)), "{error:?}");
        assert_eq!(all(&to).await, [101, 102, 103, 104, 105, 106]);
        return;
    }
    rt.fsync(&to).await.unwrap();
    assert_eq!(all(&to).await, [101, 2, 3, 4, 5, 106]);
    write(&rt, &to, numbered(&rt, 1, 201).await, 2 * 4096).await;
    write(&rt, &from, numbered(&rt, 1, 202).await, 3 * 4096).await;
    assert_eq!(all(&to).await, [101, 2, 201, 4, 5, 106]);
    assert_eq!(all(&from).await, [1, 2, 3, 202, 5, 6]);
    rt.unshare_range(&to, 4096, 4 * 4096).await.unwrap();
    rt.fsync(&to).await.unwrap();
    write(&rt, &from, numbered(&rt, 1, 203).await, 4 * 4096).await;
    write(&rt, &to, numbered(&rt, 1, 204).await, 4096).await;
    assert_eq!(all(&to).await, [101, 204, 201, 4, 5, 106]);
    assert_eq!(all(&from).await, [1, 2, 3, 202, 203, 6]);
}

pub(crate) async fn a_hole_reads_as_zeros_and_the_file_keeps_its_length<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, SLOT, Open::Create).await.unwrap();
    write(&rt, &file, numbered(&rt, 5, 1).await, 0).await;
    rt.punch_hole(&file, 4096, 2 * 4096).await.unwrap();
    rt.punch_hole(&file, 4 * 4096, 1 << 20).await.unwrap();
    rt.fsync(&file).await.unwrap();
    assert_eq!(rt.file_len(&root, SLOT).await.unwrap(), Some(5 * 4096));
    assert_eq!(numbers(rt.read_at(&file, 5 * 4096, 0).await.unwrap().as_ref()), [1, 0, 0, 4, 0]);
    write(&rt, &file, numbered(&rt, 1, 9).await, 4096).await;
    assert_eq!(numbers(rt.read_at(&file, 5 * 4096, 0).await.unwrap().as_ref()), [1, 9, 0, 4, 0]);
}
