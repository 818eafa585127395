//! Why a request fails, said once: the status, a stable slug, a text without internals. Each surface
//! renders it in its own form: `application/problem+json` under `/fs`, the original's envelope under
//! `/api/v1`, the form that its documents promised on the routes that they promised.

use axum::http::header::{ALLOW, CONTENT_RANGE, RETRY_AFTER};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use wire::{Kind, NamePath};

use crate::http::json;

/// A request that fails.
#[derive(Debug)]
pub(crate) struct Fail {
    pub(crate) status: StatusCode,
    /// Stable name, the last part of a problem's `type`.
    slug: &'static str,
    /// For people, and for programs that match the original's texts.
    text: String,
    /// The original's number, where it had one.
    code: Option<&'static str>,
    headers: Vec<(HeaderName, HeaderValue)>,
    /// What the cluster said, for the log only.
    cause: Option<String>,
}

/// In which form a surface says it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// RFC 9457.
    Problem,
    /// The original's.
    Envelope,
    /// That of the original's documents.
    Documented,
}

impl Fail {
    pub(crate) fn new(status: StatusCode, slug: &'static str, text: impl Into<String>) -> Self {
        Self { status, slug, text: text.into(), code: None, headers: Vec::new(), cause: None }
    }

    pub(crate) fn invalid(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid", text)
    }

    pub(crate) fn not_found(path: &NamePath) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not-found", format!("path {path} is not found"))
    }

    pub(crate) fn conflict(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", text)
    }

    pub(crate) fn exists(text: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "exists", text)
    }

    pub(crate) fn precondition() -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition-failed", "a precondition of the request does not hold")
    }

    pub(crate) fn too_large(text: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too-large", text)
    }

    /// More than one append may carry, in the original's words.
    pub(crate) fn append_too_large(len: u64, max: usize) -> Self {
        Self { code: Some("3"), ..Self::too_large(format!("len of data [{len}] > max append size [{max}]")) }
    }

    pub(crate) fn digest_mismatch(algorithm: &str) -> Self {
        let text = format!("the content does not match its {algorithm} digest; nothing was published");
        Self::new(StatusCode::BAD_REQUEST, "digest-mismatch", text)
    }

    /// 416, with the length.
    pub(crate) fn range(text: impl Into<String>, len: u64) -> Self {
        Self::new(StatusCode::RANGE_NOT_SATISFIABLE, "range-not-satisfiable", text)
            .with(CONTENT_RANGE, format!("bytes */{len}"))
    }

    pub(crate) fn method(allow: &'static str) -> Self {
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method-not-allowed", format!("use one of: {allow}"))
            .with(ALLOW, allow)
    }

    /// Early refusal: too much is going on here.
    pub(crate) fn overloaded(text: &'static str) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "overloaded", text).with(RETRY_AFTER, "1")
    }

    pub(crate) fn timeout(text: &'static str) -> Self {
        Self::new(StatusCode::REQUEST_TIMEOUT, "request-timeout", text)
    }

    /// What an answer of the cluster about `path` means to the client. Texts of servers are shown only
    /// for faults of the request; the rest goes to the log.
    pub(crate) fn of(error: &client::Error, path: &NamePath) -> Self {
        let mut fail = Self::by_kind(error, path);
        fail.cause = Some(error.to_string());
        fail
    }

    fn by_kind(error: &client::Error, path: &NamePath) -> Self {
        let unavailable = |text| Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", text).with(RETRY_AFTER, "1");
        match error.kind() {
            Kind::NotFound => Self::not_found(path),
            Kind::Exists => Self::exists(format!("path {path} already exists")),
            Kind::Invalid => Self::invalid(error.to_string()),
            Kind::Conflict => Self::conflict(error.to_string()),
            Kind::Precondition => Self::precondition(),
            Kind::Unauthorized => {
                Self::new(StatusCode::FORBIDDEN, "forbidden", "the cluster refused the right to do this")
            }
            Kind::NoSpace => Self::new(
                StatusCode::INSUFFICIENT_STORAGE,
                "no-space",
                "the cluster is out of space, or a quota is used up",
            ),
            Kind::Corrupt => {
                Self::new(StatusCode::BAD_GATEWAY, "corrupt", "no replica gave bytes that match their checksums")
            }
            Kind::Overloaded => Self::overloaded("the cluster has too much to do; repeat later"),
            Kind::Unknown => Self::new(
                StatusCode::GATEWAY_TIMEOUT,
                "outcome-unknown",
                "the cluster did not confirm in time; it may have happened: look, then repeat",
            ),
            Kind::StaleEpoch | Kind::NotPrimary | Kind::Sealed | Kind::NotCommitted => {
                // The original's sample page tries once more on this code.
                Self { code: Some("8"), ..unavailable("the file is being moved between servers; repeat") }
            }
            Kind::Unavailable | Kind::NotLeader => unavailable("the cluster cannot serve this now; repeat later"),
            _ => {
                Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the request failed for an unforeseen reason")
            }
        }
    }

    pub(crate) fn with(mut self, name: HeaderName, value: impl TryInto<HeaderValue>) -> Self {
        if let Ok(value) = value.try_into() {
            self.headers.push((name, value));
        }
        self
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// The same with another text.
    pub(crate) fn saying(self, text: impl Into<String>) -> Self {
        Self { text: text.into(), ..self }
    }

    /// The answer. This is where a failure is handled, so it is logged here.
    pub(crate) fn render(self, form: Form, request_id: &str) -> Response {
        if self.status.is_server_error() {
            let cause = self.cause.as_deref().unwrap_or(&self.text);
            tracing::warn!(
                request = request_id,
                status = self.status.as_u16(),
                slug = self.slug,
                cause,
                "request failed"
            );
        }
        let mut response = match form {
            Form::Problem => self.problem(request_id),
            Form::Envelope => {
                let body = Envelope { error: &self.text, code: self.code, message: "Operation failed" };
                json::answer(self.status, &body)
            }
            Form::Documented => {
                let details = Details { code: self.documented_code(), message: &self.text, details: self.slug };
                json::answer(self.status, &Documented { error: details })
            }
        };
        response.headers_mut().extend(self.headers);
        response
    }

    fn problem(&self, request_id: &str) -> Response {
        let body = Problem {
            kind: format!("urn:hercules:error:{}", self.slug),
            title: self.slug,
            status: self.status.as_u16(),
            detail: &self.text,
            instance: format!("urn:hercules:request:{request_id}"),
        };
        json::typed(self.status, "application/problem+json", json::encode(&body))
    }

    fn documented_code(&self) -> &'static str {
        match self.status.as_u16() {
            403 => "PERMISSION_DENIED",
            404 => "FILE_NOT_FOUND",
            409 => "FILE_EXISTS",
            413 => "PAYLOAD_TOO_LARGE",
            408 | 504 => "TIMEOUT",
            503 => "SERVICE_UNAVAILABLE",
            400..=499 => "INVALID_PATH",
            _ => "INTERNAL_ERROR",
        }
    }
}

