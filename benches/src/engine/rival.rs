//! What the store is measured against: fio, and a bare io_uring loop, on a file beside it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use engine::runtime::raw::{self, RawJob, RawKind};
use rustix::fs::{FallocateFlags, OFlags};

use super::subject::{Latency, Sample};

/// How to get it.
pub const FIO_REMEDY: &str = "fio is not installed: its column stays empty (apt-get install fio)";

/// One thing that all of them do.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    /// Read or write.
    pub kind: RawKind,
    /// Bytes of one block.
    pub block_len: usize,
    /// Blocks in flight.
    pub depth: usize,
    /// Length of the file.
    pub file_len: u64,
    /// Anywhere in the file, instead of from front to back.
    pub random: bool,
    /// `fdatasync` after so many blocks.
    pub sync_every: Option<usize>,
    /// For so long; `None`: the file once.
    pub budget: Option<Duration>,
    /// Into extents that `fallocate` just took, instead of ones that were written before.
    pub fresh: bool,
}

/// The file that both use. Removed when dropped.
#[derive(Debug)]
pub struct Beside {
    path: PathBuf,
    fio: bool,
    batched: bool,
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

impl Beside {
    /// Writes a file of `len` bytes. `batched`: how the bare loop submits ([`RawJob`]).
    ///
    /// # Errors
    ///
    /// What the system says.
    pub fn new(folder: &Path, len: u64, batched: bool) -> io::Result<Self> {
        let fio = Command::new("fio").arg("--version").output().is_ok_and(|out| out.status.success());
        let beside = Self { path: folder.join("beside"), fio, batched };
        let job = Job {
            kind: RawKind::Write,
            block_len: 1 << 20,
            depth: 8,
            file_len: len,
            random: false,
            sync_every: None,
            budget: None,
            fresh: true,
        };
        beside.raw(&job)?;
        Ok(beside)
    }

    /// Whether fio can be asked.
    #[must_use]
    pub fn has_fio(&self) -> bool {
        self.fio
    }

    /// Runs the bare loop.
    ///
    /// # Errors
    ///
    /// What the kernel says.
    pub fn raw(&self, job: &Job) -> io::Result<Sample> {
        let file = self.open(job)?;
        let count = job.file_len / job.block_len as u64;
        let len = job.block_len as u64;
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let random = job.random;
        let forever = job.budget.is_some();
        let offsets = (0..).take_while(|index| forever || *index < count).map(|index| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if random { state % count * len } else { index % count * len }
        });
        let raw_job = RawJob {
            file: &file,
            kind: job.kind,
            block_len: job.block_len,
            depth: job.depth,
            sync_every: job.sync_every,
            batched: self.batched,
        };
        let before = crate::meter::own_cpu_s();
        let mut done = raw::run(&raw_job, offsets, job.budget)?;
        done.cycles.sort_unstable();
        let us = |part: usize| done.cycles.get(done.cycles.len() * part / 100).map(|cycle| cycle.as_secs_f64() * 1e6);
        Ok(Sample {
            ops: done.blocks,
            bytes: done.blocks * len,
            elapsed: done.elapsed,
            cpu_s: crate::meter::own_cpu_s() - before,
            latency: us(50).zip(us(99)).map(|(p50, p99)| Latency { p50, p99 }),
            ..Sample::default()
        })
    }

    fn open(&self, job: &Job) -> io::Result<File> {
        if job.fresh {
            let _ = fs::remove_file(&self.path);
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        options.custom_flags(i32::try_from(OFlags::DIRECT.bits()).unwrap_or(0));
        let file = options.open(&self.path)?;
        if job.fresh {
            rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, job.file_len)?;
            file.sync_all()?;
        }
        Ok(file)
    }

