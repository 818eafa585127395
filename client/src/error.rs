//! Errors of the file API, and [`Outcome`], what a single attempt inside the client gives.

use std::fmt;

use wire::{Fault, Kind};

/// Why a call failed, after every repeat that made sense. Context in the text, control flow by [`Error::kind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct Error {
    kind: Kind,
    text: String,
}

impl Error {
    /// An error of this kind, with a text for people.
    #[must_use]
    pub fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into() }
    }

    /// What the caller can do about it.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Puts what was being done in front of the text.
    #[must_use]
    pub fn context(self, what: impl fmt::Display) -> Self {
        Self { text: format!("{what}: {}", self.text), ..self }
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Self {
        Self { kind: fault.kind, text: fault.text }
    }
}

/// What one attempt gives: the answer, or a fault. Trouble of the connection is a fault too:
/// [`unreachable`] when nothing was sent, [`lost`] when the outcome is unknown.
pub(crate) type Outcome<T> = Result<T, Fault>;

/// Nothing was sent: it has not happened.
pub(crate) fn unreachable(text: impl Into<String>) -> Fault {
    Fault::new(Kind::Unavailable, text)
}

/// Something was sent and no answer came: it may have happened.
pub(crate) fn lost(text: impl Into<String>) -> Fault {
    Fault::new(Kind::Unknown, text)
}
