//! `--print-config`: every setting of a role, its value, and where that came from.

use std::ffi::OsString;

use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, Command};
use serde::Serialize;

use crate::output::table;

/// One setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    /// Its flag, without dashes.
    pub(crate) name: String,
    /// What holds; empty when nothing was said and there is no fixed default.
    pub(crate) value: String,
    /// `flag`, `default`, or `environment VARIABLE`.
    pub(crate) source: String,
}

/// Arguments that say what to do rather than how.
pub(crate) const ACTIONS: [&str; 6] = ["print_config", "json", "help", "version", "announce", "parent_pipe"];

/// The settings of one parsed command, in the order of its help.
#[must_use]
pub(crate) fn of(command: &Command, matches: &ArgMatches) -> Vec<Setting> {
    let shown = command.get_arguments().filter(|arg| !ACTIONS.contains(&arg.get_id().as_str()));
    shown.map(|arg| setting(arg, matches)).collect()
}

fn setting(arg: &Arg, matches: &ArgMatches) -> Setting {
    let id = arg.get_id().as_str();
    let given: Vec<OsString> = matches.get_raw(id).into_iter().flatten().map(ToOwned::to_owned).collect();
    let value = given.iter().map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",");
    let source = match matches.value_source(id) {
        Some(ValueSource::CommandLine) => "flag".into(),
        Some(ValueSource::EnvVariable) => {
            format!("environment {}", arg.get_env().unwrap_or_default().to_string_lossy())
        }
        _ => "default".into(),
    };
    Setting { name: arg.get_long().unwrap_or(id).into(), value, source }
}

/// Settings that follow from others when they are not given, put in their place.
pub(crate) fn derive(settings: &mut [Setting], derived: &[(&str, String)]) {
    for (name, value) in derived {
        if let Some(setting) = settings.iter_mut().find(|setting| setting.name == *name && setting.value.is_empty()) {
            setting.value.clone_from(value);
        }
    }
}

/// As text: one setting a line.
#[must_use]
pub(crate) fn text(settings: &[Setting]) -> String {
    let rows: Vec<Vec<String>> = settings
        .iter()
        .map(|setting| vec![setting.name.clone(), format!("= {:?}", setting.value), format!("# {}", setting.source)])
        .collect();
    table(&rows, &[])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        Command::new("role")
            .arg(Arg::new("listen").long("listen").env("SETTINGS_TEST_LISTEN").default_value("a:1"))
            .arg(Arg::new("shards").long("shards").env("SETTINGS_TEST_SHARDS").default_value("0"))
            .arg(Arg::new("path").long("path").env("PATH"))
            .arg(Arg::new("admin").long("admin").env("SETTINGS_TEST_ADMIN"))
            .arg(Arg::new("print_config").long("print-config"))
    }

    #[test]
    fn every_setting_says_where_its_value_came_from() {
        let matches = command().get_matches_from(["role", "--shards", "4"]);
        let mut settings = of(&command(), &matches);
        derive(&mut settings, &[("admin", "a:1001".into()), ("listen", "never".into())]);
        let told: Vec<(&str, &str, &str)> =
            settings.iter().map(|s| (s.name.as_str(), s.value.as_str(), s.source.as_str())).collect();
        let path = std::env::var("PATH").unwrap();
        assert_eq!(
            told,
            [
                ("listen", "a:1", "default"),
                ("shards", "4", "flag"),
                ("path", path.as_str(), "environment PATH"),
                ("admin", "a:1001", "default"),
            ]
        );
        assert!(text(&settings).starts_with("listen  = \"a:1\""), "{}", text(&settings));
    }
}
