//! The admin port of a server: `/health`, `/livez` and `/metrics` over HTTP/1, and what a role can be told
//! to begin.
//!
//! It must answer while the server itself is in trouble, so it is bounded on every side: few
//! connections, one request each, a time limit on the head of the request and on the whole. What a
//! role knows about itself comes in through [`Admin`]; numbers of the process are added here.

mod exposition;
mod process;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Map, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tracing::debug;

use crate::StartError;
use crate::clock;
pub use exposition::{Histogram, Metrics};

/// Connections served at a time: a scraper, a health check and a person, with room.
const CONNECTIONS_MAX: usize = 32;
/// A client that has not sent its head by now is not one of ours.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
/// One request and its answer; a role that cannot say how it is for this long is not healthy.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// A whole connection, so that a reader that stops reading holds nothing for ever.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// Content type of the text exposition format.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a role tells about itself. Called by a few requests at once at most.
pub trait Admin: Send + Sync + 'static {
    /// Whether it serves, and details for people and scripts.
    fn health(&self) -> impl Future<Output = Health> + Send;

    /// Its counters and gauges as exposition text, see [`Metrics`].
    fn metrics(&self) -> impl Future<Output = String> + Send;

    /// Begins something that harms nobody, at `POST /name`; the answer says that it has begun. `None`: there
    /// is no such command.
    fn command(&self, _name: &str) -> impl Future<Output = Option<Value>> + Send {
        std::future::ready(None)
    }
}

/// The answer of `/health`: `{"service", "status", "time", "version", ...details}`, 200 or 503.
#[derive(Clone, Debug)]
pub struct Health {
    /// Which service: `hercules-master`, `hercules-chunkserver`.
    pub service: &'static str,
    /// It does what it is for: 200, else 503.
    pub serves: bool,
    /// One word: `healthy`, `starting`, `degraded`, ...
    pub status: &'static str,
    /// More fields of the answer.
    pub details: Map<String, Value>,
}

impl Health {
    fn body(&self) -> String {
        let mut fields = Map::new();
        fields.insert("service".into(), self.service.into());
        fields.insert("status".into(), self.status.into());
        fields.insert("time".into(), (clock::unix_ms() / 1000).into());
        fields.insert("version".into(), env!("CARGO_PKG_VERSION").into());
        fields.extend(self.details.clone());
        Value::Object(fields).to_string()
    }
}

/// A running admin port. Dropping it leaves the port open until the process ends; see [`AdminServer::stop`].
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl AdminServer {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port. Answers under way are finished, each within its own limit.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        // The task only ends by this signal; a panic would have aborted the process.
        let _ = self.task.await;
    }
}

/// Listens on `address` and answers from `admin`. Works on any tokio runtime.
///
/// # Errors
///
/// [`StartError`] when the address cannot be listened on.
pub async fn serve<A: Admin>(address: &str, admin: Arc<A>) -> Result<AdminServer, StartError> {
    let listener = listen(address, "admin port").await?;
    let address = local_address(&listener)?;
    let (stop, stopped) = watch::channel(false);
    let task = tokio::spawn(accept(listener, admin, stopped));
    Ok(AdminServer { address, stop, task })
}

/// Binds a TCP port; `what` names it in the error.
///
/// # Errors
///
/// [`StartError`] with a remedy: in use, not allowed, or not an address of this machine.
pub async fn listen(address: &str, what: &str) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| {
        let said = format!("cannot listen on {address} for the {what}: {error}");
        match error.kind() {
            std::io::ErrorKind::AddrInUse => StartError::unavailable(
                said,
                "another process has this port: stop it (`ss -ltnp` names it), or choose another address",
            ),
            std::io::ErrorKind::PermissionDenied => {
                StartError::config(said, "choose a port of 1024 or above, or allow this one")
            }
            _ => StartError::config(said, "give host:port of an address of this machine, such as 0.0.0.0:9090"),
        }
    })
}

/// The bound address of a listener.
///
/// # Errors
///
/// [`StartError`], should the kernel not tell.
pub fn local_address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| {
        StartError::unavailable(format!("a bound port has no address: {error}"), "report this: it should not happen")
    })
}

async fn accept<A: Admin>(listener: TcpListener, admin: Arc<A>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stopped.wait_for(|stop| *stop) => return,
        };
        let stream = match stream {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely: accepting again at once would spin.
                debug!(%error, "admin port cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let admin = Arc::clone(&admin);
        tokio::spawn(async move {
            let served = tokio::time::timeout(CONNECTION_TIMEOUT, converse(stream, admin)).await;
            if !matches!(served, Ok(Ok(()))) {
                debug!("admin connection ended early");
            }
            drop(place);
        });
    }
}

