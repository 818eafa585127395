//! Deliberate bugs that the tests must find. They exist in test builds only, and with the feature
//! `canary`, which is for tests on real disks.

/// Which bugs are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Canary {
    /// D1: operations are answered before their flush.
    pub(crate) answer_before_the_flush: bool,
    /// D7: ranges that are not durably written get no sync of their slot.
    pub(crate) skip_the_slot_sync: bool,
}

#[cfg(test)]
impl Canary {
    /// No bug is in.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}

#[cfg(feature = "canary")]
impl<R: crate::runtime::Runtime> super::Store<R> {
    /// Switches a bug on by its name; false when there is none of that name.
    pub fn plant(&self, name: &str) -> bool {
        let mut canary = self.inner.canary.get();
        match name {
            "answer_before_the_flush" => canary.answer_before_the_flush = true,
            "skip_the_slot_sync" => canary.skip_the_slot_sync = true,
            _ => return false,
        }
        self.inner.canary.set(canary);
        true
    }
}
