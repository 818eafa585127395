//! What was asked for.

use std::path::PathBuf;

use engine::runtime::Backend;

pub(crate) const USAGE: &str = "\
usage: store_driver run|check|full --root DIR [flags]
  --log FILE         what was issued and acknowledged; `run` appends, `check` reads
  --seed N           of the workload (1)
  --steps N          of each worker (60)
  --workers N        chunks at work at a time, per shard (4)
  --shards N         threads (1)
  --size-max N       largest append in bytes (131072)
  --ring-bytes N     log area of a journal that is made (524288)
  --runtime NAME     glommio, monoio, monoio-epoll
  --position FILE    run: record of the device below; its entries are counted with every line
  --leave            run: end without a stop in order, once the journal is idle
  --until N          check: only lines of the log up to this position (all)
  --lenient          check: damage may be reported instead of served; a wrong byte may not be served
  --ballast FILE     full: removed when the disk is full
  --canary NUMBER    plant a bug, such as D7 (needs the feature `canary`)";

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Run,
    Check,
    Full,
}

#[derive(Clone)]
pub(crate) struct Options {
    pub(crate) mode: Mode,
    pub(crate) root: PathBuf,
    pub(crate) log: Option<PathBuf>,
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) workers: usize,
    pub(crate) shards: u32,
    pub(crate) size_max: u64,
    pub(crate) ring_bytes: u64,
    pub(crate) backend: Backend,
    pub(crate) position: Option<PathBuf>,
    pub(crate) leave: bool,
    pub(crate) until: u64,
    pub(crate) lenient: bool,
    pub(crate) ballast: Option<PathBuf>,
    pub(crate) canary: Option<String>,
}

impl Options {
    pub(crate) fn parse(mut args: impl Iterator<Item = String>) -> Result<Self, String> {
        let mode = match args.next().as_deref() {
            Some("run") => Mode::Run,
            Some("check") => Mode::Check,
            Some("full") => Mode::Full,
            other => return Err(format!("no such mode: {other:?}")),
        };
        let mut options = Self {
            mode,
            root: PathBuf::new(),
            log: None,
            seed: 1,
            steps: 60,
            workers: 4,
            shards: 1,
            size_max: 128 << 10,
            ring_bytes: 512 << 10,
            backend: Backend::default(),
            position: None,
            leave: false,
            until: u64::MAX,
            lenient: false,
            ballast: None,
            canary: None,
        };
        while let Some(flag) = args.next() {
            match flag.as_str() {
                "--lenient" => options.lenient = true,
                "--leave" => options.leave = true,
                _ => {}
            }
            if ["--lenient", "--leave"].contains(&flag.as_str()) {
                continue;
            }
            let value = args.next().ok_or_else(|| format!("{flag} wants a value"))?;
            let number = || value.parse::<u64>().map_err(|_| format!("{flag}: {value:?} is not a number"));
            let small = || value.parse::<u32>().map_err(|_| format!("{flag}: {value:?} is not a number"));
            match flag.as_str() {
                "--root" => options.root = value.into(),
                "--log" => options.log = Some(value.into()),
                "--seed" => options.seed = number()?,
                "--steps" => options.steps = number()?,
                "--workers" => options.workers = small()? as usize,
                "--shards" => options.shards = small()?,
                "--size-max" => options.size_max = number()?.clamp(1, 1 << 20),
                "--ring-bytes" => options.ring_bytes = number()?,
                "--runtime" => options.backend = value.parse().map_err(|error| format!("{error}"))?,
                "--position" => options.position = Some(value.into()),
                "--until" => options.until = number()?,
                "--ballast" => options.ballast = Some(value.into()),
                "--canary" => options.canary = Some(value),
                _ => return Err(format!("no such flag: {flag}")),
            }
        }
        if options.root.as_os_str().is_empty() {
            return Err("--root is missing".into());
        }
        if options.log.is_none() && options.mode != Mode::Full {
            return Err("--log is missing".into());
        }
        if options.canary.is_some() && !cfg!(feature = "canary") {
            return Err("--canary: this build has none, it needs the feature `canary`".into());
        }
        Ok(options)
    }
}
