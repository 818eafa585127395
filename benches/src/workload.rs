//! Uploads, downloads and appends by many tasks at once, each operation timed.
//!
//! An operation is timed from its first call until its promise is kept: a put until the file is
//! durable on every replica and has its name, an append until the record is durable on every
//! replica, a get until the last verified byte is here.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use client::{Client, UploadOptions};
use hdrhistogram::Histogram;
use serde::Serialize;
use tokio::task::JoinSet;
use wire::NamePath;
use wire::limits::{APPEND_LEN_MAX, PAYLOAD_LEN_MAX};
use wire::locate::Position;
use wire::upload::Precondition;

use crate::limits::mib_per_s;
use crate::meter::{self, Reading};
use crate::now;

/// Longest latency recorded, microseconds: an hour. A longer one counts as this.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Payload is cut from a pool of random bytes of this length, so that no disk can compress it away.
const POOL_LEN: usize = 2 * APPEND_LEN_MAX as usize;
/// An operation of the warm-up moves at most this: enough to open every connection.
const WARM_UP_LEN_MAX: u64 = 8 << 20;

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Upload whole files.
    Put,
    /// Download whole files.
    Get,
    /// Append records.
    Append,
}

/// How much of it.
#[derive(Clone, Debug, Serialize)]
pub struct Plan {
    /// What is done.
    pub kind: Kind,
    /// Bytes of one file, or of one record: then at most 16 MiB.
    pub size: u64,
    /// Operations in all, at least one.
    pub count: u64,
    /// Operations at a time, at least one.
    pub concurrency: u32,
    /// Files that are read or appended to, by turns; at least one. A put makes one for each operation.
    pub files: u64,
}

/// A benchmark did not come to its end: what was asked cannot be done, or the cluster refused.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Failure {
    /// The plan makes no sense.
    #[error("{0}")]
    Plan(String),
    /// The cluster refused.
    #[error(transparent)]
    Client(#[from] client::Error),
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// Payload bytes moved.
    pub bytes: u64,
    /// From the first operation's start to the last one's end.
    pub elapsed: Duration,
    /// Of each operation, microseconds.
    pub latency: Histogram<u64>,
    /// What every process spent meanwhile.
    pub spent: Reading,
    /// Fewest replicas any of the files has.
    pub replicas: usize,
}

impl Measured {
    /// Payload, MiB per second.
    #[must_use]
    pub fn mib_per_s(&self) -> f64 {
        mib_per_s(self.bytes, self.elapsed)
    }
}

/// One benchmark on one cluster, in a directory of its own. Call [`Bench::remove`] at the end, whatever happened.
#[derive(Debug)]
pub struct Bench {
    client: Client,
    plan: Plan,
    directory: NamePath,
    pool: Bytes,
    done: Arc<AtomicU64>,
}

impl Bench {
    /// Prepares one; nothing is sent yet.
    ///
    /// # Errors
    ///
    /// [`Failure::Plan`], naming what makes no sense.
    pub fn new(client: Client, plan: Plan) -> Result<Self, Failure> {
        let wrong = |text: &str| Err(Failure::Plan(text.into()));
        if plan.size == 0 || plan.count == 0 || plan.concurrency == 0 || plan.files == 0 {
            return wrong("size, count, concurrency and files must be at least 1");
        }
        if plan.kind == Kind::Append && plan.size > u64::from(APPEND_LEN_MAX) {
            return wrong("a record append takes at most 16 MiB: use a smaller --size");
        }
        if plan.size.checked_mul(plan.count.max(plan.files)).is_none() {
            return wrong("size times count is more than any cluster holds");
        }
        let directory = NamePath::parse(&format!("/hercules-bench-{}-{}", unix_ms(), std::process::id()))
            .map_err(|fault| Failure::Client(fault.into()))?;
        Ok(Self { client, plan, directory, pool: random(POOL_LEN), done: Arc::default() })
    }

