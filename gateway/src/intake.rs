//! Request bodies: piece by piece, with bounds on size, idleness and slowness. A body that is cut short
//! or followed by bytes that cannot be a request never ends as a whole one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header::CONTENT_LENGTH;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout};

use crate::app::App;
use crate::conn::framing::Framing;
use crate::fail::Fail;
use crate::files::Files;

/// A request body on its way in.
pub(crate) struct Intake<F> {
    app: App<F>,
    body: Body,
    /// `Content-Length`, if there is one.
    pub(crate) announced: Option<u64>,
    got: u64,
    /// How long this was waiting for the client, and not the client for the cluster.
    waited: Duration,
    framing: Option<Arc<Framing>>,
}

impl<F: Files> Intake<F> {
    /// Splits a request. Nothing is read yet: `100 Continue` goes out with the first [`Intake::next`].
    pub(crate) fn of(app: &App<F>, request: Request) -> (Parts, Self) {
        let (parts, body) = request.into_parts();
        let framing = parts.extensions.get().cloned();
        let announced = content_length(&parts.headers);
        let intake = Self { app: app.clone(), body, announced, got: 0, waited: Duration::ZERO, framing };
        (parts, intake)
    }

    /// The next piece; `None` after the last one, once the body is known to be whole.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, Fail> {
        loop {
            let begun = Instant::now();
            let polled = timeout(self.app.limits.body_idle, self.body.frame()).await;
            self.waited += begun.elapsed();
            let frame = match polled {
                Err(_) => return Err(Fail::timeout("the request body stalled")),
                Ok(None) => return self.end().map(|()| None),
                Ok(Some(Err(_))) => return Err(Fail::invalid("the request body ended before its length")),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else { continue };
            self.got += data.len() as u64;
            self.app.metrics.bytes_in.fetch_add(data.len() as u64, Relaxed);
            self.check_rate()?;
            if !data.is_empty() {
                return Ok(Some(data));
            }
        }
    }

    /// The whole body, at most `max` bytes, and the memory it was granted. `too_large` says what is wrong
    /// with more, and is asked before anything is read when the length is announced.
    pub(crate) async fn collect(mut self, max: usize, too_large: impl Fn(u64) -> Fail) -> Result<Whole, Fail> {
        let max_len = max as u64;
        if let Some(len) = self.announced.filter(|len| *len > max_len) {
            return Err(too_large(len));
        }
        // What was announced is bounded by `max`, so it fits.
        let expected = self.announced.map_or(max, |len| usize::try_from(len).unwrap_or(max));
        let permit = self.app.reserve(expected).await?;
        let mut data = match self.next().await? {
            None => return Ok(Whole { data: Bytes::new(), _permit: permit }),
            Some(first) if self.announced == Some(first.len() as u64) => {
                self.next().await?;
                return Ok(Whole { data: first, _permit: permit });
            }
            Some(first) => {
                let mut data = BytesMut::with_capacity(self.announced.map_or(first.len(), |_| expected));
                data.extend_from_slice(&first);
                data
            }
        };
        while data.len() <= max {
            match self.next().await? {
                None => return Ok(Whole { data: data.freeze(), _permit: permit }),
                Some(piece) => data.extend_from_slice(&piece),
            }
        }
        Err(too_large(self.got))
    }

    /// A JSON body. What follows the first value is ignored, as the original's decoder did.
    pub(crate) async fn json<T: DeserializeOwned>(self) -> Result<T, Fail> {
        let max = self.app.limits.json_bytes;
        let too_large = |len| Fail::too_large(format!("a JSON body of {len} bytes is longer than {max}"));
        let whole = self.collect(max, too_large).await?;
        let mut values = serde_json::Deserializer::from_slice(&whole.data);
        T::deserialize(&mut values).map_err(|err| Fail::invalid(format!("the JSON body is malformed: {err}")))
    }

    /// The body for a decoder of its own, with the same bounds and the same care about its end.
    pub(crate) fn into_body(self) -> Body {
        let pieces = stream::unfold(self, |mut intake| async move {
            let piece = intake.next().await.map_err(|fail| io::Error::other(fail.text().to_owned()));
            Some((piece.transpose()?, intake))
        });
        Body::from_stream(pieces)
    }

    fn end(&self) -> Result<(), Fail> {
        if self.announced.is_some_and(|len| len != self.got) {
            return Err(Fail::invalid("the request body ended before its length"));
        }
        if self.framing.as_ref().is_some_and(|framing| framing.has_foreign_surplus()) {
            return Err(Fail::invalid("the request body is longer than its Content-Length"));
        }
        Ok(())
    }

    fn check_rate(&self) -> Result<(), Fail> {
        let limits = &self.app.limits;
        if self.waited <= limits.body_grace {
            return Ok(());
        }
        let due = u128::from(limits.body_rate_min) * self.waited.as_millis() / 1000;
        if u128::from(self.got) < due {
            return Err(Fail::new(StatusCode::REQUEST_TIMEOUT, "too-slow", "the request body arrives too slowly"));
        }
        Ok(())
    }
}

/// A body in memory.
pub(crate) struct Whole {
    pub(crate) data: Bytes,
    /// The memory it was granted, given back when it is dropped.
    _permit: OwnedSemaphorePermit,
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.trim().parse().ok()
}
