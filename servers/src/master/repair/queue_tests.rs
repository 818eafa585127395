use wire::{Epoch, InodeId, Seq};

use super::*;
use crate::master::state::Phase;

const SECOND: Duration = Duration::from_secs(1);

fn servers(count: u32) -> Servers {
    let seen = Seen { alive: true, free: 1000, ..Seen::default() };
    (1..=count).map(|server| (ServerId(server), seen.clone())).collect()
}

fn row(holders: &[u32]) -> Chunk {
    Chunk {
        file: InodeId(9),
        prev: ChunkHandle::NONE,
        fixed: None,
        epoch: Epoch(1),
        phase: Phase::Sealed { len: 1000, last_seq: Seq(1), digest: [1; 16] },
        members: holders.iter().copied().map(ServerId).collect(),
        stale: vec![],
        wanted: 3,
        opened_ms: 0,
    }
}

fn view(row: &Chunk) -> View {
    let holders = row.members.iter().map(|server| (*server, false)).collect();
    View { wanted: row.wanted as usize, holders, ..View::default() }
}

fn look(repairs: &mut Repairs, rows: &[(u64, Chunk)], servers: &Servers) -> Vec<Step> {
    let part: Vec<_> = rows.iter().map(|(handle, row)| (ChunkHandle(*handle), row, Some(view(row)))).collect();
    repairs.look(&part, true, servers, SECOND)
}

fn begin(repairs: &mut Repairs, rows: &[(u64, Chunk)], servers: &Servers, tuning: &Tuning, now: Duration) -> Vec<Job> {
    let mut servers = servers.clone();
    repairs.burden(&mut servers);
    let find = |handle: ChunkHandle| {
        let (_, row) = rows.iter().find(|(other, _)| ChunkHandle(*other) == handle)?;
        Some((view(row), 1000))
    };
    repairs.begin(find, &mut servers, tuning, 7, now)
}

#[test]
fn the_last_copy_comes_first_and_each_server_takes_one_at_a_time() {
    let all = servers(4);
    let rows = [(1, row(&[1, 2])), (2, row(&[3])), (3, row(&[1, 2, 3])), (4, row(&[1, 2]))];
    let mut repairs = Repairs::default();
    assert_eq!(look(&mut repairs, &rows, &all), []);
    let order: Vec<u64> = repairs.next(10).iter().map(|waiting| waiting.chunk.0).collect();
    assert_eq!(order, [2, 1, 4]);
    let jobs = begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND);
    assert_eq!(jobs.iter().map(|job| job.chunk.0).collect::<Vec<_>>()[0], 2);
    let targets: BTreeSet<ServerId> = jobs.iter().map(|job| job.to).collect();
    assert_eq!(targets.len(), jobs.len(), "one copy into a server at a time: {jobs:?}");
    assert_eq!(begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND), [], "one copy of a chunk at a time");
    let (chunk, len) = (jobs[0].chunk, 1000);
    repairs.ended(chunk, Some((400, len - 400)), SECOND * 2);
    assert_eq!((repairs.totals.done, repairs.totals.kept_bytes), (1, 600));
    assert!(repairs.next(10).iter().all(|waiting| waiting.chunk != chunk));
}

#[test]
fn a_pause_begins_nothing_and_a_rate_bounds_each_copy_and_all_of_them() {
    let all = servers(9);
    let rows: Vec<(u64, Chunk)> = (1..=6).map(|handle| (handle, row(&[1, 2]))).collect();
    let mut repairs = Repairs::default();
    look(&mut repairs, &rows, &all);
    let paused = Tuning { paused: true, ..Tuning::default() };
    assert_eq!(begin(&mut repairs, &rows, &all, &paused, SECOND), []);
    let slow = Tuning { server_rate: 10, cluster_rate: 25, paused: false };
    let jobs = begin(&mut repairs, &rows, &all, &slow, SECOND);
    assert_eq!(jobs.iter().map(|job| job.rate).collect::<Vec<_>>(), [10, 10], "two of ten are at most 25");
    assert_eq!(rate(&Tuning { cluster_rate: 100, ..Tuning::default() }), (25, 4));
    assert_eq!(rate(&Tuning::default()), (0, RUNNING_MAX));
}

#[test]
fn a_copy_that_failed_waits_and_does_not_hold_the_others_up() {
    let all = servers(3);
    let rows = [(1, row(&[1, 2])), (2, row(&[1, 2]))];
    let mut repairs = Repairs::default();
    look(&mut repairs, &rows, &all);
    let first = begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND).remove(0);
    assert_eq!((first.chunk, first.to), (ChunkHandle(1), ServerId(3)));
    repairs.ended(first.chunk, None, SECOND);
    let next = begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND).remove(0);
    assert_eq!(next.chunk, ChunkHandle(2));
    repairs.ended(next.chunk, Some((1000, 0)), SECOND);
    assert_eq!(begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND * 2), []);
    let again = begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND * 4);
    assert_eq!(again.len(), 1, "after its pause");
    assert_eq!(repairs.totals.failed, 1);
}