    /// Payload bytes moved so far, preparation included; for progress bars.
    #[must_use]
    pub fn done(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.done)
    }

    /// Payload bytes that [`Bench::done`] will reach.
    #[must_use]
    pub fn total(&self) -> u64 {
        let plan = &self.plan;
        let prepared = if plan.kind == Kind::Get { plan.size * plan.files } else { 0 };
        let warm_up = plan.size.min(WARM_UP_LEN_MAX) * u64::from(plan.concurrency);
        prepared.saturating_add(warm_up).saturating_add(plan.size.saturating_mul(plan.count))
    }

    /// Prepares files, warms up, then measures. May be dropped at any time.
    ///
    /// # Errors
    ///
    /// The first refusal that the client's repeats could not mend ends it.
    pub async fn run(&self) -> Result<Measured, Failure> {
        self.client.mkdir(&self.directory).await?;
        self.prepare().await?;
        self.drive(u64::from(self.plan.concurrency), self.plan.size.min(WARM_UP_LEN_MAX), "warm-up").await?;
        let before = meter::read(&self.client).await?;
        let begun = now();
        let latency = self.drive(self.plan.count, self.plan.size, "file").await?;
        let elapsed = begun.elapsed();
        let spent = meter::read(&self.client).await?.since(&before);
        let bytes = self.plan.size * self.plan.count;
        Ok(Measured { bytes, elapsed, latency, spent, replicas: self.replicas().await? })
    }

    /// Deletes the directory with everything in it.
    ///
    /// # Errors
    ///
    /// What the client says.
    pub async fn remove(&self) -> Result<(), Failure> {
        self.client.delete(&self.directory, true).await?;
        Ok(())
    }

    /// Files that are there before the measurement begins.
    async fn prepare(&self) -> Result<(), Failure> {
        match self.plan.kind {
            Kind::Put => Ok(()),
            Kind::Get => {
                let writers = Self { plan: Plan { kind: Kind::Put, ..self.plan.clone() }, ..self.share() };
                writers.drive(self.plan.files, self.plan.size, "file").await.map(drop)
            }
            Kind::Append => {
                for index in 0..self.plan.files {
                    self.client.create(&self.path("file", index)?, false).await?;
                }
                Ok(())
            }
        }
    }

    /// Runs `count` operations of `size` bytes; returns their latencies. `prefix` names the files a put makes.
    async fn drive(&self, count: u64, size: u64, prefix: &'static str) -> Result<Histogram<u64>, Failure> {
        let tickets = Arc::new(AtomicU64::new(0));
        let mut tasks: JoinSet<Result<Histogram<u64>, Failure>> = JoinSet::new();
        for _ in 0..u64::from(self.plan.concurrency).min(count) {
            let worker = self.share();
            let tickets = Arc::clone(&tickets);
            tasks.spawn(async move {
                let mut latency = histogram()?;
                loop {
                    let ticket = tickets.fetch_add(1, Relaxed);
                    if ticket >= count {
                        return Ok(latency);
                    }
                    let begun = now();
                    worker.operation(ticket, size, prefix).await?;
                    let us = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
                    latency.saturating_record(us);
                }
            });
        }
        let mut all = histogram()?;
        // Leaving early drops the set, and that ends the other workers.
        while let Some(joined) = tasks.join_next().await {
            let latency = joined.map_err(|error| Failure::Plan(format!("a worker died: {error}")))??;
            all.add(&latency).map_err(|error| Failure::Plan(error.to_string()))?;
        }
        Ok(all)
    }

    async fn operation(&self, ticket: u64, size: u64, prefix: &str) -> Result<(), Failure> {
        match self.plan.kind {
            Kind::Put => self.put(&self.path(prefix, ticket)?, size).await,
            Kind::Get => self.get(&self.path("file", ticket % self.plan.files)?, size).await,
            Kind::Append => self.append(&self.path("file", ticket % self.plan.files)?, ticket, size).await,
        }
    }

    async fn put(&self, path: &NamePath, size: u64) -> Result<(), Failure> {
        let options = UploadOptions { content_type: String::new(), precondition: Precondition::None, sha256: false };
        let mut upload = self.client.upload(path, options).await?;
        let mut left = size;
        let mut turn = 0;
        while left > 0 {
            let piece = self.payload(turn, left.min(u64::from(PAYLOAD_LEN_MAX)));
            turn += 1;
            left -= piece.len() as u64;
            self.done.fetch_add(piece.len() as u64, Relaxed);
            upload.write(piece).await?;
        }
        let attr = upload.finish().await?;
        same_length(path, attr.len, size)
    }

    async fn get(&self, path: &NamePath, size: u64) -> Result<(), Failure> {
        let attr = self.client.stat(path).await?;
        let mut stream = self.client.read(&attr, 0..size);
        let mut received = 0;
        while let Some(piece) = stream.next().await {
            let len = piece?.len() as u64;
            received += len;
            self.done.fetch_add(len, Relaxed);
        }
        same_length(path, received, size)
    }

    async fn append(&self, path: &NamePath, turn: u64, size: u64) -> Result<(), Failure> {
        let appended = self.client.append(path, self.payload(turn, size)).await?;
        self.done.fetch_add(u64::from(appended.len), Relaxed);
        same_length(path, u64::from(appended.len), size)
    }

    /// `len` bytes of the pool, at most half of it, other ones at each turn.
    fn payload(&self, turn: u64, len: u64) -> Bytes {
        let len = usize::try_from(len).unwrap_or(usize::MAX).min(POOL_LEN / 2);
        let start = usize::try_from(turn.wrapping_mul(999_983) % (POOL_LEN as u64 / 2)).unwrap_or(0);
        self.pool.slice(start..start + len)
    }

    fn path(&self, prefix: &str, index: u64) -> Result<NamePath, Failure> {
        NamePath::parse(&format!("{}/{prefix}-{index}", self.directory)).map_err(|fault| Failure::Client(fault.into()))
    }

    /// Fewest members of the first chunk of any file: what "durable" meant in this run.
    async fn replicas(&self) -> Result<usize, Failure> {
        let page = self.client.list(&self.directory, "", wire::limits::PAGE_ENTRIES_MAX, false).await?;
        let mut fewest = None;
        for entry in page.entries {
            let locations = self.client.locations(entry.attr.inode, Position::Index(0), 1).await?;
            let members = locations.items.first().map(|location| location.members.len());
            fewest = [fewest, members].into_iter().flatten().min();
        }
        Ok(fewest.unwrap_or(0))
    }

    fn share(&self) -> Self {
        Self {
            client: self.client.clone(),
            plan: self.plan.clone(),
            directory: self.directory.clone(),
            pool: self.pool.clone(),
            done: Arc::clone(&self.done),
        }
    }
}

