//! One server of a local cluster: a child process that is started, watched, restarted and stopped.

use std::fmt;
use std::io::IsTerminal;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use super::plan::Spec;
use crate::exit::{Code, Failure};
use crate::roles::Ready;

/// Time for a server to say that it is ready; recovery of a large disk may take a while.
const READY_LIMIT: Duration = Duration::from_secs(120);
/// Time for a server to stop; its own grace period is 10 s.
const STOP_LIMIT: Duration = Duration::from_secs(15);
/// Wait before the first restart; doubled with each that follows soon.
const RESTART_WAIT: Duration = Duration::from_millis(500);
const RESTART_WAIT_MAX: Duration = Duration::from_secs(10);
/// A server that lived for so long is not in a loop of crashes.
const SETTLED: Duration = Duration::from_secs(30);
/// Longest line of a log that is passed on.
const LINE_LEN_MAX: u64 = 64 << 10;
/// Colours of the names, ANSI.
const COLOURS: [u8; 6] = [36, 32, 33, 35, 34, 31];

/// What happened to a server after it had been ready.
#[derive(Debug)]
pub(super) enum Event {
    Exited { name: String, status: ExitStatus, restart_in: Option<Duration> },
    Restarted { name: String, pid: u32 },
    Failed { name: String, why: String },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { name, status, restart_in: Some(wait) } => {
                write!(f, "{name} died ({status}); starting it again in {wait:?}")
            }
            Self::Exited { name, status, restart_in: None } => write!(f, "{name} died ({status}); it is left dead"),
            Self::Restarted { name, pid } => write!(f, "{name} is back, process {pid}"),
            Self::Failed { name, why } => write!(f, "{name} did not come back: {why}"),
        }
    }
}

impl Event {
    pub(super) fn json(&self) -> Value {
        match self {
            Self::Exited { name, status, .. } => {
                json!({ "event": "exited", "name": name, "status": status.to_string(), "code": status.code() })
            }
            Self::Restarted { name, pid } => json!({ "event": "restarted", "name": name, "pid": pid }),
            Self::Failed { name, why } => json!({ "event": "failed", "name": name, "why": why }),
        }
    }
}

/// A server that has been ready once. Dropping it leaves its process alone: see [`Server::stop`].
#[derive(Debug)]
pub(super) struct Server {
    spec: Spec,
    ready: Arc<Mutex<Ready>>,
    stop: oneshot::Sender<()>,
    keeper: JoinHandle<()>,
}

impl Server {
    /// Starts a server and waits until it is ready.
    ///
    /// # Errors
    ///
    /// With the exit code of the server when it ended instead; it has told why on its own.
    pub(super) async fn start(spec: Spec, restart: bool, events: mpsc::Sender<Event>) -> Result<Self, Failure> {
        let mut process = spawn(&spec)?;
        let ready = announced(&spec.name, &mut process.child).await?;
        let spec = spec.at(&ready.address, &ready.admin);
        let ready = Arc::new(Mutex::new(ready));
        let (stop, stopped) = oneshot::channel();
        let keeper = Keeper { spec: spec.clone(), ready: Arc::clone(&ready), restart, events };
        Ok(Self { spec, ready, stop, keeper: tokio::spawn(keeper.run(process, stopped)) })
    }

    pub(super) fn name(&self) -> &str {
        &self.spec.name
    }

    pub(super) fn ready(&self) -> Ready {
        self.ready.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn json(&self) -> Value {
        let ready = self.ready();
        json!({
            "name": self.spec.name,
            "role": ready.role,
            "pid": ready.pid,
            "address": ready.address,
            "admin": ready.admin,
            "dir": self.spec.dir,
        })
    }

    /// Drains it; kills it when that takes too long.
    pub(super) async fn stop(self) {
        // A keeper that has ended already left no process behind.
        let _ = self.stop.send(());
        let _ = self.keeper.await;
    }
}

/// Kills processes; those that are gone already are fine.
pub(super) fn kill_all(pids: &[u32]) {
    pids.iter().for_each(|pid| signal(*pid, Signal::KILL));
}

fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// The task that owns the process.
struct Keeper {
    spec: Spec,
    ready: Arc<Mutex<Ready>>,
    restart: bool,
    events: mpsc::Sender<Event>,
}

impl Keeper {
    async fn run(self, mut process: Process, mut stopped: oneshot::Receiver<()>) {
        let mut wait = RESTART_WAIT;
        loop {
            let begun = now();
            let status = tokio::select! {
                status = process.child.wait() => status,
                _ = &mut stopped => return end(process).await,
            };
            let Ok(status) = status else { return };
            wait = next_wait(wait, begun.elapsed());
            let restart_in = self.restart.then_some(wait);
            self.tell(Event::Exited { name: self.spec.name.clone(), status, restart_in }).await;
            if !self.restart {
                return;
            }
            process = tokio::select! {
                process = self.bring_back(wait) => match process {
                    Some(process) => process,
                    None => return,
                },
                _ = &mut stopped => return,
            };
        }
    }