#[derive(Serialize)]
struct Problem<'a> {
    #[serde(rename = "type")]
    kind: String,
    title: &'a str,
    status: u16,
    detail: &'a str,
    instance: String,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    message: &'a str,
}

#[derive(Serialize)]
struct Documented<'a> {
    error: Details<'a>,
}

#[derive(Serialize)]
struct Details<'a> {
    code: &'a str,
    message: &'a str,
    details: &'a str,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_status_that_tells_a_client_what_to_do() {
        let statuses = Kind::ALL.map(|kind| {
            (kind, Fail::of(&client::Error::new(kind, "10.0.0.7:8081: broken pipe"), &NamePath::root()).status.as_u16())
        });
        let want = [
            (Kind::NotFound, 404),
            (Kind::Exists, 409),
            (Kind::Invalid, 400),
            (Kind::StaleEpoch, 503),
            (Kind::NotPrimary, 503),
            (Kind::Sealed, 503),
            (Kind::NotCommitted, 503),
            (Kind::Corrupt, 502),
            (Kind::Overloaded, 503),
            (Kind::NoSpace, 507),
            (Kind::Unavailable, 503),
            (Kind::Unauthorized, 403),
            (Kind::Unknown, 504),
            (Kind::Conflict, 409),
            (Kind::Precondition, 412),
            (Kind::NotLeader, 503),
        ];
        assert_eq!(statuses, want);
    }

    #[test]
    fn server_failures_show_no_internals_and_say_when_to_come_back() {
        for kind in [Kind::Unavailable, Kind::Overloaded, Kind::Unknown, Kind::Corrupt, Kind::StaleEpoch, Kind::NoSpace]
        {
            let fail = Fail::of(&client::Error::new(kind, "10.0.0.7:8081: broken pipe"), &NamePath::root());
            assert!(!fail.text.contains("10.0.0.7"), "{kind:?}");
            assert_eq!(
                fail.headers.iter().any(|(name, _)| name == RETRY_AFTER),
                fail.status == StatusCode::SERVICE_UNAVAILABLE
            );
        }
    }
}
