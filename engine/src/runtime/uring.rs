//! Whether this process may use io_uring, asked of the kernel without any library: glommio's own
//! question ends the process when the answer is no.

#![allow(unsafe_code, reason = "system calls without a wrapper")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// How often and how far apart to try again.
const RETRIES: u32 = 20;
const RETRY_AFTER: Duration = Duration::from_millis(25);

/// What to do when io_uring is refused; part of every such message.
pub(crate) const REMEDY: &str = "allow io_uring (sysctl kernel.io_uring_disabled=0; in containers \
    `security_opt: seccomp=docker/seccomp.json`), or run with `--runtime monoio-epoll`, which is slower";

/// `struct io_uring_params`: 120 bytes, zero but for what one asks for.
#[repr(C, align(8))]
struct Params([u8; 120]);

/// Makes a small ring and drops it.
///
/// # Errors
///
/// `PermissionDenied` when io_uring is not allowed (the kernel says EPERM or ENOSYS), with the remedy
/// in the message; others as the kernel says.
pub(crate) fn allowed() -> io::Result<()> {
    ring().map(drop).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => {
            io::Error::new(io::ErrorKind::PermissionDenied, format!("io_uring is not allowed ({error}): {REMEDY}"))
        }
        Some(libc::ENOMEM) => {
            io::Error::new(error.kind(), "no locked memory left for a ring: raise memlock (`ulimits: memlock: -1`)")
        }
        _ => error,
    })
}

/// Registers a buffer of 64 KiB with a ring and drops both.
///
/// # Errors
///
/// As the kernel says; `ENOMEM` when memlock does not allow it.
pub(crate) fn registers() -> io::Result<()> {
    let ring = ring()?;
    let buffer = vec![0u8; 64 << 10];
    let iovec = libc::iovec { iov_base: buffer.as_ptr().cast_mut().cast(), iov_len: buffer.len() };
    // SAFETY: `iovec` and the buffer it names outlive the call; the registration ends when `ring` is
    // dropped, before `buffer`, and nothing is submitted that would write to it.
    let result =
        unsafe { libc::syscall(libc::SYS_io_uring_register, ring.as_raw_fd(), 0, std::ptr::from_ref(&iovec), 1) };
    drop(ring);
    drop(buffer);
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes a runtime. Locked memory of rings that have just been dropped is given back late: when there is
/// none, tries again for half a second.
pub(crate) fn retry<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..RETRIES {
        match make() {
            Err(error) if error.raw_os_error() == Some(libc::ENOMEM) => std::thread::sleep(RETRY_AFTER),
            result => return result.map_err(explain),
        }
    }
    make().map_err(explain)
}

fn explain(error: io::Error) -> io::Error {
    let text = error.to_string();
    if error.raw_os_error() == Some(libc::ENOMEM) || text.contains("MemLockLimit") {
        let remedy = "raise memlock (`ulimits: memlock: -1`) or use fewer shards";
        return io::Error::new(error.kind(), format!("not enough locked memory for the rings ({text}): {remedy}"));
    }
    error
}

fn ring() -> io::Result<OwnedFd> {
    let mut params = Params([0; 120]);
    // SAFETY: `params` is as large as the kernel's structure and lives until the call returns.
    let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, 4, std::ptr::from_mut(&mut params)) };
    match i32::try_from(fd) {
        // SAFETY: the kernel has just given us this descriptor; nobody else has it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