    /// Starts it again until it is ready. What must be changed by people first is not tried again.
    async fn bring_back(&self, first_wait: Duration) -> Option<Process> {
        let mut wait = first_wait;
        loop {
            tokio::time::sleep(wait).await;
            let started = async {
                let mut process = spawn(&self.spec)?;
                let ready = announced(&self.spec.name, &mut process.child).await?;
                Ok::<_, Failure>((process, ready))
            };
            let failure = match started.await {
                Ok((process, ready)) => {
                    let pid = ready.pid;
                    *self.ready.lock().unwrap_or_else(PoisonError::into_inner) = ready;
                    self.tell(Event::Restarted { name: self.spec.name.clone(), pid }).await;
                    return Some(process);
                }
                Err(failure) => failure,
            };
            self.tell(Event::Failed { name: self.spec.name.clone(), why: failure.what }).await;
            if failure.code == Code::Config as u8 {
                return None;
            }
            wait = (wait * 2).min(RESTART_WAIT_MAX);
        }
    }

    async fn tell(&self, event: Event) {
        // Nobody listens any more when the cluster is stopping.
        let _ = self.events.send(event).await;
    }
}

/// The wait before a restart: doubled each time, and back to the first once a server has settled.
fn next_wait(last: Duration, lived: Duration) -> Duration {
    if lived >= SETTLED { RESTART_WAIT } else { (last * 2).min(RESTART_WAIT_MAX) }
}

/// A child, and the pipe whose end tells it that we are gone. Waiting for a child would close a pipe
/// that still belongs to it.
struct Process {
    child: Child,
    pipe: Option<ChildStdin>,
}

fn spawn(spec: &Spec) -> Result<Process, Failure> {
    let program = std::env::current_exe()?;
    let mut command = Command::new(program);
    // Its own process group: Ctrl-C on the terminal is for us, and we stop the servers in order.
    command.args(&spec.args).process_group(0).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|error| Failure::from(error).context(format!("starting {}", spec.name)))?;
    if let Some(log) = child.stderr.take() {
        tokio::spawn(pass_on(prefix(spec), log));
    }
    let pipe = child.stdin.take();
    Ok(Process { child, pipe })
}

/// Waits for the one line that a server prints when it is ready.
async fn announced(name: &str, child: &mut Child) -> Result<Ready, Failure> {
    let Some(stdout) = child.stdout.take() else {
        return Err(Failure::new(Code::Failed, format!("{name} has no output")));
    };
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(READY_LIMIT, lines.next_line()).await.map_err(|_elapsed| {
        Failure::new(Code::Unavailable, format!("{name} was not ready within {READY_LIMIT:?}"))
    })??;
    if let Some(line) = line {
        return serde_json::from_str(&line)
            .map_err(|error| Failure::new(Code::Failed, format!("{name} announced {line:?}: {error}")));
    }
    let status = child.wait().await?;
    let code = status.code().and_then(|code| u8::try_from(code).ok()).filter(|code| *code != 0).unwrap_or(1);
    Err(Failure { code, what: format!("{name} did not start ({status}); it says why above"), remedy: String::new() })
}

async fn end(process: Process) {
    let Process { mut child, pipe } = process;
    if let Some(pid) = child.id() {
        signal(pid, Signal::TERM);
    }
    if tokio::time::timeout(STOP_LIMIT, child.wait()).await.is_err() {
        // Nothing acknowledged is lost by this.
        let _ = child.kill().await;
    }
    drop(pipe);
}

/// Passes a log on to our standard error, each line with the name of the server.
async fn pass_on(prefix: String, log: impl AsyncRead + Unpin) {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut log).take(LINE_LEN_MAX).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {
                let text = String::from_utf8_lossy(&line);
                eprintln!("{prefix}{}", text.trim_end());
            }
        }
    }
}

fn prefix(spec: &Spec) -> String {
    let name = &spec.name;
    if !std::io::stderr().is_terminal() {
        return format!("{name:<12} ");
    }
    let colour = COLOURS.get(spec.number % COLOURS.len()).copied().unwrap_or(0);
    format!("\x1b[{colour}m{name:<12}\x1b[0m ")
}

#[allow(clippy::disallowed_methods, reason = "how long a process lived decides only about waiting")]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_slow_down_until_a_server_settles() {
        let mut wait = RESTART_WAIT;
        for _ in 0..10 {
            wait = next_wait(wait, Duration::from_secs(1));
        }
        assert_eq!(wait, RESTART_WAIT_MAX);
        assert_eq!(next_wait(wait, SETTLED), RESTART_WAIT);
    }
}