fn same_length(path: &NamePath, got: u64, want: u64) -> Result<(), Failure> {
    if got == want {
        return Ok(());
    }
    Err(Failure::Client(client::Error::new(wire::Kind::Corrupt, format!("{path}: {got} bytes instead of {want}"))))
}

fn histogram() -> Result<Histogram<u64>, Failure> {
    Histogram::new_with_bounds(1, LATENCY_MAX_US, 3).map_err(|error| Failure::Plan(error.to_string()))
}

/// Bytes without a pattern, the same in every run.
fn random(len: usize) -> Bytes {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        out.extend_from_slice(&state.to_le_bytes());
    }
    out.truncate(len);
    out.into()
}

#[allow(clippy::disallowed_methods, reason = "names a directory; decides nothing")]
fn unix_ms() -> u128 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payload_does_not_repeat_within_a_block() {
        let pool = random(1 << 16);
        let blocks: std::collections::BTreeSet<&[u8]> = pool.chunks(16).collect();
        assert_eq!(blocks.len(), (1 << 16) / 16);
    }

    #[test]
    fn a_latency_beyond_the_scale_is_kept_as_the_longest() {
        let mut latency = histogram().unwrap();
        latency.saturating_record(u64::MAX);
        assert!(latency.max() >= LATENCY_MAX_US);
    }
}
