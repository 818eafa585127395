//! How a command ends: exit codes that scripts can tell apart, and messages with the remedy.

use std::fmt;
use std::io;
use std::process::ExitCode;

use servers::start::StartError;
use wire::Kind;

/// Exit codes; those above 64 are of `sysexits.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    /// Done.
    Done = 0,
    /// It did not work, and none of the others says why.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// No such file, directory or chunk (`EX_NOINPUT`).
    NotFound = 66,
    /// Something needed is not there: no master, no server (`EX_UNAVAILABLE`).
    Unavailable = 69,
    /// It may work in a moment (`EX_TEMPFAIL`).
    TryAgain = 75,
    /// The machine or the configuration must change (`EX_CONFIG`).
    Config = 78,
}

/// The table of exit codes for `--help`.
pub(crate) const HELP: &str = "Exit codes:
  0   done
  1   failed
  2   wrong command line
  66  no such file, directory or chunk
  69  master or servers are not reachable
  75  busy: try again
  78  the machine or the configuration must change";

/// Why a command failed, for the user.
#[derive(Debug)]
pub(crate) struct Failure {
    /// For scripts.
    pub(crate) code: u8,
    /// What is wrong, naming the value; empty when everything has been said already.
    pub(crate) what: String,
    /// What to do about it; may be empty.
    pub(crate) remedy: String,
}

impl Failure {
    /// A failure without a remedy.
    #[must_use]
    pub(crate) fn new(code: Code, what: impl Into<String>) -> Self {
        Self { code: code as u8, what: what.into(), remedy: String::new() }
    }

    /// The end of a command that has told its result already.
    #[must_use]
    pub(crate) fn silent(code: Code) -> Self {
        Self::new(code, "")
    }

    /// The same with a remedy.
    #[must_use]
    pub(crate) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = remedy.into();
        self
    }

    /// The same, saying first what was being done.
    #[must_use]
    pub(crate) fn context(mut self, what: impl fmt::Display) -> Self {
        if !self.what.is_empty() {
            self.what = format!("{what}: {}", self.what);
        }
        self
    }

    /// Tells the user, and gives the exit code.
    #[must_use]
    pub(crate) fn report(&self) -> ExitCode {
        if !self.what.is_empty() {
            eprintln!("hercules: {self}");
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if self.remedy.is_empty() { Ok(()) } else { write!(f, "\n  remedy: {}", self.remedy) }
    }
}

impl From<client::Error> for Failure {
    fn from(error: client::Error) -> Self {
        Self::new(code(error.kind()), error.to_string()).remedy(remedy(error.kind()))
    }
}

impl From<wire::Fault> for Failure {
    fn from(fault: wire::Fault) -> Self {
        Self::new(code(fault.kind), fault.text)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self { code: error.exit, what: error.what, remedy: error.remedy }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whoever read our output has seen enough: `hercules ls | head`.
            io::ErrorKind::BrokenPipe => Self::silent(Code::Done),
            io::ErrorKind::NotFound => Self::new(Code::NotFound, error.to_string()),
            _ => Self::new(Code::Failed, error.to_string()),
        }
    }
}

fn code(kind: Kind) -> Code {
    match kind {
        Kind::NotFound => Code::NotFound,
        Kind::Invalid => Code::Usage,
        Kind::Unauthorized => Code::Config,
        Kind::Unavailable | Kind::NotLeader => Code::Unavailable,
        Kind::Overloaded | Kind::Unknown | Kind::NotCommitted | Kind::StaleEpoch | Kind::NotPrimary | Kind::Sealed => {
            Code::TryAgain
        }
        _ => Code::Failed,
    }
}

fn remedy(kind: Kind) -> &'static str {
    match kind {
        Kind::Unavailable | Kind::NotLeader => "`hercules status` shows which servers answer; then repeat",
        Kind::Overloaded | Kind::NotCommitted | Kind::StaleEpoch | Kind::NotPrimary | Kind::Sealed => {
            "the cluster is busy or changing: repeat in a moment"
        }
        Kind::Unknown => "it may have happened: look with `hercules stat`, then repeat",
        Kind::Unauthorized => {
            "name the file with the cluster's key by --cluster-key-file or HERCULES_CLUSTER_KEY_FILE; \
             `hercules dev` keeps it in its data folder as cluster.key"
        }
        Kind::NoSpace => "delete files, or add a chunkserver",
        Kind::Corrupt => "`hercules stat --chunks` compares the replicas",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_that_scripts_treat_differently_have_different_codes() {
        let of = |kind| Failure::from(client::Error::new(kind, "x")).code;
        let cases = [
            (Kind::NotFound, 66),
            (Kind::Invalid, 2),
            (Kind::Unavailable, 69),
            (Kind::Overloaded, 75),
            (Kind::Unknown, 75),
            (Kind::Exists, 1),
            (Kind::NoSpace, 1),
            (Kind::Unauthorized, 78),
        ];
        for (kind, code) in cases {
            assert_eq!(of(kind), code, "{kind:?}");
        }
        assert_eq!(Failure::from(StartError::config("a", "b")).code, 78);
        assert_eq!(Failure::from(StartError::unavailable("a", "b")).code, 69);
    }

    #[test]
    fn the_help_names_every_code() {
        let codes =
            [Code::Done, Code::Failed, Code::Usage, Code::NotFound, Code::Unavailable, Code::TryAgain, Code::Config];
        assert_eq!(HELP.lines().count(), codes.len() + 1);
        for code in codes {
            assert!(HELP.lines().any(|line| line.split_whitespace().next() == Some(&(code as u8).to_string())));
        }
    }

    #[test]
    fn a_message_carries_its_context_and_its_remedy() {
        let failure = Failure::new(Code::Failed, "no space").context("put a").remedy("delete something");
        assert_eq!(failure.to_string(), "put a: no space\n  remedy: delete something");
        assert_eq!(Failure::silent(Code::Failed).context("put a").what, "");
    }
}
