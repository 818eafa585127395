//! Listening, accepting, draining.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use client::Client;
use hyper::server::conn::http1;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::app::{App, router};
use crate::config::Config;
use crate::conn;
use crate::files::Files;
use crate::start::StartError;

/// How many refused connections are answered at a time; more are closed without a word.
const REFUSALS: usize = 64;

/// How long a refused client has to read why.
const REFUSAL_TIME: Duration = Duration::from_secs(1);

const REFUSAL: &str = "{\"type\":\"urn:hercules:error:overloaded\",\"title\":\"overloaded\",\"status\":503,\
\"detail\":\"too many connections are open; repeat later\"}";

/// A gateway at work. Dropping it leaves it running; [`Running::stop`] ends it.
#[derive(Debug)]
pub struct Running {
    /// Where it listens, the port chosen by the kernel included.
    pub address: SocketAddr,
    stopping: CancellationToken,
    accepting: JoinHandle<()>,
}

impl Running {
    /// Stops accepting, lets requests in progress finish for at most [`crate::Limits::drain`], closes the rest.
    pub async fn stop(self) {
        self.stopping.cancel();
        if self.accepting.await.is_err() {
            tracing::warn!("the accept loop did not end by itself");
        }
    }
}

/// Starts a gateway on the current tokio runtime. It serves when this returns; masters may come later.
///
/// # Errors
///
/// No master is named, or the address cannot be listened on; nothing was changed.
pub async fn start(config: Config) -> Result<Running, StartError> {
    if config.masters.is_empty() {
        return Err(StartError::config("no master is named", "give the host:port of at least one master"));
    }
    let mut reach = client::Config::new(config.masters.clone());
    reach.deadline = config.deadline;
    reach.window = config.window;
    reach.read_window = config.read_window;
    reach.cluster_key.clone_from(&config.cluster_key);
    serve(Client::new(reach), config).await
}

/// Starts a gateway in front of any implementation of [`Files`].
pub(crate) async fn serve<F: Files>(files: F, config: Config) -> Result<Running, StartError> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| cannot_listen(config.listen, &error))?;
    let address = listener.local_addr().map_err(|error| cannot_listen(config.listen, &error))?;
    let stopping = CancellationToken::new();
    let app = App::new(files, config.masters, config.limits.within_bounds());
    tracing::info!(%address, "gateway listens");
    let accepting = tokio::spawn(accept(listener, app, stopping.clone()));
    Ok(Running { address, stopping, accepting })
}

fn cannot_listen(address: SocketAddr, error: &std::io::Error) -> StartError {
    let what = format!("cannot listen on {address}: {error}");
    match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            StartError::unavailable(what, "stop the process that uses this port, or choose another with --listen")
        }
        std::io::ErrorKind::PermissionDenied => {
            StartError::config(what, "choose a port of 1024 or above, or grant CAP_NET_BIND_SERVICE")
        }
        _ => StartError::config(what, "listen on an address of this machine"),
    }
}

async fn accept<F: Files>(listener: TcpListener, app: App<F>, stop: CancellationToken) {
    let server = Server {
        router: router(app.clone()),
        builder: Arc::new(conn::builder(&app.limits)),
        connections: Arc::new(Semaphore::new(app.limits.connections)),
        refusals: Arc::new(Semaphore::new(REFUSALS)),
        app,
    };
    let graceful = GracefulShutdown::new();
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            Some(_) = tasks.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => server.take(stream, graceful.watcher(), &mut tasks),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    // Nothing announces that file descriptors are free again.
                    sleep(Duration::from_millis(50)).await;
                }
            },
        }
    }
    drop(listener);
    let drained = timeout(server.app.limits.drain, graceful.shutdown()).await.is_ok();
    if !drained {
        tracing::warn!(open = tasks.len(), "requests were still in progress when the time to drain was over");
    }
    tasks.shutdown().await;
}

struct Server<F> {
    app: App<F>,
    router: axum::Router,
    builder: Arc<http1::Builder>,
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
}

impl<F: Files> Server<F> {
    fn take(&self, stream: TcpStream, watcher: Watcher, tasks: &mut JoinSet<()>) {
        let metrics = &self.app.metrics;
        metrics.connections_accepted.fetch_add(1, Relaxed);
        // Small answers go out at once; without it they could wait 40 ms for an acknowledgement.
        if stream.set_nodelay(true).is_err() {
            return; // The peer is gone already.
        }
        if let Ok(permit) = Arc::clone(&self.connections).try_acquire_owned() {
            let (app, router, builder) = (self.app.clone(), self.router.clone(), Arc::clone(&self.builder));
            tasks.spawn(async move {
                let _open = Open::count(app.clone(), permit);
                conn::serve(stream, &builder, router, &app.limits, watcher).await;
            });
            return;
        }
        metrics.connections_refused.fetch_add(1, Relaxed);
        if let Ok(permit) = Arc::clone(&self.refusals).try_acquire_owned() {
            tasks.spawn(async move {
                let _ = timeout(REFUSAL_TIME, refuse(stream)).await;
                drop(permit);
            });
        }
    }
}

/// Says why, then waits until the client has read it: closing at once would reset the connection.
async fn refuse(mut stream: TcpStream) {
    let mut scratch = [0; 4096];
    let answer = format!(
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\ncontent-type: application/problem+json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n{REFUSAL}",
        REFUSAL.len()
    );
    if stream.write_all(answer.as_bytes()).await.is_ok() && stream.shutdown().await.is_ok() {
        while stream.read(&mut scratch).await.is_ok_and(|len| len > 0) {}
    }
}

/// An open connection, counted.
struct Open<F> {
    app: App<F>,
    _permit: OwnedSemaphorePermit,
}

impl<F> Open<F> {
    fn count(app: App<F>, permit: OwnedSemaphorePermit) -> Self {
        app.metrics.connections.fetch_add(1, Relaxed);
        Self { app, _permit: permit }
    }
}

impl<F> Drop for Open<F> {
    fn drop(&mut self) {
        self.app.metrics.connections.fetch_sub(1, Relaxed);
    }
}
