//! Which servers a local cluster has, and how each is called: no I/O.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use engine::runtime::Backend;

use super::Dev;

/// First port of the chunkservers.
const CHUNKSERVER_PORT: u16 = 8081;

/// A local cluster.
#[derive(Debug)]
pub(super) struct Plan {
    dir: PathBuf,
    key_file: PathBuf,
    chunkservers: u16,
    replicas: u32,
    shards: u32,
    runtime: Option<Backend>,
    journal: Option<u64>,
    ephemeral: bool,
}

/// One server: its name, and its command line after the program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Spec {
    pub(super) name: String,
    /// Its place in the row of colours.
    pub(super) number: usize,
    pub(super) dir: Option<PathBuf>,
    pub(super) args: Vec<OsString>,
}

impl Plan {
    pub(super) fn new(dev: &Dev, dir: PathBuf, key_file: PathBuf, cores: u32) -> Self {
        let count = u32::from(dev.chunkservers);
        Self {
            dir,
            key_file,
            chunkservers: dev.chunkservers,
            replicas: dev.replicas.unwrap_or(count.min(3)),
            shards: dev.shards.unwrap_or((cores / count).max(1)),
            runtime: dev.runtime,
            journal: dev.journal,
            ephemeral: dev.ephemeral,
        }
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn key_file(&self) -> &Path {
        &self.key_file
    }

    pub(super) fn replicas(&self) -> u32 {
        self.replicas
    }

    pub(super) fn shape(&self) -> String {
        let plural = |count: u32, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        let chunkservers = plural(u32::from(self.chunkservers), "chunkserver");
        format!("1 master, {chunkservers} of {}, 1 gateway", plural(self.shards, "shard"))
    }

    pub(super) fn master(&self) -> Spec {
        let mut spec = self.spec("master", 0, "master", 9090, true);
        spec.flag("--replicas", self.replicas.to_string());
        spec
    }

    pub(super) fn chunkservers(&self, master: &str) -> Vec<Spec> {
        let spec = |number: u16| {
            let name = format!("chunkserver{number}");
            let port = CHUNKSERVER_PORT + number - 1;
            // A gateway's port lies among those of many chunkservers.
            let port = if port >= crate::roles::gateway::PORT { port + 1 } else { port };
            let mut spec = self.spec(&name, number.into(), "chunkserver", port, true);
            spec.flag("--master", master);
            spec.flag("--shards", self.shards.to_string());
            // Several servers on one machine would all pin their first shard to the same core.
            spec.flag("--pin", "false");
            if let Some(runtime) = self.runtime {
                spec.flag("--runtime", runtime.to_string());
            }
            if let Some(journal) = self.journal {
                spec.flag("--journal", journal.to_string());
            }
            spec
        };
        (1..=self.chunkservers).map(spec).collect()
    }

    pub(super) fn gateway(&self, master: &str) -> Spec {
        let number = usize::from(self.chunkservers) + 1;
        let mut spec = self.spec("gateway", number, "gateway", crate::roles::gateway::PORT, false);
        spec.flag("--master", master);
        spec
    }

    fn spec(&self, name: &str, number: usize, role: &str, port: u16, has_data: bool) -> Spec {
        let mut spec = Spec { name: name.into(), number, dir: None, args: vec![role.into()] };
        let port = if self.ephemeral { 0 } else { port };
        spec.flag("--listen", format!("127.0.0.1:{port}"));
        if has_data {
            let dir = self.dir.join(name);
            spec.flag("--data-dir", &dir);
            spec.dir = Some(dir);
        }
        spec.flag("--cluster-key-file", &self.key_file);
        spec.flag("--grace", "10s");
        spec.args.extend(["--announce".into(), "--parent-pipe".into()]);
        spec
    }
}

impl Spec {
    fn flag(&mut self, name: &str, value: impl Into<OsString>) {
        self.args.extend([name.into(), value.into()]);
    }

    /// The same server, where it was reached before: others know it by that address.
    pub(super) fn at(&self, address: &str, admin: &str) -> Self {
        let mut spec = self.clone();
        if let Some(position) = spec.args.iter().position(|arg| arg == "--listen")
            && let Some(value) = spec.args.get_mut(position + 1)
        {
            *value = address.into();
        }
        if spec.dir.is_some() {
            spec.flag("--admin", admin);
        }
        spec
    }
}

#[cfg(test)]
mod tests {
    use clap::{Args, FromArgMatches};

    use super::*;

    fn plan(line: &str, cores: u32) -> Plan {
        let command = Dev::augment_args(clap::Command::new("dev"));
        let dev = Dev::from_arg_matches(&command.get_matches_from(line.split_whitespace())).unwrap();
        Plan::new(&dev, "/d".into(), "/d/k".into(), cores)
    }

    fn line(spec: &Spec) -> String {
        spec.args.iter().map(|arg| arg.to_str().unwrap()).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn the_usual_ports_are_the_originals() {
        let plan = plan("dev", 2);
        assert!(line(&plan.master()).starts_with("master --listen 127.0.0.1:9090 --data-dir /d/master "));
        let chunkservers = plan.chunkservers("m:1");
        assert_eq!(chunkservers.len(), 3);
        assert!(line(&chunkservers[2]).starts_with("chunkserver --listen 127.0.0.1:8083 --data-dir /d/chunkserver3 "));
        assert!(line(&plan.gateway("m:1")).starts_with("gateway --listen 127.0.0.1:8089 "));
        let many = super::tests::plan("dev --chunkservers 9", 2).chunkservers("m:1");
        assert!(line(&many[8]).contains("127.0.0.1:8090"), "{:?}", many[8]);
    }

    #[test]
    fn shards_share_the_cores_and_replicas_never_exceed_the_servers() {
        for (cores, servers, shards, replicas) in [(2, 3, 1, 3), (16, 3, 5, 3), (8, 1, 8, 1), (4, 2, 2, 2)] {
            let plan = plan(&format!("dev --chunkservers {servers}"), cores);
            assert_eq!((plan.shards, plan.replicas), (shards, replicas), "{cores} cores, {servers} servers");
        }
    }

    #[test]
    fn a_restarted_server_comes_back_at_its_address() {
        let spec = plan("dev --ephemeral", 2).chunkservers("m:1").remove(0);
        assert!(line(&spec).contains("--listen 127.0.0.1:0 "));
        let again = line(&spec.at("127.0.0.1:4000", "127.0.0.1:5000"));
        assert!(again.contains("--listen 127.0.0.1:4000 ") && again.ends_with("--admin 127.0.0.1:5000"), "{again}");
    }
}
