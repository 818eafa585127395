use super::*;
use proptest::prelude::*;

const MEMBERS: [ServerId; 3] = [ServerId(1), ServerId(2), ServerId(3)];
const MS: Duration = Duration::from_millis(1);

/// The one true content up to an entry of the log.
fn content(last_seq: u64) -> Content {
    let mut digest = [0; 16];
    digest[0] = u8::try_from(last_seq).unwrap();
    Content { last_seq: Seq(last_seq), len: u32::try_from(last_seq * 10).unwrap(), digest }
}

fn promise(last_seq: u64, standing: Standing) -> Answer {
    let content = content(last_seq);
    Answer::Promised(Promise { content, committed_seq: Seq(0), suspect_seq: Seq(0), standing })
}

fn with(answer: Answer, edit: impl FnOnce(&mut Promise)) -> Answer {
    let Answer::Promised(mut promise) = answer else { panic!("only a promise is edited") };
    edit(&mut promise);
    Answer::Promised(promise)
}

fn verdict(answers: &[(u32, Answer)]) -> Decision {
    decide(&MEMBERS, &answers.iter().map(|(member, answer)| (ServerId(*member), *answer)).collect())
}

fn take(last_seq: u64, source: u32) -> Decision {
    Decision::Take { content: content(last_seq), source: ServerId(source), doubt: false }
}

use Standing::{Damaged, Restarted, Unbroken};

#[test]
fn one_member_that_never_restarted_is_enough() {
    assert_eq!(verdict(&[]), Decision::Wait);
    assert_eq!(verdict(&[(2, promise(7, Unbroken))]), take(7, 2));
}

#[test]
fn a_lone_restarted_member_waits_for_a_witness() {
    let restarted = (1, promise(7, Restarted));
    assert_eq!(verdict(&[restarted]), Decision::Wait);
    assert_eq!(verdict(&[restarted, (2, promise(5, Restarted))]), take(7, 1));
}

#[test]
fn the_only_member_of_a_chain_of_one_is_all_there_is() {
    let answers = BTreeMap::from([(ServerId(1), promise(7, Restarted))]);
    assert_eq!(decide(&MEMBERS[..1], &answers), take(7, 1));
}

#[test]
fn the_longest_healthy_one_wins_also_over_one_that_never_restarted() {
    assert_eq!(verdict(&[(1, promise(5, Unbroken)), (3, promise(6, Restarted))]), take(6, 3));
}

#[test]
fn a_damaged_member_neither_counts_nor_sets_the_length() {
    let damaged = (1, promise(9, Damaged));
    assert_eq!(verdict(&[damaged, (2, promise(5, Restarted))]), Decision::Wait);
    assert_eq!(verdict(&[damaged, (2, promise(5, Unbroken))]), take(5, 2));
}

#[test]
fn nothing_known_to_be_committed_is_cut_off_whoever_knows_it() {
    for standing in [Unbroken, Restarted, Damaged] {
        let forgetful = (1, with(promise(5, standing), |promise| promise.committed_seq = Seq(8)));
        let short = (2, promise(7, Unbroken));
        assert_eq!(verdict(&[forgetful, short]), Decision::Wait, "{standing:?}");
        assert_eq!(verdict(&[forgetful, short, (3, promise(8, Restarted))]), take(8, 3), "{standing:?}");
    }
}

#[test]
fn equal_entries_with_different_content_stop_the_seal() {
    let other = with(promise(7, Restarted), |promise| promise.content.digest = [9; 16]);
    assert_eq!(verdict(&[(1, promise(7, Unbroken)), (2, other)]), Decision::Diverged);
}

#[test]
fn a_chunk_that_one_member_never_made_was_never_given_out() {
    let empty = promise(0, Unbroken);
    assert_eq!(verdict(&[(1, Answer::Unknown), (2, empty)]), take(0, 2), "not before everybody has answered");
    assert_eq!(verdict(&[(1, Answer::Unknown), (2, empty), (3, Answer::Unknown)]), Decision::Abandon);
    let written = promise(4, Unbroken);
    assert_eq!(verdict(&[(1, Answer::Unknown), (2, empty), (3, written)]), take(4, 3), "a lost replica is not proof");
}

