use super::*;
use proptest::prelude::*;

fn servers(count: u32) -> Servers {
    let seen = Seen { alive: true, free: 1000, ..Seen::default() };
    (1..=count).map(|server| (ServerId(server), seen.clone())).collect()
}

fn view(holders: &[u32]) -> View {
    View { wanted: 3, holders: holders.iter().map(|server| (ServerId(*server), false)).collect(), ..View::default() }
}

fn edit(servers: &mut Servers, server: u32, change: impl FnOnce(&mut Seen)) {
    change(servers.get_mut(&ServerId(server)).unwrap());
}

#[test]
fn a_dead_holder_counts_until_its_death_is_believed_and_then_the_chunk_is_copied() {
    let mut all = servers(5);
    edit(&mut all, 1, |seen| seen.alive = false);
    assert_eq!(judge(&view(&[1, 2, 3]), &all), Need::Nothing);
    edit(&mut all, 1, |seen| seen.gone = true);
    assert_eq!(judge(&view(&[1, 2, 3]), &all), Need::Copy(Urgency::Few));
    let way = way(&view(&[1, 2, 3]), &all, true).unwrap();
    assert_eq!((way.sources, way.targets), (vec![ServerId(2), ServerId(3)], vec![ServerId(4), ServerId(5)]));
    edit(&mut all, 2, |seen| seen.alive = false);
    assert_eq!(judge(&view(&[1, 2, 3]), &all), Need::Copy(Urgency::Last), "one copy can be read");
    let asked = View { asked: true, ..view(&[1, 3, 4]) };
    assert_eq!(judge(&asked, &all), Need::Copy(Urgency::Asked));
}

#[test]
fn without_a_server_to_take_it_or_one_to_give_it_there_is_nothing_to_do() {
    let mut all = servers(3);
    edit(&mut all, 1, |seen| (seen.alive, seen.gone) = (false, true));
    assert_eq!(judge(&view(&[1, 2, 3]), &all), Need::Nothing);
    let mut all = servers(4);
    (1..=3).for_each(|server| edit(&mut all, server, |seen| (seen.alive, seen.gone) = (false, true)));
    assert_eq!(judge(&view(&[1, 2, 3]), &all), Need::Nothing);
    let mut all = servers(4);
    edit(&mut all, 4, |seen| seen.free = 0);
    assert_eq!(judge(&view(&[1, 2]), &all), Need::Copy(Urgency::Few), "server 3 has room");
    edit(&mut all, 3, |seen| seen.free = 0);
    assert_eq!(judge(&view(&[1, 2]), &all), Need::Nothing);
}

#[test]
fn a_returning_server_makes_a_surplus_and_the_fullest_gives_its_replica_up() {
    let mut all = servers(5);
    edit(&mut all, 2, |seen| seen.used = 500);
    assert_eq!(judge(&view(&[1, 2, 3, 4]), &all), Need::Drop(ServerId(2), Dropping::Surplus));
    edit(&mut all, 1, |seen| seen.alive = false);
    assert_eq!(judge(&view(&[1, 2, 3, 4]), &all), Need::Nothing, "what cannot be read is not relied on");
    let mut all = servers(5);
    for (server, zone) in [(1, "a"), (2, "b"), (3, "c"), (4, "b")] {
        edit(&mut all, server, |seen| seen.zone = zone.into());
    }
    edit(&mut all, 1, |seen| seen.used = 500);
    assert_eq!(judge(&view(&[1, 2, 3, 4]), &all), Need::Drop(ServerId(4), Dropping::Surplus), "zone b has two");
}

#[test]
fn a_replica_of_no_use_is_made_up_for_elsewhere_first_and_in_its_place_when_there_is_nowhere_else() {
    let mut chunk = view(&[1, 2, 3]);
    chunk.holders[0].1 = true;
    let all = servers(4);
    assert_eq!(judge(&chunk, &all), Need::Copy(Urgency::Few));
    assert_eq!(way(&chunk, &all, true).unwrap().targets, [ServerId(4)]);
    assert_eq!(way(&chunk, &servers(3), true).unwrap().targets, [ServerId(1)]);
    let full = View { holders: [&chunk.holders[..], &[(ServerId(4), false)]].concat(), ..chunk };
    assert_eq!(judge(&full, &all), Need::Nothing, "it stays a holder: its disk may come back");
}

