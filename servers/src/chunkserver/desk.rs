//! What this server has to tell its master, and has not been told was heard.
//!
//! Bookkeeping only: no I/O, no clock. Whatever was sent over a connection that broke is sent again
//! over the next one; everything the master is told may reach it twice.

use std::collections::BTreeMap;
use std::time::Duration;

use wire::ChunkHandle;
use wire::Kind;
use wire::heartbeat::{ChunkReport, InventoryPage};
use wire::limits::PAGE_ENTRIES_MAX;
use wire::report::{Finished, Report};

/// Chunks in trouble that wait to be reported. The watchdog reports again what is dropped here.
const REPORTS_MAX: usize = 4096;

/// A finished chunk the master could not record is told again after this.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A letter: what one request tells.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Letter {
    /// A chunk is in trouble.
    Report(Report),
    /// A chunk is finished.
    Finished(Finished),
}

impl Letter {
    fn key(&self) -> Key {
        match self {
            Self::Report(report) => Key { is_finished: false, chunk: report.chunk },
            Self::Finished(finished) => Key { is_finished: true, chunk: finished.chunk },
        }
    }
}

/// Names a letter: the newest of a kind about a chunk counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    is_finished: bool,
    chunk: ChunkHandle,
}

#[derive(Debug)]
struct Waiting {
    letter: Letter,
    /// Sent over the connection there is.
    is_sent: bool,
    not_before: Duration,
}

/// Letters and replica reports on their way to the master.
#[derive(Debug, Default)]
pub(crate) struct Desk {
    letters: BTreeMap<Key, Waiting>,
    changed: BTreeMap<ChunkHandle, ChunkReport>,
    sent: Vec<ChunkReport>,
    inventory: Option<Cursor>,
}

/// How far a full inventory has come.
#[derive(Clone, Copy, Debug)]
struct Cursor {
    after: u64,
    is_first: bool,
}

impl Desk {
    /// Takes a letter. A newer one about the same chunk replaces an older one.
    pub(crate) fn post(&mut self, letter: Letter) {
        let is_full = self.letters.len() >= REPORTS_MAX && matches!(letter, Letter::Report(_));
        if !is_full {
            let waiting = Waiting { letter, is_sent: false, not_before: Duration::ZERO };
            self.letters.insert(waiting.letter.key(), waiting);
        }
    }

    /// The next letter to send, marked as sent.
    pub(crate) fn next_letter(&mut self, now: Duration) -> Option<(Key, Letter)> {
        let due = |waiting: &&mut Waiting| !waiting.is_sent && waiting.not_before <= now;
        let waiting = self.letters.values_mut().find(due)?;
        waiting.is_sent = true;
        Some((waiting.letter.key(), waiting.letter.clone()))
    }

    /// The master answered a letter. A refusal that says "not now" has it told again; any other one
    /// ends it: the master knows better.
    pub(crate) fn answered(&mut self, key: Key, refusal: Option<Kind>, now: Duration) {
        let again = matches!(refusal, Some(Kind::Unavailable | Kind::Overloaded | Kind::Unknown | Kind::NotLeader));
        if again {
            if let Some(waiting) = self.letters.get_mut(&key) {
                (waiting.is_sent, waiting.not_before) = (false, now + AGAIN_AFTER);
            }
        } else if self.letters.get(&key).is_some_and(|waiting| waiting.is_sent) {
            self.letters.remove(&key);
        }
    }

    /// The connection broke: nothing that was not answered counts as told.
    pub(crate) fn disconnected(&mut self) {
        for waiting in self.letters.values_mut() {
            waiting.is_sent = false;
        }
        for report in self.sent.drain(..) {
            self.changed.entry(report.chunk).or_insert(report);
        }
        self.inventory = None;
    }

    /// Replicas changed.
    pub(crate) fn changed(&mut self, reports: impl IntoIterator<Item = ChunkReport>) {
        self.changed.extend(reports.into_iter().map(|report| (report.chunk, report)));
    }

    /// The master wants to hear of everything that is held. An inventory under way goes on.
    pub(crate) fn begin_inventory(&mut self) {
        self.inventory.get_or_insert(Cursor { after: 0, is_first: true });
    }

    /// Where the inventory goes on, if one is under way.
    pub(crate) fn inventory_after(&self) -> Option<u64> {
        self.inventory.map(|cursor| cursor.after)
    }

    /// The changes that the next heartbeat carries. One at a time: [`Desk::heard`] comes before the next.
    pub(crate) fn changes(&mut self) -> Vec<ChunkReport> {
        while self.sent.len() < PAGE_ENTRIES_MAX as usize {
            let Some((_, report)) = self.changed.pop_first() else { break };
            self.sent.push(report);
        }
        self.sent.clone()
    }

    /// Cuts a page out of what the shards reported and says where it stands.
    pub(crate) fn page(&mut self, mut found: Vec<ChunkReport>) -> (Vec<ChunkReport>, InventoryPage) {
        found.sort_unstable_by_key(|report| report.chunk);
        let last = found.len() < PAGE_ENTRIES_MAX as usize;
        found.truncate(PAGE_ENTRIES_MAX as usize);
        let first = self.inventory.is_some_and(|cursor| cursor.is_first);
        self.inventory = match found.last() {
            Some(report) if !last => Some(Cursor { after: report.chunk.0, is_first: false }),
            _ => None,
        };
        (found, InventoryPage { first, last })
    }