/// A seal on a clock of its own.
struct Play {
    seal: Seal,
    now: Duration,
    asked: BTreeSet<ServerId>,
}

impl Play {
    fn new() -> Self {
        Self { seal: Seal::new(MEMBERS.to_vec()), now: Duration::ZERO, asked: BTreeSet::new() }
    }

    fn step(&mut self, event: Event) -> Vec<Action> {
        let actions = self.seal.step(event, self.now);
        for action in &actions {
            if let Action::Prepare(member) = action {
                self.asked.insert(*member);
            }
        }
        actions
    }

    fn after(&mut self, time: Duration) -> Vec<Action> {
        self.now += time;
        self.step(Event::Tick)
    }
}

fn fills(actions: &[Action]) -> Vec<(ServerId, ServerId)> {
    let fill = |action: &Action| match action {
        Action::Fill { member, source, .. } => Some((*member, *source)),
        _ => None,
    };
    actions.iter().filter_map(fill).collect()
}

#[test]
fn everybody_is_asked_until_enough_have_answered_and_a_little_longer() {
    let mut play = Play::new();
    play.step(Event::Tick);
    assert_eq!(play.asked, MEMBERS.into());
    let actions = play.step(Event::Prepared(ServerId(1), promise(7, Unbroken)));
    assert_eq!(actions, [Action::Prepare(ServerId(2)), Action::Prepare(ServerId(3))]);
    let actions = play.after(GATHER - MS);
    assert_eq!(actions.len(), 2, "still inside the time for the others");
    let actions = play.after(MS);
    assert_eq!(fills(&actions), [(ServerId(1), ServerId(1))]);
    let actions = play.step(Event::Filled(ServerId(1), vec![]));
    let want = Action::Record { content: content(7), holders: vec![ServerId(1)], dedup: vec![] };
    assert_eq!(actions, [want]);
    assert_eq!(play.after(STUCK), [], "nothing follows the last action");
}

#[test]
fn all_answers_end_the_waiting_at_once() {
    let mut play = Play::new();
    play.step(Event::Prepared(ServerId(1), promise(7, Unbroken)));
    play.step(Event::Prepared(ServerId(2), promise(7, Unbroken)));
    let actions = play.step(Event::Prepared(ServerId(3), promise(7, Unbroken)));
    assert_eq!(fills(&actions).len(), 3);
}

#[test]
fn a_shorter_member_is_compared_with_the_source_before_it_is_filled() {
    for (digest, same) in [(content(5).digest, true), ([9; 16], false)] {
        let mut play = Play::new();
        play.step(Event::Prepared(ServerId(1), promise(5, Unbroken)));
        play.step(Event::Prepared(ServerId(2), promise(7, Unbroken)));
        let actions = play.step(Event::Prepared(ServerId(3), promise(7, Unbroken)));
        assert_eq!(actions, [Action::Compare { source: ServerId(2), member: ServerId(1), len: 50 }]);
        let actions = play.step(Event::Prefix(ServerId(1), digest));
        if same {
            assert_eq!(fills(&actions).len(), 3);
        } else {
            assert_eq!(actions, [Action::Stop(Alarm::Diverged)]);
        }
    }
}

#[test]
fn entries_that_could_not_be_verified_are_waited_for_but_not_for_ever() {
    let mut play = Play::new();
    let suspect = with(promise(5, Restarted), |promise| promise.suspect_seq = Seq(6));
    play.step(Event::Prepared(ServerId(1), suspect));
    play.step(Event::Prepared(ServerId(2), promise(5, Restarted)));
    assert_eq!(play.after(GATHER * 2), [Action::Prepare(ServerId(3))]);
    assert_eq!(fills(&play.after(GATHER_SUSPECT)).len(), 2);
}

#[test]
fn a_member_that_does_not_fill_in_time_is_no_holder() {
    let mut play = Play::new();
    for member in MEMBERS {
        play.step(Event::Prepared(member, promise(7, Unbroken)));
    }
    play.step(Event::Filled(ServerId(3), vec![]));
    play.step(Event::TooFar(ServerId(2)));
    assert_eq!(fills(&play.after(FILL - MS)), [(ServerId(1), ServerId(1))]);
    let actions = play.after(MS);
    assert!(matches!(&actions[..], [Action::Record { holders, .. }] if *holders == [ServerId(3)]), "{actions:?}");
}

