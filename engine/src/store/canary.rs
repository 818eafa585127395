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

thread_local! {
    /// What stores that start on this thread have.
    static PLANTED: std::cell::Cell<Canary> = std::cell::Cell::default();
}

/// The bugs of this thread.
pub(crate) fn planted() -> Canary {
    PLANTED.get()
}

/// Plants a bug in this thread, before its store starts, by its number in `docs/testing.md`; false when there
/// is none of that number.
#[cfg(feature = "canary")]
pub fn plant(number: &str) -> bool {
    let mut canary = planted();
    match number {
        "D1" => canary.answer_before_the_flush = true,
        "D7" => canary.skip_the_slot_sync = true,
        _ => return false,
    }
    PLANTED.set(canary);
    true
}