    /// The master has heard the last heartbeat.
    pub(crate) fn heard(&mut self) {
        self.sent.clear();
    }

    /// Whether there is more to say at once.
    pub(crate) fn is_urgent(&self) -> bool {
        self.inventory.is_some() || self.changed.len() >= PAGE_ENTRIES_MAX as usize
    }
}

#[cfg(test)]
mod tests {
    use wire::member::ReplicaState;
    use wire::report::Trouble;
    use wire::{Epoch, Seq, ServerId};

    use super::*;

    const NOW: Duration = Duration::from_secs(100);

    fn trouble(chunk: u64) -> Letter {
        let (chunk, epoch) = (ChunkHandle(chunk), Epoch(1));
        Letter::Report(Report { chunk, epoch, trouble: Trouble::Stalled, suspect: ServerId(2) })
    }

    fn finished(chunk: u64) -> Letter {
        Letter::Finished(Finished {
            chunk: ChunkHandle(chunk),
            epoch: Epoch(1),
            last_seq: Seq(2),
            len: 3,
            digest: [4; 16],
            dedup: Vec::new(),
        })
    }

    fn report(chunk: u64, len: u32) -> ChunkReport {
        ChunkReport {
            chunk: ChunkHandle(chunk),
            state: ReplicaState::Open,
            epoch: Epoch(1),
            promised: Epoch(1),
            last_seq: Seq(1),
            len,
            committed_len: 0,
            digest: [0; 16],
            damaged: false,
        }
    }

    #[test]
    fn a_letter_is_sent_once_per_connection_until_it_is_answered() {
        let mut desk = Desk::default();
        desk.post(finished(1));
        let (key, letter) = desk.next_letter(NOW).unwrap();
        assert_eq!(letter, finished(1));
        assert!(desk.next_letter(NOW).is_none());
        desk.disconnected();
        assert_eq!(desk.next_letter(NOW), Some((key, finished(1))));
        desk.answered(key, None, NOW);
        desk.disconnected();
        assert!(desk.next_letter(NOW).is_none());
    }

    #[test]
    fn a_master_that_cannot_now_is_told_again_later_and_one_that_refuses_is_not() {
        let mut desk = Desk::default();
        desk.post(finished(1));
        let (key, _) = desk.next_letter(NOW).unwrap();
        desk.answered(key, Some(Kind::Unavailable), NOW);
        assert!(desk.next_letter(NOW).is_none());
        assert!(desk.next_letter(NOW + AGAIN_AFTER).is_some());
        desk.answered(key, Some(Kind::StaleEpoch), NOW);
        assert!(desk.next_letter(NOW + AGAIN_AFTER * 2).is_none());
    }

    #[test]
    fn a_newer_letter_is_not_ended_by_the_answer_to_an_older_one() {
        let mut desk = Desk::default();
        desk.post(trouble(1));
        let (key, _) = desk.next_letter(NOW).unwrap();
        desk.post(trouble(1));
        desk.answered(key, None, NOW);
        assert!(desk.next_letter(NOW).is_some());
    }

    #[test]
    fn changes_count_as_told_only_when_heard_and_newer_ones_win() {
        let mut desk = Desk::default();
        desk.changed([report(1, 10), report(2, 10)]);
        assert_eq!(desk.changes(), [report(1, 10), report(2, 10)]);
        desk.changed([report(1, 20)]);
        desk.disconnected();
        assert_eq!(desk.changes(), [report(1, 20), report(2, 10)]);
        desk.heard();
        assert_eq!(desk.changes(), []);
    }

    #[test]
    fn an_inventory_comes_in_pages_in_order_of_handles_and_ends() {
        let mut desk = Desk::default();
        desk.begin_inventory();
        assert_eq!(desk.inventory_after(), Some(0));
        let page_len = u64::from(PAGE_ENTRIES_MAX);
        let found = (1..=page_len + 5).rev().map(|chunk| report(chunk, 0)).collect();
        let (page, place) = desk.page(found);
        assert_eq!((page.len() as u64, page[0].chunk), (page_len, ChunkHandle(1)));
        assert_eq!(place, InventoryPage { first: true, last: false });
        assert!(desk.is_urgent());
        assert_eq!(desk.inventory_after(), Some(page_len));
        let (page, place) = desk.page((page_len + 1..=page_len + 5).map(|chunk| report(chunk, 0)).collect());
        assert_eq!((page.len(), place), (5, InventoryPage { first: false, last: true }));
        assert!(!desk.is_urgent());
        assert_eq!(desk.inventory_after(), None);
    }

    #[test]
    fn a_master_that_asks_again_during_an_inventory_does_not_start_it_over() {
        let mut desk = Desk::default();
        desk.begin_inventory();
        desk.page((1..=u64::from(PAGE_ENTRIES_MAX)).map(|chunk| report(chunk, 0)).collect());
        desk.begin_inventory();
        assert_eq!(desk.inventory_after(), Some(u64::from(PAGE_ENTRIES_MAX)));
    }

    #[test]
    fn an_empty_server_has_an_inventory_of_one_empty_page() {
        let mut desk = Desk::default();
        desk.begin_inventory();
        assert_eq!(desk.page(Vec::new()), (Vec::new(), InventoryPage { first: true, last: true }));
        assert!(!desk.is_urgent());
    }
}
