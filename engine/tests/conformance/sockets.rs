use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::time::Duration;

use engine::runtime::Runtime;
use futures_util::FutureExt;
use futures_util::future::join;
use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use crate::bed::Bed;

/// Frames of 1 MiB in each direction: more than sockets hold.
const PARTS: u32 = 8;

/// Bytes in which a lost, doubled or exchanged one shows.
fn pattern(len: usize, seed: u32) -> Vec<u8> {
    let numbers = (0..u32::try_from(len).unwrap()).map(|at| at.wrapping_mul(2_654_435_761).wrapping_add(seed));
    numbers.map(|number| number.to_le_bytes()[3]).collect()
}

async fn buffer<R: Runtime>(rt: &R, bytes: &[u8]) -> R::Buf {
    let mut buf = rt.alloc(bytes.len()).await;
    buf.as_mut().copy_from_slice(bytes);
    rt.freeze(buf)
}

pub(crate) async fn head_and_payload_arrive_as_one_stream<R: Bed>(rt: R, _: PathBuf) {
    let ((_a, mut writer), (mut reader, _b)) = rt.pair().await.unwrap();
    for (head, payload) in [(32, 0), (1, 1), (32, 4096), (5000, 70_000), (32, 1 << 20), (0, 10)] {
        let (head, payload) = (pattern(head, 1), pattern(payload, 2));
        let sent = buffer(&rt, &[b"xyz", &*payload, b"xyz"].concat()).await;
        let sent = rt.slice(&sent, 3..3 + payload.len());
        let len = head.len() + payload.len();
        let into = rt.alloc(len + 20).await;
        let sending = rt.send_all(&mut writer, head.clone(), Some(sent));
        let (sending, received) = join(sending, rt.recv_exact(&mut reader, into, 10..10 + len)).await;
        sending.unwrap();
        assert!(received.unwrap().as_ref()[10..10 + len] == [head, payload].concat());
    }
    rt.send_all(&mut writer, vec![1, 2, 3], None).await.unwrap();
    let into = rt.alloc(3).await;
    assert_eq!(rt.recv_exact(&mut reader, into, 0..3).await.unwrap().as_ref(), [1, 2, 3]);
}

pub(crate) async fn both_directions_flow_at_once<R: Bed>(rt: R, _: PathBuf) {
    async fn send<R: Runtime>(rt: &R, writer: &mut R::Writer, seed: u32) {
        for part in 0..PARTS {
            let payload = buffer(rt, &pattern(1 << 20, seed + part)).await;
            rt.send_all(writer, vec![9; 32], Some(payload)).await.unwrap();
        }
    }
    async fn receive<R: Runtime>(rt: &R, reader: &mut R::Reader, seed: u32) {
        for part in 0..PARTS {
            let into = rt.alloc((1 << 20) + 32).await;
            let received = rt.recv_exact(reader, into, 0..(1 << 20) + 32).await.unwrap();
            assert!(received.as_ref()[32..] == pattern(1 << 20, seed + part));
        }
    }
    let ((mut reader_a, mut writer_a), (mut reader_b, mut writer_b)) = rt.pair().await.unwrap();
    let there = join(send(&rt, &mut writer_a, 100), receive(&rt, &mut reader_b, 100));
    let back = join(send(&rt, &mut writer_b, 200), receive(&rt, &mut reader_a, 200));
    join(there, back).await;
}

pub(crate) async fn recv_some_appends_at_most_what_it_may<R: Bed>(rt: R, _: PathBuf) {
    let ((_a, mut writer), (mut reader, _b)) = rt.pair().await.unwrap();
    rt.send_all(&mut writer, pattern(1000, 3), None).await.unwrap();
    let mut bytes = vec![77];
    while bytes.len() < 1001 {
        let before = bytes.len();
        let kept = bytes.clone();
        bytes = rt.recv_some(&mut reader, bytes, 300).await.unwrap();
        assert!((before + 1..=before + 300).contains(&bytes.len()));
        assert_eq!(bytes[..before], kept);
    }
    assert_eq!(bytes[1..], pattern(1000, 3));
    drop((writer, _a));
    let ended = rt.recv_some(&mut reader, vec![1, 2], 300).await.unwrap();
    assert_eq!(ended, [1, 2]);
}

