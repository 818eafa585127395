//! The original's command line and environment, in terms of ours.
//!
//! The original is one binary without subcommands: `-ServerType chunk_server -serverAddr …`, one
//! dash, and in containers `SERVER_TYPE` and friends. [`rewrite`] turns such a command line into
//! one of ours; [`alias_environment`] lets its variables stand in for `HERCULES_*` ones. Both are
//! pure: the environment comes in as a function.

use std::ffi::{OsStr, OsString};

use clap::Command;
use clap::builder::Resettable;

/// The original's flags and what each becomes; `None` is accepted and ignored.
const FLAGS: [(&str, Option<&str>); 7] = [
    ("ServerType", None),
    ("serverAddr", Some("--listen")),
    ("masterAddr", Some("--master")),
    ("redisAddr", None),
    ("gatewayAddr", Some("--listen")),
    ("rootDir", Some("--data-dir")),
    ("logLevel", Some("--log-level")),
];

/// The original's variables: which command reads it, the flag it stands for.
const VARIABLES: [(&str, &[&str], &str); 5] = [
    ("SERVER_ADDRESS", &["master", "chunkserver"], "listen"),
    ("GATEWAY_ADDR", &["gateway"], "listen"),
    ("ROOT_DIR", &["master", "chunkserver"], "data_dir"),
    ("MASTER_ADDR", &[], "master"),
    ("LOG_LEVEL", &[], "log_level"),
];

/// A command line, and what was ignored in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Rewritten {
    /// Ours, program name first.
    pub(crate) args: Vec<OsString>,
    /// One sentence for each thing that has no effect here.
    pub(crate) notes: Vec<String>,
}

/// Rewrites a command line of the original; one of ours comes back as it is.
///
/// It is the original's when it begins with one of its flags, or when `server_type` is set and no
/// argument is one of `subcommands`.
///
/// # Errors
///
/// A sentence for the user: an unknown server type, a flag without its value.
pub(crate) fn rewrite(
    args: Vec<OsString>,
    server_type: Option<&str>,
    subcommands: &[&str],
) -> Result<Rewritten, String> {
    let first = args.get(1);
    let ours = match first {
        None => server_type.is_none(),
        Some(first) if flag(first).is_some() => false,
        Some(first) if is_help(first) || !starts_with_dash(first) => true,
        Some(_) => server_type.is_none() || args.iter().any(|arg| subcommands.iter().any(|name| arg == *name)),
    };
    if ours {
        return Ok(Rewritten { args, notes: Vec::new() });
    }
    let mut args = args.into_iter();
    let program = args.next().unwrap_or_else(|| "hercules".into());
    let (pairs, rest) = split(args)?;
    let asked = pairs.iter().rev().find(|(name, _)| *name == "ServerType").map(|(_, value)| value.as_os_str());
    // The original's default when neither says anything.
    let asked = asked.or(server_type.map(OsStr::new)).unwrap_or(OsStr::new("chunk_server"));
    let role = role(asked)?;

    let mut out = Rewritten { args: vec![program, role.into()], notes: Vec::new() };
    for (name, value) in pairs {
        let ours = FLAGS.iter().find(|(known, _)| *known == name).and_then(|(_, ours)| *ours);
        match ours.filter(|_| applies(name, role)) {
            Some(ours) => out.args.extend([ours.into(), value]),
            None if name == "redisAddr" => out.notes.push("-redisAddr is ignored: no Redis is needed".into()),
            None if name == "ServerType" => {}
            None => out.notes.push(format!("-{name} is ignored: it has no meaning for a {role}")),
        }
    }
    out.args.extend(rest);
    Ok(out)
}

/// The subcommand for a server type.
///
/// # Errors
///
/// A sentence for the user, for any other word.
pub(crate) fn role(server_type: &OsStr) -> Result<&'static str, String> {
    match server_type.to_str().unwrap_or_default() {
        "master_server" | "master" => Ok("master"),
        "chunk_server" | "chunkserver" => Ok("chunkserver"),
        "gateway_server" | "gateway" => Ok("gateway"),
        _ => Err(format!(
            "server type `{}` is unknown; it is master_server, chunk_server or gateway_server",
            server_type.to_string_lossy()
        )),
    }
}

/// Lets the original's variables stand in: a flag whose own `HERCULES_*` variable is not set reads
/// the original's when that is set. Set to nothing counts as not set, as in compose files.
#[must_use]
pub(crate) fn alias_environment(command: Command, value: &impl Fn(&OsStr) -> Option<OsString>) -> Command {
    let name = command.get_name().to_owned();
    let is_set = |variable: &OsStr| value(variable).is_some_and(|value| !value.is_empty());
    command
        .mut_args(|arg| {
            let alias = VARIABLES.iter().find(|(variable, commands, id)| {
                let has_it = commands.is_empty() || commands.contains(&name.as_str());
                arg.get_id() == id && has_it && is_set(OsStr::new(variable))
            });
            match (arg.get_env().map(ToOwned::to_owned), alias) {
                (Some(own), _) if is_set(&own) => arg,
                (Some(_), Some((variable, _, _))) => arg.env(*variable),
                (Some(own), None) if value(&own).is_some() => arg.env(Resettable::Reset),
                _ => arg,
            }
        })
        .mut_subcommands(|subcommand| alias_environment(subcommand, value))
}

/// Which flags a role has a use for.
fn applies(name: &str, role: &str) -> bool {
    match name {
        "serverAddr" | "rootDir" => role != "gateway",
        "gatewayAddr" => role == "gateway",
        "masterAddr" => role != "master",
        _ => true,
    }
}