#[test]
fn a_replica_that_came_back_joins_where_it_is_needed_and_goes_where_it_is_not() {
    let all = servers(4);
    let mut repairs = Repairs::default();
    let mut missed = row(&[1, 2, 3]);
    missed.stale = vec![ServerId(4)];
    let rows = [(1, row(&[1, 2])), (2, row(&[1, 2, 3])), (3, row(&[1, 2, 3])), (4, missed)];
    repairs.stray(ChunkHandle(1), ServerId(4), Some([1; 16]));
    repairs.stray(ChunkHandle(2), ServerId(4), Some([1; 16]));
    repairs.stray(ChunkHandle(3), ServerId(4), Some([2; 16]));
    let steps = look(&mut repairs, &rows, &all);
    let expected = [
        Step::Join(ChunkHandle(1), ServerId(4), [1; 16]),
        Step::Drop(ChunkHandle(2), ServerId(4), Dropping::Surplus),
        Step::Drop(ChunkHandle(3), ServerId(4), Dropping::Stale),
        Step::Drop(ChunkHandle(4), ServerId(4), Dropping::Stale),
    ];
    assert_eq!(steps, expected);
}

#[test]
fn what_missed_the_seal_is_given_its_time_to_fill_what_it_lacks() {
    let all = servers(4);
    let mut left = row(&[1, 2]);
    left.stale = vec![ServerId(3)];
    let rows = [(1, left)];
    let mut repairs = Repairs::default();
    look(&mut repairs, &rows, &all);
    assert_eq!(repairs.next(9), []);
    repairs.not_joined(ChunkHandle(1), ServerId(3), false);
    look(&mut repairs, &rows, &all);
    assert_eq!(repairs.next(9), []);
    repairs.not_joined(ChunkHandle(1), ServerId(3), true);
    look(&mut repairs, &rows, &all);
    assert_eq!(repairs.next(9).len(), 1);
}

#[test]
fn the_progress_of_a_drain_is_known_after_one_whole_look_and_a_chunk_that_is_gone_waits_for_nothing() {
    let mut all = servers(4);
    let rows = [(1, row(&[1, 2, 3])), (2, row(&[2, 3, 4]))];
    let mut repairs = Repairs::default();
    all.get_mut(&ServerId(1)).unwrap().drained = true;
    assert!(!repairs.drains([(ServerId(1), 5)])[0].is_counted);
    look(&mut repairs, &rows, &all);
    let drain = repairs.drains([(ServerId(1), 5)])[0];
    assert_eq!((drain.left, drain.left_bytes, drain.is_counted), (1, 1000, true));
    assert_eq!(repairs.waiting(), [Waiting { urgency: Urgency::Drain, chunks: 1, bytes: 1000 }]);
    look(&mut repairs, &rows[1..], &all);
    assert_eq!((repairs.drains([(ServerId(1), 5)])[0].left, repairs.waiting()), (0, vec![]));
}

#[test]
fn one_chunk_at_a_time_moves_from_the_fullest_to_the_emptiest_server_when_nothing_else_waits() {
    let mut all = servers(4);
    let rows = [(1, row(&[1, 2, 3])), (2, row(&[2, 3, 4])), (3, row(&[1, 2, 3]))];
    let mut repairs = Repairs::default();
    look(&mut repairs, &rows, &all);
    assert_eq!(begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND), [], "they are even");
    all.get_mut(&ServerId(1)).unwrap().used = 500;
    look(&mut repairs, &rows, &all);
    let jobs = begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND);
    assert_eq!(jobs.iter().map(|job| job.to).collect::<Vec<_>>(), [ServerId(4)]);
    assert_ne!(jobs[0].chunk, ChunkHandle(2), "it has that one");
    assert_eq!(begin(&mut repairs, &rows, &all, &Tuning::default(), SECOND), []);
}

#[test]
fn what_is_dropped_stays_while_it_is_missed() {
    let all = servers(4);
    let full = view(&row(&[1, 2, 3]));
    assert!(!is_missed(&full, &all, Dropping::Surplus));
    assert!(is_missed(&view(&row(&[1, 2])), &all, Dropping::Surplus));
    assert!(is_missed(&view(&row(&[1, 2])), &all, Dropping::Drained), "another server could have it");
    let mut two = servers(3);
    two.get_mut(&ServerId(3)).unwrap().drained = true;
    assert!(!is_missed(&view(&row(&[1, 2])), &two, Dropping::Drained));
}