pub(crate) async fn an_early_end_is_an_unexpected_end<R: Bed>(rt: R, _: PathBuf) {
    let ((_a, mut writer), (mut reader, _b)) = rt.pair().await.unwrap();
    rt.send_all(&mut writer, vec![5; 100], None).await.unwrap();
    drop((writer, _a));
    let into = rt.alloc(200).await;
    let error = rt.recv_exact(&mut reader, into, 0..200).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
}

pub(crate) async fn a_dropped_receive_loses_the_connection<R: Bed>(rt: R, _: PathBuf) {
    let ((mut answers, mut writer), (mut reader, _b)) = rt.pair().await.unwrap();
    let into = rt.alloc(16).await;
    let receive = Box::pin(rt.recv_exact(&mut reader, into, 0..16));
    let wait = Box::pin(rt.sleep(Duration::from_millis(20)));
    rt.send_all(&mut writer, b"12345678".to_vec(), None).await.unwrap();
    drop(futures_util::future::select(receive, wait).await);
    // The peer may learn of it before or after this.
    let _ = rt.send_all(&mut writer, b"abcdefgh".to_vec(), None).await;
    let into = rt.alloc(8).await;
    let error = rt.recv_exact(&mut reader, into, 0..8).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    drop((reader, _b));
    let end = rt.recv_some(&mut answers, Vec::new(), 10).await;
    assert!(end.is_err() || end.is_ok_and(|bytes| bytes.is_empty()));
}

pub(crate) async fn a_refused_connection_is_an_error<R: Bed>(rt: R, _: PathBuf) {
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = rt.connect(free).await.err().unwrap();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
}

pub(crate) async fn nodelay_is_set_on_both_ends<R: Runtime>(rt: R, _: PathBuf) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let _dialled = rt.connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, from) = listener.accept().unwrap();
    let other = accepted.try_clone().unwrap();
    let _accepted = rt.adopt(accepted).unwrap();
    assert!(other.nodelay().unwrap());
    // The dialled socket is somewhere among this process's descriptors.
    let process = rustix::process::pidfd_open(rustix::process::getpid(), PidfdFlags::empty()).unwrap();
    let sockets = (3..4096).filter_map(|fd| {
        let fd = rustix::process::pidfd_getfd(&process, fd, PidfdGetfdFlags::empty()).ok()?;
        let name = rustix::net::getsockname(&fd).ok()?;
        (SocketAddr::try_from(name).ok()? == from).then(|| rustix::net::sockopt::tcp_nodelay(&fd))
    });
    let nodelay: Vec<bool> = sockets.map(Result::unwrap).collect();
    assert!(!nodelay.is_empty() && nodelay.iter().all(|on| *on), "{nodelay:?}");
}

fn cpu_of_this_thread() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

pub(crate) async fn waiting_costs_no_cpu<R: Bed>(rt: R, _: PathBuf) {
    let ((mut answers, mut writer), (_reader, _back)) = rt.pair().await.unwrap();
    let sender = rt.clone();
    rt.spawn(async move {
        // Nobody reads: this fills the socket and waits, until the peer goes.
        for _ in 0..64 {
            let payload = buffer(&sender, &[1; 1 << 20]).await;
            if sender.send_all(&mut writer, vec![0; 32], Some(payload)).await.is_err() {
                return;
            }
        }
        panic!("64 MiB went nowhere");
    });
    let receiver = rt.clone();
    rt.spawn(async move { drop(receiver.recv_some(&mut answers, Vec::new(), 10).await) });
    rt.sleep(Duration::from_millis(200)).await;
    let before = cpu_of_this_thread();
    rt.sleep(Duration::from_millis(500)).await;
    let spent = cpu_of_this_thread() - before;
    assert!(spent < Duration::from_millis(25), "{spent:?} of CPU in 500 ms of waiting");
    assert!(rt.sleep(Duration::ZERO).now_or_never().is_none() || rt.now() > Duration::ZERO);
}
