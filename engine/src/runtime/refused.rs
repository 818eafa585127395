//! What happens where io_uring is forbidden, as in a container with the default seccomp profile.

#![allow(unsafe_code, reason = "a seccomp filter has no wrapper")]

use std::io;

use super::Backend;
use super::glommio::GlommioRuntime;
use super::monoio::{Epoll, MonoioRuntime, Uring};
use super::shard::{ShardConfig, Spawn};
use crate::probe::{Verdict, probe};

const MEMORY: usize = 8 << 20;

/// Forbids `io_uring_setup` to this thread and those it starts: it fails with `errno`.
fn forbid(errno: i32) {
    let load = |offset| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let jump = |k, jt, jf| libc::sock_filter { code: 0x15, jt, jf, k };
    let answer = |k| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k };
    let number = u32::try_from(libc::SYS_io_uring_setup).unwrap();
    let errno = libc::SECCOMP_RET_ERRNO | u32::try_from(errno).unwrap();
    let mut filter = [load(0), jump(number, 0, 1), answer(errno), answer(libc::SECCOMP_RET_ALLOW)];
    let program = libc::sock_fprog { len: u16::try_from(filter.len()).unwrap(), filter: filter.as_mut_ptr() };
    // SAFETY: takes numbers only.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    assert_eq!(result, 0);
    // SAFETY: `program` and the filter it names outlive the call, which copies them.
    let result = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, std::ptr::from_ref(&program)) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// The error of starting a shard where `io_uring_setup` fails so.
fn refusal<R: Spawn>(errno: i32) -> Option<io::Error> {
    let thread = std::thread::spawn(move || {
        forbid(errno);
        let config = ShardConfig { index: 0, core: None, memory: MEMORY };
        match R::spawn_shard(config, |rt: R| async move { drop(rt.alloc(1).await) }) {
            Ok(shard) => {
                shard.join().unwrap().unwrap();
                None
            }
            Err(error) => Some(error),
        }
    });
    thread.join().unwrap()
}

#[test]
fn where_io_uring_is_refused_the_error_names_the_alternatives() {
    for errno in [libc::EPERM, libc::ENOSYS] {
        for error in [refusal::<GlommioRuntime>(errno), refusal::<MonoioRuntime<Uring>>(errno)] {
            let error = error.unwrap();
            assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
            let text = error.to_string();
            for remedy in ["kernel.io_uring_disabled", "seccomp=docker/seccomp.json", "--runtime monoio-epoll"] {
                assert!(text.contains(remedy), "{text}");
            }
        }
    }
}

#[test]
fn epoll_runs_where_io_uring_is_refused() {
    assert!(refusal::<MonoioRuntime<Epoll>>(libc::EPERM).is_none());
}

#[test]
fn the_probe_survives_where_io_uring_is_refused() {
    let checks = std::thread::spawn(|| {
        forbid(libc::ENOSYS);
        Backend::ALL.map(|backend| probe(&std::env::temp_dir(), backend, 2, 16 << 20))
    });
    let verdicts = checks.join().unwrap().map(|checks| {
        assert_eq!(checks[0].name, "io-uring");
        checks[0].verdict
    });
    assert_eq!(verdicts, [Verdict::Failed, Verdict::Failed, Verdict::Ok]);
}

#[test]
fn a_core_that_does_not_exist_is_an_error() {
    let config = ShardConfig { index: 0, core: Some(1000), memory: MEMORY };
    assert!(GlommioRuntime::spawn_shard(config.clone(), async |_| ()).is_err());
    assert!(MonoioRuntime::<Uring>::spawn_shard(config, async |_| ()).is_err());
}
