//! Logs: rows on standard error, as text for people or as JSON.

use std::io::IsTerminal;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// What is logged, and how.
#[derive(Args, Clone, Debug)]
pub(crate) struct Logging {
    /// Least level that is logged: error, warn, info, debug, trace, or a filter such as info,engine=debug
    #[arg(long, global = true, env = "HERCULES_LOG_LEVEL", value_parser = Level::from_str, help_heading = "Logging")]
    log_level: Option<Level>,
    /// How log lines look
    #[arg(long, global = true, env = "HERCULES_LOG_FORMAT", default_value = "text", help_heading = "Logging")]
    log_format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people, coloured on a terminal.
    Text,
    /// One object per line.
    Json,
}

/// A checked filter.
#[derive(Clone, Debug)]
pub(crate) struct Level(String);

impl FromStr for Level {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let lower = text.trim().to_ascii_lowercase();
        // `warning` is what many other programs call it.
        let level = lower.replace("warning", "warn");
        let single = ["off", "error", "warn", "info", "debug", "trace"].contains(&level.as_str());
        let filter = level.contains('=') && EnvFilter::try_new(&level).is_ok();
        if single || filter {
            return Ok(Self(level));
        }
        Err("it is error, warn, info, debug, trace, or a filter such as info,engine=debug".into())
    }
}

impl Logging {
    /// Installs the logger; `default` is the level when none is asked for.
    pub(crate) fn install(&self, default: &str) {
        let level = self.log_level.as_ref().map_or(default, |level| level.0.as_str());
        let subscriber = tracing_subscriber::fmt()
            .with_env_filter(EnvFilter::new(level))
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        // The first logger stays; the crate bridges what libraries log through `log` as well.
        let installed = match self.log_format {
            Format::Text => subscriber.try_init(),
            Format::Json => subscriber.json().flatten_event(true).try_init(),
        };
        if let Err(error) = installed {
            eprintln!("hercules: logging stays as it was: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_taken_in_any_case_and_nonsense_is_refused() {
        for (text, level) in [("INFO", "info"), ("Warning", "warn"), ("info,engine=debug", "info,engine=debug")] {
            assert_eq!(text.parse::<Level>().unwrap().0, level);
        }
        for text in ["", "loud", "infos", "engine=loud", "="] {
            assert!(text.parse::<Level>().is_err(), "{text}");
        }
    }
}