    /// Runs fio.
    ///
    /// # Errors
    ///
    /// fio failed, or what it printed is not what fio prints.
    pub fn fio(&self, job: &Job) -> io::Result<Sample> {
        drop(self.open(job)?);
        let rw = match (job.kind, job.random) {
            (RawKind::Read, false) => "read",
            (RawKind::Read, true) => "randread",
            (RawKind::Write, false) => "write",
            (RawKind::Write, true) => "randwrite",
        };
        let mut command = Command::new("fio");
        command
            .args(["--name=limit", "--ioengine=io_uring", "--direct=1", "--output-format=json", "--overwrite=1"])
            .args(["--allow_file_create=0", "--fallocate=none", "--norandommap=1", "--randseed=7"])
            // Latency from the call to the completion, and not only from the end of the call.
            .args(["--lat_percentiles=1", "--clat_percentiles=0"])
            .arg(format!("--filename={}", self.path.display()))
            .arg(format!("--rw={rw}"))
            .arg(format!("--bs={}", job.block_len))
            .arg(format!("--iodepth={}", job.depth))
            .arg(format!("--size={}", job.file_len));
        if let Some(every) = job.sync_every {
            command.arg(format!("--fdatasync={every}")).arg("--end_fsync=1");
        }
        if let Some(budget) = job.budget {
            command.arg("--time_based=1").arg(format!("--runtime={}ms", budget.as_millis()));
        }
        let out = command.output()?;
        if !out.status.success() {
            return Err(io::Error::other(format!("fio: {}", String::from_utf8_lossy(&out.stderr))));
        }
        // fio prints notes before its JSON.
        let start = out.stdout.iter().position(|byte| *byte == b'{').unwrap_or(0);
        let json: serde_json::Value = serde_json::from_slice(&out.stdout[start..]).map_err(io::Error::other)?;
        parse(&json, job).ok_or_else(|| io::Error::other("fio printed no figures"))
    }
}

fn parse(json: &serde_json::Value, job: &Job) -> Option<Sample> {
    let run = json.get("jobs")?.get(0)?;
    let side = run.get(if job.kind == RawKind::Read { "read" } else { "write" })?;
    let ops = side.get("total_ios")?.as_u64()?;
    let bytes = side.get("io_bytes")?.as_u64()?;
    let ms = side.get("runtime")?.as_f64()?;
    let cpu = run.get("usr_cpu")?.as_f64()? + run.get("sys_cpu")?.as_f64()?;
    let seconds = bytes as f64 / side.get("bw_bytes")?.as_f64()?;
    let percentile = |of: &serde_json::Value, part: &str| of.get("percentile")?.get(part)?.as_f64();
    // A write and its sync follow each other: their medians add up to about the median of both.
    let both = |part: &str| {
        let sync = percentile(run.get("sync")?.get("lat_ns")?, part)?;
        Some((percentile(side.get("lat_ns")?, part)? + sync) / 1e3)
    };
    let latency = if job.sync_every == Some(1) { both("50.000000").zip(both("99.000000")) } else { None };
    Some(Sample {
        ops,
        bytes,
        elapsed: Duration::try_from_secs_f64(seconds).ok()?,
        cpu_s: cpu / 100.0 * ms / 1e3,
        latency: latency.map(|(p50, p99)| Latency { p50, p99 }),
        ..Sample::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: Job = Job {
        kind: RawKind::Write,
        block_len: 4096,
        depth: 1,
        file_len: 1 << 20,
        random: false,
        sync_every: Some(1),
        budget: None,
        fresh: false,
    };

    #[test]
    fn fio_says_what_it_moved_and_how_long_a_write_with_its_sync_took() {
        let text = r#"{"jobs": [{"usr_cpu": 1.0, "sys_cpu": 4.0,
            "write": {"total_ios": 256, "io_bytes": 1048576, "runtime": 500, "bw_bytes": 2097152,
                      "lat_ns": {"percentile": {"50.000000": 100000, "99.000000": 200000}}},
            "sync": {"lat_ns": {"percentile": {"50.000000": 1900000, "99.000000": 3000000}}}}]}"#;
        let json = serde_json::from_str(text).unwrap();
        let sample = parse(&json, &JOB).unwrap();
        assert_eq!((sample.ops, sample.bytes, sample.elapsed), (256, 1 << 20, Duration::from_millis(500)));
        assert!((sample.cpu_s - 0.025).abs() < 1e-9, "{sample:?}");
        let latency = sample.latency.unwrap();
        assert!((latency.p50 - 2000.0).abs() < 1e-9 && (latency.p99 - 3200.0).abs() < 1e-9, "{latency:?}");
        assert!(parse(&serde_json::json!({"jobs": []}), &JOB).is_none());
    }

    #[test]
    fn the_bare_loop_and_fio_move_the_same_file() {
        let folder = tempfile::tempdir().unwrap();
        let beside = Beside::new(folder.path(), 4 << 20, false).unwrap();
        let job = Job { sync_every: None, block_len: 1 << 20, file_len: 4 << 20, depth: 4, ..JOB };
        for fresh in [false, true] {
            let raw = beside.raw(&Job { fresh, ..job }).unwrap();
            assert_eq!((raw.ops, raw.bytes), (4, 4 << 20));
            if beside.has_fio() {
                let fio = beside.fio(&Job { fresh, ..job }).unwrap();
                assert_eq!((fio.ops, fio.bytes), (4, 4 << 20));
            }
        }
        let read = beside.raw(&Job { kind: RawKind::Read, ..job }).unwrap();
        assert_eq!(read.bytes, 4 << 20);
    }
}