async fn converse<A: Admin>(stream: TcpStream, admin: Arc<A>) -> Result<(), hyper::Error> {
    let service = service_fn(move |request| {
        let admin = Arc::clone(&admin);
        async move { Ok::<_, Infallible>(answer(&request, &*admin).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .keep_alive(false)
        .max_buf_size(16 << 10)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer<A: Admin>(request: &Request<Incoming>, admin: &A) -> Response<Full<Bytes>> {
    let reply = match request.uri().path() {
        "/health" | "/livez" | "/metrics" if !matches!(*request.method(), Method::GET | Method::HEAD) => {
            let mut reply = text(StatusCode::METHOD_NOT_ALLOWED, "text/plain", "405 method not allowed\n".into());
            reply.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            Ok(reply)
        }
        "/livez" => Ok(text(StatusCode::OK, "text/plain", "ok\n".into())),
        "/health" => tokio::time::timeout(ANSWER_TIMEOUT, admin.health()).await.map(|health| {
            let status = if health.serves { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            text(status, "application/json", health.body())
        }),
        "/metrics" => tokio::time::timeout(ANSWER_TIMEOUT, admin.metrics()).await.map(|mut body| {
            process::render(&mut body);
            text(StatusCode::OK, METRICS_TYPE, body)
        }),
        path if *request.method() == Method::POST => {
            let name = path.trim_start_matches('/');
            tokio::time::timeout(ANSWER_TIMEOUT, admin.command(name)).await.map(|begun| match begun {
                Some(answer) => text(StatusCode::ACCEPTED, "application/json", answer.to_string()),
                None => not_found(),
            })
        }
        _ => Ok(not_found()),
    };
    reply.unwrap_or_else(|_| text(StatusCode::SERVICE_UNAVAILABLE, "text/plain", "no answer in time\n".into()))
}

fn not_found() -> Response<Full<Bytes>> {
    text(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n".into())
}

fn text(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut reply = Response::new(Full::new(Bytes::from(body)));
    *reply.status_mut() = status;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    struct Fake {
        serves: bool,
    }

    impl Admin for Fake {
        async fn health(&self) -> Health {
            let details = Map::from_iter([("chunks".to_owned(), 7.into())]);
            Health { service: "hercules-fake", serves: self.serves, status: "healthy", details }
        }

        async fn metrics(&self) -> String {
            let mut out = Metrics::default();
            out.counter("hercules_fake_total", "Fakes.", 3);
            out.finish()
        }
    }

    async fn ask(server: &AdminServer, head: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).await.unwrap();
        stream.write_all(format!("{head} HTTP/1.1\r\nhost: x\r\n\r\n").as_bytes()).await.unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).await.unwrap();
        reply
    }

    #[tokio::test]
    async fn health_is_200_with_details_and_503_when_it_does_not_serve() {
        for (serves, status) in [(true, "HTTP/1.1 200 OK"), (false, "HTTP/1.1 503 Service Unavailable")] {
            let server = serve("127.0.0.1:0", Arc::new(Fake { serves })).await.unwrap();
            let reply = ask(&server, "GET /health").await;
            assert!(reply.starts_with(status), "{reply}");
            let (_, body) = reply.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            assert_eq!(body["service"], "hercules-fake");
            assert_eq!(body["chunks"], 7);
            assert!(body["time"].as_u64().unwrap() > 1_600_000_000);
            server.stop().await;
        }
    }

    #[tokio::test]
    async fn metrics_carry_the_exact_content_type_the_roles_numbers_and_the_process() {
        let server = serve("127.0.0.1:0", Arc::new(Fake { serves: true })).await.unwrap();
        let reply = ask(&server, "GET /metrics").await;
        assert!(reply.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{reply}");
        assert!(reply.contains("\n# TYPE hercules_fake_total counter\nhercules_fake_total 3\n"), "{reply}");
        for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds"] {
            assert!(reply.contains(&format!("\n{name} ")), "{name}");
        }
        assert!(reply.contains("\nhercules_build_info{version=\""), "{reply}");
    }

    #[tokio::test]
    async fn what_is_not_there_and_what_would_change_something_are_refused() {
        let server = serve("127.0.0.1:0", Arc::new(Fake { serves: true })).await.unwrap();
        assert!(ask(&server, "GET /nothing").await.starts_with("HTTP/1.1 404"));
        let refused = ask(&server, "DELETE /health").await;
        assert!(refused.starts_with("HTTP/1.1 405") && refused.contains("allow: GET, HEAD\r\n"), "{refused}");
    }

    #[tokio::test]
    async fn a_port_in_use_is_named_with_a_remedy() {
        let server = serve("127.0.0.1:0", Arc::new(Fake { serves: true })).await.unwrap();
        let taken = server.address().to_string();
        let error = serve(&taken, Arc::new(Fake { serves: true })).await.unwrap_err();
        assert!(error.what.contains(&taken) && !error.remedy.is_empty(), "{error}");
        assert_eq!(error.exit, StartError::UNAVAILABLE);
    }
}
