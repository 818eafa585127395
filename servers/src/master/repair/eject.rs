//! Which deaths are believed. When many servers fall silent at once it is the network, and copying
//! everything they hold would bring the rest down. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use wire::ServerId;

/// Deaths are counted over this time.
const WINDOW: Duration = Duration::from_secs(600);
/// So many percent of the servers may be ejected in it, and always one.
const PERCENT: usize = 5;

/// Servers whose death is believed, and since when.
#[derive(Debug, Default)]
pub(crate) struct Ejected(BTreeMap<ServerId, Duration>);

impl Ejected {
    /// Takes in who is dead now, of `known` servers; gives those that are believed from now on, and how
    /// many are not.
    pub(crate) fn look(&mut self, dead: &[ServerId], known: usize, now: Duration) -> (Vec<ServerId>, usize) {
        // One that is back, or was alive in between, is judged anew; the budget it used is not given back.
        let budget = (known * PERCENT / 100).max(1);
        let recent = self.0.values().filter(|at| now.saturating_sub(**at) < WINDOW).count();
        self.0.retain(|server, at| dead.contains(server) || now.saturating_sub(*at) < WINDOW);
        let waiting = dead.iter().copied().filter(|server| !self.0.contains_key(server));
        let waiting: Vec<ServerId> = waiting.collect();
        let (new, held) = waiting.split_at(waiting.len().min(budget.saturating_sub(recent)));
        self.0.extend(new.iter().map(|server| (*server, now)));
        (new.to_vec(), held.len())
    }

    /// Whether the death of this server, if it is dead, is believed.
    pub(crate) fn has(&self, server: ServerId) -> bool {
        self.0.contains_key(&server)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn ids(servers: impl IntoIterator<Item = u32>) -> Vec<ServerId> {
        servers.into_iter().map(ServerId).collect()
    }

    #[test]
    fn of_a_small_cluster_one_death_is_believed_in_ten_minutes() {
        let mut ejected = Ejected::default();
        assert_eq!(ejected.look(&ids([3]), 5, SECOND), (ids([3]), 0));
        assert_eq!(ejected.look(&ids([3, 4]), 5, SECOND * 2), (vec![], 1), "two at once: the network");
        assert!(ejected.has(ServerId(3)) && !ejected.has(ServerId(4)));
        assert_eq!(ejected.look(&ids([3, 4]), 5, SECOND * 601), (ids([4]), 0));
    }

    #[test]
    fn a_server_that_flaps_uses_the_budget_once_and_others_wait_for_it() {
        let mut ejected = Ejected::default();
        ejected.look(&ids([1]), 3, SECOND);
        assert_eq!(ejected.look(&[], 3, SECOND * 60), (vec![], 0));
        assert_eq!(ejected.look(&ids([1]), 3, SECOND * 120), (vec![], 0));
        assert!(ejected.has(ServerId(1)), "it was believed a moment ago");
        assert_eq!(ejected.look(&ids([2]), 3, SECOND * 130), (vec![], 1));
        assert_eq!(ejected.look(&ids([2]), 3, SECOND * 700), (ids([2]), 0));
        assert!(!ejected.has(ServerId(1)));
    }

    #[test]
    fn of_a_hundred_servers_five_deaths_are_believed() {
        let mut ejected = Ejected::default();
        let (new, held) = ejected.look(&ids(1..=40), 100, SECOND);
        assert_eq!((new.len(), held), (5, 35));
    }
}
