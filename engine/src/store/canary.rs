//! Deliberate bugs that the tests must find. They exist in test builds only.

/// Which bugs are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Canary {
    /// D1: operations are answered before their flush.
    pub(crate) answer_before_the_flush: bool,
    /// D7: ranges that are not durably written get no sync of their slot.
    pub(crate) skip_the_slot_sync: bool,
}

impl Canary {
    /// No bug is in.
    pub(crate) fn is_none(self) -> bool {
        self == Self::default()
    }
}
