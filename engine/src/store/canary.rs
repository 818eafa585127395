//! Deliberate bugs that the tests must find, and counted branches that they must reach. Bugs can be planted in
//! test builds and with the feature `canary` (for programs that test a store on real disks); elsewhere
//! [`weakened!`] is `false`. [`sometimes!`] counts in test builds only.

/// True while this bug is planted in this thread. A simulation is one thread, so pure functions need no
/// argument for it.
#[cfg(any(test, feature = "canary"))]
macro_rules! weakened {
    ($bug:ident) => {
        $crate::store::canary::planted() == Some($crate::store::canary::Bug::$bug)
    };
}
#[cfg(not(any(test, feature = "canary")))]
macro_rules! weakened {
    ($bug:ident) => {
        $crate::store::canary::never(stringify!($bug))
    };
}

/// What [`weakened!`] is where nothing can be planted.
#[cfg(not(any(test, feature = "canary")))]
#[inline(always)]
pub(crate) const fn never(_bug: &str) -> bool {
    false
}

/// Counts a branch that the campaigns must reach. The name goes into the tables of the campaigns.
#[cfg(test)]
macro_rules! sometimes {
    ($name:literal) => {{
        static POINT: $crate::runtime::sim::campaign::Point = $crate::runtime::sim::campaign::Point::new($name);
        // Only what sound code does counts.
        if $crate::store::canary::planted().is_none() {
            POINT.hit();
        }
    }};
}
#[cfg(not(test))]
macro_rules! sometimes {
    ($name:literal) => {};
}

pub(crate) use {sometimes, weakened};

#[cfg(test)]
pub(crate) use planting::Planted;
#[cfg(feature = "canary")]
pub use planting::plant;
#[cfg(any(test, feature = "canary"))]
pub(crate) use planting::{Bug, planted};

/// Whether any bug is planted in this thread.
#[cfg(any(test, feature = "canary"))]
pub(crate) fn is_weakened() -> bool {
    planted().is_some()
}

/// Whether any bug is planted in this thread.
#[cfg(not(any(test, feature = "canary")))]
pub(crate) const fn is_weakened() -> bool {
    false
}

#[cfg(any(test, feature = "canary"))]
mod planting {
    use std::cell::Cell;

    macro_rules! bugs {
        ($($name:ident, $number:literal, $what:literal;)*) => {
            /// A planted bug.
            #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
            pub(crate) enum Bug { $(#[doc = $what] $name,)* }

            impl Bug {
                /// Every one.
                pub(crate) const ALL: &[Self] = &[$(Self::$name,)*];

                /// Its number in the table of docs/testing.md.
                pub(crate) fn number(self) -> &'static str {
                    match self { $(Self::$name => $number,)* }
                }

                /// What is wrong.
                #[cfg(test)]
                pub(crate) fn what(self) -> &'static str {
                    match self { $(Self::$name => $what,)* }
                }
            }
        };
    }

    bugs! {
        AnswerBeforeFlush, "D1", "operations are answered before their flush";
        OverwriteInPlace, "D2", "overwrites go in place at once, without images";
        ImagesBeforeFlush, "D3", "images go in place before the journal has them";
        TailInPlace, "D4", "the tail block is rewritten in place by every append";
        NoFlushAfterRedo, "D5", "no flush between what goes in place and the header";
        OneCheckpointCopy, "D6", "one checkpoint copy, overwritten";
        NoSlotSync, "D7", "unwritten extents get no sync of their slot";
        DataNotChecked, "D8", "records are accepted without checking their data";
        ChainNotChecked, "D9", "no check of boot_gen and prev_crc";
        EveryWriterChecked, "D10", "every APPEND is verified, not the last writer of a block";
        OneFlushForAll, "D11", "header and children in one flush";
        OneRootCopy, "D12", "only one copy of DISK, RING and HDR";
        RingBeforeHeaders, "D13", "RING moves on before the headers are durable";
        FillCounts, "D14", "FILL counts without its SEAL";
        PartsCount, "D15", "parts of an operation count one by one";
        LsnNotRebased, "D16", "LSNs are not rebased when the rings change";
        TailInPlaceAtSeal, "D17", "the tail goes in place at SEAL, not at SEALED";
        CurrentRootFirst, "D18", "the current root copy is overwritten first";
        ChildrenOverwritten, "D19", "children are overwritten under the current header";
        RootsNotHealed, "D20", "roots are not healed at recovery";
        PastHeldBack, "D21", "a checkpoint goes past held-back records";
        SlotReusedEarly, "D22", "a slot is used again before FREE and CREATE are durable";
        FlushRepeated, "E1", "a failed flush is repeated";
        ShortIsWhole, "E2", "a short write is taken as complete";
        MergedUnverified, "E3", "overwrites are merged into a block that was not verified";
        ChecksumsRecomputed, "E4", "a bad checksum page is computed again from local data";
        CutInProvenJournal, "E11", "the journal is cut where a later record proves a flush";
        NoSyncOfFileSystem, "E12", "recovery decides without syncfs";
        TwoWritesInFlight, "E13", "two writes in flight to one block";
        FlushesApart, "E14", "a flush counts by itself, though another one failed meanwhile";
    }

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// The bug of this thread.
    pub(crate) fn planted() -> Option<Bug> {
        PLANTED.get()
    }

    /// Plants a bug in this thread by its number; false when there is none.
    #[cfg(feature = "canary")]
    pub fn plant(number: &str) -> bool {
        let bug = Bug::ALL.iter().copied().find(|bug| bug.number() == number);
        PLANTED.set(bug);
        bug.is_some()
    }

    /// Plants a bug in this thread for as long as it lives.
    #[cfg(test)]
    pub(crate) struct Planted(());

    #[cfg(test)]
    impl Planted {
        pub(crate) fn new(bug: Option<Bug>) -> Self {
            PLANTED.set(bug);
            Self(())
        }
    }

    #[cfg(test)]
    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
}
