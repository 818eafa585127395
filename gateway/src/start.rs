//! Why a gateway did not start, with the remedy and the exit code.

use std::fmt;

/// The gateway did not start; nothing was changed.
#[derive(Debug)]
pub struct StartError {
    /// What is wrong, naming the value.
    pub what: String,
    /// What to do about it.
    pub remedy: String,
    /// Exit code for the process: [`StartError::CONFIG`] or [`StartError::UNAVAILABLE`].
    pub exit: u8,
}

impl StartError {
    /// `EX_CONFIG`: the machine or the configuration must change.
    pub const CONFIG: u8 = 78;
    /// `EX_UNAVAILABLE`: something needed is not there now; trying again may help.
    pub const UNAVAILABLE: u8 = 69;

    pub(crate) fn config(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), exit: Self::CONFIG }
    }

    pub(crate) fn unavailable(what: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { what: what.into(), remedy: remedy.into(), exit: Self::UNAVAILABLE }
    }
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n  remedy: {}", self.what, self.remedy)
    }
}

impl std::error::Error for StartError {}