type Pairs = Vec<(&'static str, OsString)>;

/// The original's flags with their values (`-name value` or `-name=value`), and everything else.
fn split(args: impl Iterator<Item = OsString>) -> Result<(Pairs, Vec<OsString>), String> {
    let mut args = args;
    let mut pairs = Vec::new();
    let mut rest = Vec::new();
    while let Some(arg) = args.next() {
        match flag(&arg) {
            Some((name, Some(value))) => pairs.push((name, value.into())),
            Some((name, None)) => {
                let value = args.next().ok_or_else(|| format!("-{name} needs a value"))?;
                pairs.push((name, value));
            }
            None => rest.push(arg),
        }
    }
    Ok((pairs, rest))
}

/// One of the original's flags, with one dash or two as Go takes them, and the value after `=`.
fn flag(arg: &OsStr) -> Option<(&'static str, Option<&str>)> {
    let text = arg.to_str()?;
    let text = text.strip_prefix("--").or_else(|| text.strip_prefix('-'))?;
    let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
    FLAGS.iter().find(|(known, _)| *known == name).map(|(known, _)| (*known, value))
}

fn starts_with_dash(arg: &OsStr) -> bool {
    arg.as_encoded_bytes().first() == Some(&b'-')
}

fn is_help(arg: &OsStr) -> bool {
    ["-h", "--help", "-V", "--version"].iter().any(|known| arg == *known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    fn line(before: &str, server_type: Option<&str>) -> String {
        let rewritten = rewrite(args(before), server_type, &["ls", "put"]).unwrap();
        rewritten.args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_originals_flags_become_ours() {
        let cases = [
            (
                "h -ServerType master_server -serverAddr 0.0.0.0:9090 -rootDir d -logLevel info",
                "h master --listen 0.0.0.0:9090 --data-dir d --log-level info",
            ),
            (
                "h -ServerType chunk_server -serverAddr c1:8081 -masterAddr m:9090 -rootDir d",
                "h chunkserver --listen c1:8081 --master m:9090 --data-dir d",
            ),
            (
                "h -gatewayAddr 8089 -ServerType=gateway_server -masterAddr=m:9090",
                "h gateway --listen 8089 --master m:9090",
            ),
            ("h --serverAddr c1:8081", "h chunkserver --listen c1:8081"),
            ("h -logLevel debug --shards 2", "h chunkserver --log-level debug --shards 2"),
        ];
        for (before, after) in cases {
            assert_eq!(line(before, None), after);
        }
    }

    #[test]
    fn the_server_type_of_the_environment_is_the_role_when_there_is_no_subcommand() {
        assert_eq!(line("h", Some("master_server")), "h master");
        assert_eq!(line("h --print-config", Some("gateway_server")), "h gateway --print-config");
        assert_eq!(line("h -ServerType master_server", Some("chunk_server")), "h master");
        assert_eq!(line("h health", Some("master_server")), "h health");
        assert_eq!(line("h --help", Some("master_server")), "h --help");
        assert_eq!(line("h --log-level debug ls", Some("master_server")), "h --log-level debug ls");
    }

    #[test]
    fn our_own_command_lines_stay_as_they_are() {
        for same in ["h", "h --help", "h put a b", "h ls -r /", "h --log-level debug ls", "h --serveraddr x"] {
            assert_eq!(line(same, None), same);
        }
    }

    #[test]
    fn what_has_no_effect_is_said() {
        let rewritten =
            rewrite(args("h -ServerType gateway_server -redisAddr r:6379 -rootDir d -serverAddr a:1"), None, &[])
                .unwrap();
        assert_eq!(rewritten.args, args("h gateway"));
        assert_eq!(rewritten.notes.len(), 3, "{:?}", rewritten.notes);
        assert!(rewritten.notes[0].contains("no Redis is needed"));
    }

    #[test]
    fn a_wrong_type_or_a_missing_value_is_a_sentence() {
        assert!(rewrite(args("h"), Some("chunk"), &[]).unwrap_err().contains("master_server, chunk_server"));
        assert!(rewrite(args("h -ServerType nonsense"), None, &[]).is_err());
        assert!(rewrite(args("h -serverAddr"), None, &[]).unwrap_err().contains("needs a value"));
    }

    #[test]
    fn the_originals_variable_is_read_where_ours_is_not_set_and_the_role_has_it() {
        let tree = || {
            let listen = || clap::Arg::new("listen").long("listen").env("HERCULES_LISTEN");
            Command::new("h")
                .subcommand(Command::new("master").arg(listen()))
                .subcommand(Command::new("gateway").arg(listen()))
        };
        let reads = |command: &Command, role: &str| {
            let role = command.find_subcommand(role).unwrap();
            role.get_arguments().next().unwrap().get_env().map(ToOwned::to_owned)
        };
        let set = |pairs: &'static [(&'static str, &'static str)]| {
            move |name: &OsStr| pairs.iter().find(|(set, _)| name == *set).map(|(_, value)| OsString::from(value))
        };
        let aliased = alias_environment(tree(), &set(&[("SERVER_ADDRESS", "a:1")]));
        assert_eq!(reads(&aliased, "master"), Some("SERVER_ADDRESS".into()));
        assert_eq!(reads(&aliased, "gateway"), Some("HERCULES_LISTEN".into()));
        let both = alias_environment(tree(), &set(&[("SERVER_ADDRESS", "a:1"), ("HERCULES_LISTEN", "b:1")]));
        assert_eq!(reads(&both, "master"), Some("HERCULES_LISTEN".into()));
        let empty = alias_environment(tree(), &set(&[("SERVER_ADDRESS", "a:1"), ("HERCULES_LISTEN", "")]));
        assert_eq!(reads(&empty, "master"), Some("SERVER_ADDRESS".into()));
        assert_eq!(reads(&empty, "gateway"), None);
    }
}
