use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use engine::runtime::{FileId, Open, Runtime};
use futures_util::future::{Either, select};
use tokio::sync::{Notify, oneshot};

pub(crate) async fn a_task_outlives_who_spawned_it<R: Runtime>(rt: R, _: PathBuf) {
    let done = Rc::new(Cell::new(false));
    let (outer, flag) = (rt.clone(), Rc::clone(&done));
    rt.spawn(async move {
        let inner = outer.clone();
        outer.spawn(async move {
            inner.sleep(Duration::from_millis(5)).await;
            flag.set(true);
        });
    });
    while !done.get() {
        rt.sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn a_yielding_task_starves_nobody<R: Runtime>(rt: R, root: PathBuf) {
    let file = rt.open(&root, FileId::Slot(0), Open::Create).await.unwrap();
    rt.preallocate(&file, 0, 4096).await.unwrap();
    let done = Rc::new(Cell::new(0));
    for _ in 0..2 {
        let (task, done) = (rt.clone(), Rc::clone(&done));
        rt.spawn(async move {
            while done.get() < 3 {
                task.yield_now().await;
            }
        });
    }
    let began = rt.now();
    for _ in 0..3 {
        let (task, file, done) = (rt.clone(), file.clone(), Rc::clone(&done));
        rt.spawn(async move {
            for _ in 0..10 {
                task.read_at(&file, 4096, 0).await.unwrap();
                task.sleep(Duration::from_micros(100)).await;
            }
            done.set(done.get() + 1);
        });
    }
    while done.get() < 3 {
        rt.yield_now().await;
    }
    let took = rt.now() - began;
    assert!(took < Duration::from_millis(500), "{took:?} for 30 reads beside yielding tasks");
}

pub(crate) async fn sleeps_end_in_order<R: Runtime>(rt: R, _: PathBuf) {
    let order = Rc::new(RefCell::new(Vec::new()));
    for wait in [30, 10, 20, 0, 5] {
        let (task, order) = (rt.clone(), Rc::clone(&order));
        rt.spawn(async move {
            let began = task.now();
            task.sleep(Duration::from_millis(wait)).await;
            assert!(task.now() - began >= Duration::from_millis(wait));
            order.borrow_mut().push(wait);
        });
    }
    let long = Box::pin(rt.sleep(Duration::from_secs(3600)));
    let short = Box::pin(rt.sleep(Duration::from_millis(60)));
    assert!(matches!(select(long, short).await, Either::Right(_)));
    assert_eq!(*order.borrow(), [0, 5, 10, 20, 30]);
}

pub(crate) async fn time_does_not_go_back<R: Runtime>(rt: R, _: PathBuf) {
    let mut last = rt.now();
    assert!(last < Duration::from_secs(60), "it begins with the shard");
    for _ in 0..200 {
        let now = rt.now();
        assert!(now >= last);
        last = now;
        rt.yield_now().await;
    }
}

pub(crate) async fn wakes_from_other_threads_arrive<R: Runtime>(rt: R, _: PathBuf) {
    let (sender, mut receiver) = tokio::sync::mpsc::channel::<u32>(4);
    let (answers, answered) = mpsc::channel::<oneshot::Sender<u32>>();
    let notify = Arc::new(Notify::new());
    let ring = Arc::clone(&notify);
    let other = std::thread::spawn(move || {
        for number in 0..2000 {
            sender.blocking_send(number).unwrap();
        }
        drop(sender);
        while let Ok(answer) = answered.recv() {
            answer.send(7).unwrap();
            ring.notify_one();
        }
    });
    for number in 0..2000 {
        assert_eq!(receiver.recv().await, Some(number));
    }
    assert_eq!(receiver.recv().await, None);
    for _ in 0..500 {
        let (sender, answer) = oneshot::channel();
        answers.send(sender).unwrap();
        assert_eq!(answer.await, Ok(7));
        notify.notified().await;
    }
    // And when the shard is asleep for a while before the wake.
    let (sender, answer) = oneshot::channel();
    let late = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(100));
        sender.send(8).unwrap();
    });
    let limit = Box::pin(rt.sleep(Duration::from_secs(10)));
    match select(answer, limit).await {
        Either::Left((answer, _)) => assert_eq!(answer, Ok(8)),
        Either::Right(_) => panic!("the wake was lost"),
    }
    drop(answers);
    other.join().unwrap();
    late.join().unwrap();
}