#[test]
fn a_drained_server_gives_its_chunks_away_and_then_does_not_count() {
    let mut all = servers(4);
    edit(&mut all, 1, |seen| seen.drained = true);
    assert_eq!(judge(&view(&[1, 2, 3]), &all), Need::Copy(Urgency::Drain));
    assert_eq!(way(&view(&[1, 2, 3]), &all, true).unwrap().targets, [ServerId(4)]);
    assert!(way(&view(&[1, 2, 3]), &all, true).unwrap().sources.contains(&ServerId(1)), "it can be read");
    assert_eq!(judge(&view(&[1, 2, 3, 4]), &all), Need::Drop(ServerId(1), Dropping::Drained));
    assert_eq!(judge(&view(&[2, 3, 4]), &all), Need::Nothing);
    assert_eq!(judge(&view(&[1, 2]), &all), Need::Copy(Urgency::Few), "one was missing before");
    // By force, with fewer servers than replicas: when all others have it.
    let mut three = servers(3);
    edit(&mut three, 1, |seen| seen.drained = true);
    assert_eq!(judge(&view(&[1, 2]), &three), Need::Copy(Urgency::Few));
    assert_eq!(judge(&view(&[1, 2, 3]), &three), Need::Drop(ServerId(1), Dropping::Drained));
    edit(&mut three, 3, |seen| seen.alive = false);
    edit(&mut three, 2, |seen| seen.alive = false);
    assert_eq!(judge(&view(&[1, 2, 3]), &three), Need::Nothing, "the others cannot be read now");
}

#[test]
fn progress_of_a_drain_counts_what_is_still_needed_there() {
    let mut all = servers(4);
    edit(&mut all, 1, |seen| seen.drained = true);
    assert!(is_held_by(&view(&[1, 2, 3]), &all, ServerId(1)));
    assert!(!is_held_by(&view(&[2, 3, 4]), &all, ServerId(1)));
    let dropped = View { stale: vec![ServerId(1)], ..view(&[2, 3, 4]) };
    assert!(!is_held_by(&dropped, &all, ServerId(1)), "what was dropped and is not freed yet does not count");
    edit(&mut all, 1, |seen| (seen.alive, seen.gone) = (false, true));
    assert!(is_held_by(&view(&[1, 2, 3]), &all, ServerId(1)));
    assert!(!is_held_by(&view(&[1, 2, 3, 4]), &all, ServerId(1)), "a dead one keeps nobody waiting");
}

#[test]
fn a_server_with_part_of_a_chunk_comes_first_and_a_busy_one_not_now() {
    let all = servers(5);
    let chunk = View { stale: vec![ServerId(5)], ..view(&[1, 2]) };
    assert_eq!(way(&chunk, &all, true).unwrap().targets, [ServerId(5)]);
    let barred = View { barred: vec![ServerId(5)], ..chunk.clone() };
    assert_eq!(way(&barred, &all, true).unwrap().targets, [ServerId(3), ServerId(4)]);
    let mut busy = all.clone();
    edit(&mut busy, 5, |seen| seen.into = INTO_MAX);
    edit(&mut busy, 1, |seen| seen.out_of = 1);
    let found = way(&chunk, &busy, true).unwrap();
    assert_eq!((found.sources, found.targets), (vec![ServerId(2), ServerId(1)], vec![ServerId(3), ServerId(4)]));
    edit(&mut busy, 1, |seen| seen.out_of = OUT_OF_MAX);
    edit(&mut busy, 2, |seen| seen.out_of = OUT_OF_MAX);
    assert_eq!(way(&chunk, &busy, true), None, "nobody may give it now");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the servers do, no replica is dropped that leaves fewer good ones than are wanted, or, from
    /// a drained server, none.
    #[test]
    fn what_is_dropped_is_never_missed(
        states in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()), 1..7),
        holders in prop::collection::btree_map(1_u32..7, any::<bool>(), 0..7),
        wanted in 1_usize..4,
    ) {
        let all: Servers = (1..).map(ServerId).zip(&states).map(|(server, (alive, gone, drained, room))| {
            let seen = Seen { alive: *alive, gone: *gone && !alive, drained: *drained, free: u64::from(*room), ..Seen::default() };
            (server, seen)
        }).collect();
        let holders: Vec<_> = holders.into_iter().map(|(server, unfit)| (ServerId(server), unfit)).collect();
        let chunk = View { wanted, holders, ..View::default() };
        let good = |without: ServerId| {
            let holders = chunk.holders.iter().filter(|(server, unfit)| *server != without && !unfit);
            holders.filter(|(server, _)| all.get(server).is_some_and(|seen| seen.alive && !seen.drained)).count()
        };
        match judge(&chunk, &all) {
            Need::Drop(server, Dropping::Drained) => {
                prop_assert!(all[&server].drained && good(server) >= 1);
                let more = all.iter().any(|(other, seen)| seen.alive && !seen.drained && seen.free > 0
                    && !chunk.holders.iter().any(|(holder, unfit)| holder == other && !unfit));
                prop_assert!(good(server) >= wanted || !more, "another server could take one");
            }
            Need::Drop(server, _) => prop_assert!(good(server) >= wanted),
            Need::Copy(_) => {
                let found = way(&chunk, &all, false).unwrap();
                prop_assert!(found.sources.iter().all(|source| all[source].alive));
                prop_assert!(found.targets.iter().all(|target| !found.sources.contains(target)));
            }
            Need::Nothing => {}
        }
    }
}
