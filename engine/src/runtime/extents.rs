//! Extents that files share, and their end: what the runtimes' blocking threads ask of the kernel.

#![allow(unsafe_code, reason = "an ioctl without a wrapper")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::FallocateFlags;
use rustix::ioctl::{Setter, ioctl, opcode};

/// `struct file_clone_range` of `linux/fs.h`.
#[repr(C)]
struct CloneRange {
    from: i64,
    from_offset: u64,
    len: u64,
    to_offset: u64,
}

const FICLONERANGE: rustix::ioctl::Opcode = opcode::write::<CloneRange>(0x94, 13);

/// `FICLONERANGE` of the same range.
pub(super) fn clone_range(from: &OwnedFd, to: &OwnedFd, offset: u64, len: u64) -> io::Result<()> {
    let range = CloneRange { from: i64::from(from.as_raw_fd()), from_offset: offset, len, to_offset: offset };
    // SAFETY: the opcode takes this struct and only reads it during the call.
    let call = unsafe { Setter::<FICLONERANGE, CloneRange>::new(range) };
    // SAFETY: both descriptors are open files that the caller holds until the call has returned; the
    // call touches no memory but the struct.
    Ok(unsafe { ioctl(to, call) }?)
}

/// `FALLOC_FL_UNSHARE_RANGE`.
pub(super) fn unshare_range(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::UNSHARE_RANGE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

/// `FALLOC_FL_PUNCH_HOLE`.
pub(super) fn punch_hole(file: impl AsFd, offset: u64, len: u64) -> io::Result<()> {
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    Ok(rustix::fs::fallocate(file, flags, offset, len)?)
}

const _: () = assert!(FICLONERANGE as u64 == 0x4020_940D);
