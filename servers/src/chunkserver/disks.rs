//! The disks of this server, as its threads share them: which are there, which failed and why, how many
//! bad blocks each has had. Locks are taken on trouble and by the control thread only.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// So many bad blocks within [`HITS_WITHIN`] drain a disk.
const HITS_MAX: usize = 3;

/// Bad blocks longer ago do not count.
const HITS_WITHIN: Duration = Duration::from_secs(24 * 3600);

/// Bad blocks of one disk that were confirmed, for the rule of three in a day. Pure.
#[derive(Debug, Default)]
pub(crate) struct Hits(VecDeque<Duration>);

impl Hits {
    /// One more; `true` when the disk has had enough of them.
    pub(crate) fn add(&mut self, now: Duration) -> bool {
        while self.0.front().is_some_and(|at| now.saturating_sub(*at) > HITS_WITHIN) || self.0.len() >= HITS_MAX {
            self.0.pop_front();
        }
        self.0.push_back(now);
        self.0.len() >= HITS_MAX
    }
}

/// How a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Health {
    /// It serves.
    Good,
    /// It serves what it has and takes no new chunks.
    Draining,
    /// It does not answer; with the cause.
    Failed(String),
}

impl Health {
    /// One word, for metrics and people.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Good => "good",
            Self::Draining => "draining",
            Self::Failed(_) => "failed",
        }
    }
}

/// One disk that was configured.
#[derive(Debug)]
pub(crate) struct Disk {
    /// Its folder, as it was given.
    pub(crate) root: PathBuf,
    /// `st_dev`: folders on one file system share its space. Zero for one that was not opened.
    pub(crate) device: u64,
    health: Mutex<Health>,
    hits: Mutex<Hits>,
}

impl Disk {
    /// One that can be used.
    pub(crate) fn opened(root: &Path, device: u64) -> Arc<Self> {
        Self::new(root, device, Health::Good)
    }

    /// One that cannot; the others serve without it.
    pub(crate) fn missing(root: &Path, cause: String) -> Arc<Self> {
        Self::new(root, 0, Health::Failed(cause))
    }

    fn new(root: &Path, device: u64, health: Health) -> Arc<Self> {
        Arc::new(Self { root: root.to_owned(), device, health: Mutex::new(health), hits: Mutex::default() })
    }

    pub(crate) fn health(&self) -> Health {
        lock(&self.health).clone()
    }

    /// How it is from now on; a failed disk stays failed, with its first cause. `true` when that is news.
    pub(crate) fn set_health(&self, health: Health) -> bool {
        let mut known = lock(&self.health);
        if matches!(*known, Health::Failed(_)) || *known == health {
            return false;
        }
        *known = health;
        true
    }

    /// A bad block was confirmed; `true` when the disk should drain.
    pub(crate) fn hit(&self, now: Duration) -> bool {
        lock(&self.hits).add(now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn three_bad_blocks_in_a_day_are_enough_and_three_in_two_days_are_not() {
        let mut hits = Hits::default();
        assert!(!hits.add(HOUR));
        assert!(!hits.add(HOUR * 10));
        assert!(!hits.add(HOUR * 26), "the first one is 25 hours old");
        assert!(hits.add(HOUR * 30));
        assert!(hits.add(HOUR * 31), "and it goes on");
        assert!(!hits.add(HOUR * 100));
    }

    #[test]
    fn a_failed_disk_stays_failed_with_its_first_cause() {
        let disk = Disk::opened(Path::new("/d"), 1);
        assert!(disk.set_health(Health::Draining));
        assert!(!disk.set_health(Health::Draining));
        assert!(disk.set_health(Health::Failed("first".into())));
        assert!(!disk.set_health(Health::Failed("second".into())));
        assert!(!disk.set_health(Health::Good));
        assert_eq!(disk.health(), Health::Failed("first".into()));
    }
}
