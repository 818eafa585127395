//! A map that forgets what was used longest ago when it is full.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;

/// At most `max` entries. Making room forgets an eighth at once, so that it is cheap on average.
#[derive(Debug)]
pub(crate) struct Bounded<K, V> {
    entries: HashMap<K, (u64, V)>,
    uses: u64,
    max: usize,
}

impl<K: Hash + Eq + Clone, V> Bounded<K, V> {
    pub(crate) fn new(max: usize) -> Self {
        Self { entries: HashMap::new(), uses: 0, max }
    }

    pub(crate) fn get<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
    {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.0 = self.uses;
        Some(&mut entry.1)
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        if self.entries.len() >= self.max && !self.entries.contains_key(&key) {
            let mut ages: Vec<u64> = self.entries.values().map(|(used, _)| *used).collect();
            let (_, oldest_kept, _) = ages.select_nth_unstable(self.max / 8);
            let oldest_kept = *oldest_kept;
            self.entries.retain(|_, (used, _)| *used > oldest_kept);
        }
        self.uses += 1;
        self.entries.insert(key, (self.uses, value));
    }

    pub(crate) fn remove<Q: Hash + Eq + ?Sized>(&mut self, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
    {
        self.entries.remove(key).map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes_first_and_the_bound_holds() {
        let mut map = Bounded::new(16);
        for key in 0..16 {
            map.insert(key, key);
        }
        assert_eq!(map.get(&0), Some(&mut 0));
        map.insert(99, 99);
        assert!(map.entries.len() <= 16);
        let mut has = |key| map.get(&key).is_some();
        assert!(!has(1) && !has(2), "the oldest are gone");
        assert!(has(0) && has(15) && has(99), "what was used or made lately stays");
        for key in 100..10_000 {
            map.insert(key, key);
            assert!(map.entries.len() <= 16);
        }
    }
}
