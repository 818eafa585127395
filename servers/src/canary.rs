//! Deliberate bugs of the protocol that the simulation of a cluster must find, and counted branches that it
//! must reach. Both exist in test builds of this crate only; elsewhere [`weakened!`] is `false`.

/// True while this bug is planted in this thread. A simulation is one thread, so pure functions need no
/// argument for it.
#[cfg(test)]
macro_rules! weakened {
    ($bug:ident) => {
        $crate::canary::planted() == Some($crate::canary::Bug::$bug)
    };
}
#[cfg(not(test))]
macro_rules! weakened {
    ($bug:ident) => {
        $crate::canary::never(stringify!($bug))
    };
}

/// What [`weakened!`] is where nothing can be planted.
#[cfg(not(test))]
#[inline(always)]
pub(crate) const fn never(_bug: &str) -> bool {
    false
}

/// Counts a branch that the simulation must reach.
#[cfg(test)]
macro_rules! sometimes {
    ($name:literal) => {{
        static POINT: engine::runtime::sim::campaign::Point = engine::runtime::sim::campaign::Point::new($name);
        // Only what sound code does counts.
        if $crate::canary::planted().is_none() {
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
pub(crate) use testing::{Bug, Planted, planted};

#[cfg(test)]
mod testing {
    use std::cell::Cell;

    macro_rules! bugs {
        ($($name:ident, $number:literal, $budget:literal, $what:literal;)*) => {
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

                /// Most seeds that finding it may take.
                pub(crate) fn budget(self) -> u64 {
                    match self { $(Self::$name => $budget,)* }
                }

                /// What is wrong.
                pub(crate) fn what(self) -> &'static str {
                    match self { $(Self::$name => $what,)* }
                }
            }
        };
    }

    bugs! {
        HeadOnly, "P3", 2000, "OK when the head alone is durable";
        BeforeDurable, "P4", 2000, "a member says durable when it has an entry in memory";
        NotInherited, "P5", 2000, "the next chunk does not inherit the table";
        DirtyReads, "P6", 2000, "members serve bytes that they do not know to be committed";
        ShortestWins, "P7", 2000, "the shortest log becomes the chunk";
        AnyAnswerSeals, "P8", 2000, "any single answer may seal";
        GapsAdmitted, "P9", 2000, "the head admits operations with a gap before them";
        AnswerBeforeLog, "E8", 2000, "the master answers before its log is flushed";
    }

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// The bug of this thread.
    pub(crate) fn planted() -> Option<Bug> {
        PLANTED.get()
    }

    /// Plants a bug in this thread for as long as it lives.
    pub(crate) struct Planted(());

    impl Planted {
        pub(crate) fn new(bug: Option<Bug>) -> Self {
            PLANTED.set(bug);
            Self(())
        }
    }

    impl Drop for Planted {
        fn drop(&mut self) {
            PLANTED.set(None);
        }
    }
}