#[test]
fn a_source_that_dies_in_between_leads_to_another_round() {
    let mut play = Play::new();
    play.step(Event::Prepared(ServerId(1), promise(7, Unbroken)));
    play.after(GATHER);
    assert_eq!(play.after(STUCK), [Action::Again]);
}

#[test]
fn what_breaks_an_invariant_stops_and_calls_for_help() {
    let mut play = Play::new();
    assert_eq!(play.step(Event::Ahead(Epoch(9))), [Action::Stop(Alarm::LogLost(Epoch(9)))]);
    let mut play = Play::new();
    for member in MEMBERS {
        play.step(Event::Prepared(member, promise(7, Unbroken)));
    }
    assert_eq!(play.step(Event::Longer(ServerId(2))), [Action::Stop(Alarm::Longer(ServerId(2)))]);
}

#[test]
fn a_replica_that_was_sealed_before_gives_the_content() {
    let mut play = Play::new();
    play.step(Event::Prepared(ServerId(1), Answer::Sealed(content(6))));
    play.step(Event::Prepared(ServerId(2), promise(6, Restarted)));
    let actions = play.after(GATHER);
    assert_eq!(fills(&actions), [(ServerId(1), ServerId(1)), (ServerId(2), ServerId(1))]);
}

prop_compose! {
    /// A chain whose members all had `acked` entries durable; at most one disk lied about it.
    fn chain()(
        acked in 0_u64..8,
        more in prop::array::uniform3(0_u64..3),
        standing in prop::array::uniform3(0_u8..3),
        committed in prop::array::uniform3(0_u64..8),
        liar in 0_usize..4,
        kept in 0_u64..8,
        answered in prop::array::uniform3(any::<bool>()),
    ) -> (u64, BTreeMap<ServerId, Answer>) {
        let mut answers = BTreeMap::new();
        for index in 0..3 {
            let mut standing = [Unbroken, Restarted, Damaged][usize::from(standing[index])];
            let mut last = acked + more[index];
            if index == liar {
                // A lie is found out only by a crash.
                standing = if standing == Unbroken { Restarted } else { standing };
                last = kept;
            }
            let answer = with(promise(last, standing), |promise| promise.committed_seq = Seq(committed[index].min(acked)));
            if answered[index] {
                answers.insert(MEMBERS[index], answer);
            }
        }
        (acked, answers)
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// The reason for the whole module.
    #[test]
    fn no_acknowledged_entry_is_lost_while_at_most_one_disk_lies((acked, answers) in chain()) {
        if let Decision::Take { content, source, .. } = decide(&MEMBERS, &answers) {
            prop_assert!(content.last_seq.0 >= acked, "sealed at {:?}", content);
            prop_assert!(matches!(answers[&source], Answer::Promised(promise) if promise.content == content));
        }
    }
}

#[test]
fn of_a_re_opened_chunk_a_shorter_log_is_no_prefix_and_is_not_compared() {
    let answers = [(1, promise(7, Unbroken)), (2, promise(5, Unbroken)), (3, promise(7, Unbroken))];
    let begin = |mut seal: Seal| {
        let mut actions = Vec::new();
        for (member, answer) in answers {
            actions = seal.step(Event::Prepared(ServerId(member), answer), MS);
        }
        actions
    };
    let compares = |actions: &[Action]| actions.iter().any(|action| matches!(action, Action::Compare { .. }));
    assert!(compares(&begin(Seal::new(MEMBERS.to_vec()))));
    let actions = begin(Seal::of_reopened(MEMBERS.to_vec()));
    assert!(!compares(&actions) && actions.iter().all(|action| matches!(action, Action::Fill { .. })), "{actions:?}");
}

#[test]
fn a_re_opened_chunk_is_never_abandoned() {
    let begin = |mut seal: Seal| {
        let mut actions = Vec::new();
        for member in MEMBERS {
            actions = seal.step(Event::Prepared(member, Answer::Unknown), MS);
        }
        actions
    };
    assert_eq!(begin(Seal::new(MEMBERS.to_vec())), [Action::Abandon]);
    assert_eq!(begin(Seal::of_reopened(MEMBERS.to_vec())), [], "it had content: somebody must come back with it");
}
