//! Placement: which servers get a new chunk. A pure function of what is known and one random number.

use wire::ServerId;

/// A server that may get a chunk: alive, with room.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which.
    pub server: ServerId,
    /// Its failure zone; empty zones differ from nobody's.
    pub zone: String,
    /// Bytes free for new chunks.
    pub free: u64,
    /// Chunks it was given in the last seconds: its disk will be busy with them.
    pub recent: u64,
}

/// Chooses up to `wanted` servers, head first; `None` when there are fewer than `min`.
///
/// Zones first, then two random choices by free space per recent chunk: an empty server fills faster
/// than the others and is not run over.
#[must_use]
pub fn choose(candidates: &[Candidate], wanted: usize, min: usize, random: u64) -> Option<Vec<ServerId>> {
    let mut rest: Vec<&Candidate> = candidates.iter().collect();
    let mut chosen: Vec<&Candidate> = vec![];
    let mut random = random;
    while chosen.len() < wanted && !rest.is_empty() {
        let new_zone = |candidate: &&Candidate| {
            candidate.zone.is_empty() || chosen.iter().all(|other| other.zone != candidate.zone)
        };
        let pool: Vec<&Candidate> = if rest.iter().any(new_zone) {
            rest.iter().copied().filter(|candidate| new_zone(candidate)).collect()
        } else {
            rest.clone()
        };
        let best = better(pick(&pool, &mut random)?, pick(&pool, &mut random)?);
        rest.retain(|candidate| candidate.server != best.server);
        chosen.push(best);
    }
    (chosen.len() >= min.max(1)).then(|| chosen.iter().map(|candidate| candidate.server).collect())
}

fn pick<'a>(pool: &[&'a Candidate], random: &mut u64) -> Option<&'a Candidate> {
    // SplitMix64: one seed gives as many independent draws as there are chunks to place.
    *random = random.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut x = *random;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^= x >> 31;
    let index = x % u64::try_from(pool.len()).ok().filter(|len| *len > 0)?;
    pool.get(usize::try_from(index).ok()?).copied()
}

fn better<'a>(one: &'a Candidate, other: &'a Candidate) -> &'a Candidate {
    // free / (recent + 1), without dividing.
    let worth = |a: &Candidate, b: &Candidate| u128::from(a.free) * (u128::from(b.recent) + 1);
    if worth(other, one) > worth(one, other) { other } else { one }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn candidate(server: u32, zone: &str, free: u64) -> Candidate {
        Candidate { server: ServerId(server), zone: zone.into(), free, recent: 0 }
    }

    #[test]
    fn two_of_three_servers_are_enough_and_one_is_not() {
        let servers = [candidate(1, "", 10), candidate(2, "", 10)];
        assert_eq!(choose(&servers, 3, 2, 7).map(|chosen| chosen.len()), Some(2));
        assert_eq!(choose(&servers[..1], 3, 2, 7), None);
        assert_eq!(choose(&[], 3, 0, 7), None);
    }

    #[test]
    fn an_emptier_server_gets_more_but_not_everything() {
        let mut servers: Vec<_> = (1..=9).map(|server| candidate(server, "", 100)).collect();
        servers.push(candidate(10, "", 1000));
        let mut counts = BTreeMap::<ServerId, u32>::new();
        for random in 0..3000 {
            choose(&servers, 1, 1, random).unwrap().iter().for_each(|server| *counts.entry(*server).or_default() += 1);
        }
        let new = counts[&ServerId(10)];
        assert!((450..700).contains(&new), "two choices in ten: a fifth, not a tenth and not all: {new}");
    }

    #[test]
    fn what_was_just_given_counts_against_a_server() {
        let mut busy = candidate(1, "", 100);
        busy.recent = 9;
        let idle = candidate(2, "", 99);
        assert_eq!(better(&busy, &idle), &idle);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn members_differ_and_zones_are_used_up_before_any_is_used_twice(
            zones in prop::collection::vec(0_u8..4, 0..12),
            wanted in 1_usize..5,
            random in any::<u64>(),
        ) {
            let servers: Vec<_> = zones.iter().zip(1..).map(|(zone, server)| candidate(server, &format!("z{zone}"), 1)).collect();
            let Some(chosen) = choose(&servers, wanted, 1, random) else {
                prop_assert!(servers.is_empty());
                return Ok(());
            };
            prop_assert_eq!(chosen.len(), wanted.min(servers.len()));
            let unique: std::collections::BTreeSet<_> = chosen.iter().collect();
            prop_assert_eq!(unique.len(), chosen.len());
            let zone = |server: &ServerId| servers[server.0 as usize - 1].zone.clone();
            let used: std::collections::BTreeSet<_> = chosen.iter().map(zone).collect();
            let all: std::collections::BTreeSet<_> = servers.iter().map(|server| server.zone.clone()).collect();
            prop_assert_eq!(used.len(), chosen.len().min(all.len()));
        }
    }
}
