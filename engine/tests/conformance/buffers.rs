use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use engine::runtime::{FileId, Open, Runtime};

use crate::bed::MEMORY;

pub(crate) async fn buffers_are_aligned_and_as_long_as_asked<R: Runtime>(rt: R, _: PathBuf) {
    for len in [1, 4095, 4096, 4097, 64 << 10, (1 << 20) + 4096, 2 << 20] {
        let buf = rt.alloc(len).await;
        assert_eq!(buf.as_ref().as_ptr().align_offset(4096), 0);
        assert_eq!(buf.as_ref().len(), len);
        assert_eq!(rt.freeze(buf).as_ref().len(), len);
    }
}

pub(crate) async fn frozen_bytes_do_not_change<R: Runtime>(rt: R, _: PathBuf) {
    let mut buf = rt.alloc(12_288).await;
    buf.as_mut().fill(7);
    let frozen = rt.freeze(buf);
    let middle = rt.slice(&frozen, 4000..5000);
    let inner = rt.slice(&middle, 10..20);
    let clone = frozen.clone();
    drop(frozen);
    drop(middle);
    for byte in 0..100 {
        let mut other = rt.alloc(12_288).await;
        other.as_mut().fill(byte);
    }
    assert_eq!(clone.as_ref(), [7; 12_288]);
    assert_eq!(inner.as_ref(), [7; 10]);
}

pub(crate) async fn an_empty_pool_waits_and_resumes<R: Runtime>(rt: R, _: PathBuf) {
    let mut held = Vec::new();
    while let Some(buf) = rt.try_alloc(1 << 20) {
        held.push(buf);
    }
    assert_eq!(held.len(), MEMORY >> 20);
    let got = Rc::new(Cell::new(0));
    for _ in 0..3 {
        let (task, got) = (rt.clone(), Rc::clone(&got));
        rt.spawn(async move {
            let buf = task.alloc(2 << 20).await;
            got.set(got.get() + 1);
            task.yield_now().await;
            drop(buf);
        });
    }
    rt.sleep(Duration::from_millis(5)).await;
    assert_eq!(got.get(), 0);
    held.pop();
    rt.sleep(Duration::from_millis(5)).await;
    assert_eq!(got.get(), 0, "half of what is needed is free");
    held.pop();
    while got.get() < 3 {
        rt.yield_now().await;
    }
    while rt.try_alloc(2 << 20).is_none() {
        rt.yield_now().await;
    }
}

pub(crate) async fn a_slice_keeps_its_buffer_out_of_the_pool<R: Runtime>(rt: R, _: PathBuf) {
    let mut slices = Vec::new();
    while let Some(buf) = rt.try_alloc(2 << 20) {
        slices.push(rt.slice(&rt.freeze(buf), 5..6));
    }
    assert_eq!(slices.len(), MEMORY >> 21);
    slices.pop();
    assert!(rt.try_alloc(2 << 20).is_some());
}

pub(crate) async fn what_is_read_is_counted_and_waits_for_nobody<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, FileId::Slot(1), Open::Create).await.unwrap();
    let mut buf = rt.alloc(1 << 20).await;
    buf.as_mut().fill(7);
    rt.write_at(&file, rt.freeze(buf), 0).await.unwrap();
    let read = rt.read_at(&file, 1 << 20, 0).await.unwrap();
    let part = rt.slice(&read, 5..6);
    drop(read);
    let mut held = Vec::new();
    while let Some(buf) = rt.try_alloc(1 << 20) {
        held.push(buf);
    }
    assert_eq!(held.len(), (MEMORY >> 20) - 1, "a slice of what was read keeps its whole buffer");
    assert!(!rt.has_room(4096));
    let again = rt.read_at(&file, 1 << 20, 0).await.unwrap();
    assert_eq!(again.as_ref(), [7; 1 << 20]);
    held.pop();
    assert!(!rt.has_room(4096), "the read took what came back");
    drop((again, part));
    assert!(rt.has_room(2 << 20));
    let _page = rt.try_alloc(1).unwrap();
    assert!(!rt.has_room(2 << 20));
}
