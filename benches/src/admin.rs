//! One HTTP request to a server's admin port, with every length and time bounded.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Method;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Largest answer taken: `/metrics` of a server with hundreds of shards stays below a tenth of it.
pub const BODY_LEN_MAX: usize = 4 << 20;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Body, as text; what is not UTF-8 is replaced.
    pub body: String,
}

/// Why there was none.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens there, or the name is unknown.
    #[error("cannot connect to {address}: {cause}")]
    Connect {
        /// Where.
        address: String,
        /// What the system said.
        cause: std::io::Error,
    },
    /// Somebody listens, but it is no HTTP server, or its answer is too long.
    #[error("{address} did not answer in HTTP: {cause}")]
    Protocol {
        /// Where.
        address: String,
        /// What was wrong.
        cause: String,
    },
    /// No answer in time.
    #[error("{address} did not answer within {limit:?}")]
    Timeout {
        /// Where.
        address: String,
        /// How long was waited.
        limit: Duration,
    },
}

/// Asks `http://address/path`. Dropping the future closes the connection.
///
/// # Errors
///
/// See [`Error`]. Any HTTP status is an answer.
pub async fn get(address: &str, path: &str, limit: Duration) -> Result<Answer, Error> {
    bounded(Method::GET, address, path, limit).await
}

/// As [`get`], with POST and no body: tells the server to begin something.
///
/// # Errors
///
/// See [`Error`]. Any HTTP status is an answer.
pub async fn post(address: &str, path: &str, limit: Duration) -> Result<Answer, Error> {
    bounded(Method::POST, address, path, limit).await
}

async fn bounded(method: Method, address: &str, path: &str, limit: Duration) -> Result<Answer, Error> {
    let timeout = Error::Timeout { address: address.into(), limit };
    tokio::time::timeout(limit, exchange(method, address, path)).await.map_err(|_elapsed| timeout)?
}

async fn exchange(method: Method, address: &str, path: &str) -> Result<Answer, Error> {
    let protocol = |cause: String| Error::Protocol { address: address.into(), cause };
    let stream =
        TcpStream::connect(address).await.map_err(|cause| Error::Connect { address: address.into(), cause })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| protocol(error.to_string()))?;
    let request = hyper::Request::builder()
        .method(method)
        .uri(path)
        .header(hyper::header::HOST, address)
        .header(hyper::header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| protocol(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| protocol(error.to_string()))?;
        let status = response.status().as_u16();
        let body = Limited::new(response.into_body(), BODY_LEN_MAX).collect().await;
        let body = body.map_err(|error| protocol(error.to_string()))?.to_bytes();
        Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned() })
    };
    // The connection has to be driven beside the exchange; its own end says nothing new.
    let ((), answer) = tokio::join!(async { drop(connection.await) }, answer);
    answer
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one connection with these bytes, then closes it.
    async fn server(answer: Vec<u8>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let _ = stream.read(&mut request).await.unwrap();
            let _ = stream.write_all(&answer).await;
        });
        address
    }

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn the_status_and_the_body_arrive() {
        let address = server(b"HTTP/1.1 503 x\r\nContent-Length: 4\r\n\r\nbusy".to_vec()).await;
        let answer = get(&address, "/health", LIMIT).await.unwrap();
        assert_eq!((answer.status, answer.body.as_str()), (503, "busy"));
    }

    #[tokio::test]
    async fn an_answer_without_end_is_refused_and_not_collected() {
        let mut answer = b"HTTP/1.1 200 x\r\n\r\n".to_vec();
        answer.resize(answer.len() + BODY_LEN_MAX + 1, b'x');
        let error = get(&server(answer).await, "/", LIMIT).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }

    #[tokio::test]
    async fn what_is_not_http_is_named() {
        let error = get(&server(b"SSH-2.0-x\r\n".to_vec()).await, "/", LIMIT).await.unwrap_err();
        assert!(matches!(error, Error::Protocol { .. }), "{error}");
    }

    #[tokio::test]
    async fn a_server_that_says_nothing_is_given_up() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let error = get(&address, "/", Duration::from_millis(50)).await.unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
    }
}
