//! JSON as the original wrote it: compact, and with `<`, `>`, `&` and two line separators escaped, so
//! that a browser that sniffs finds no markup.

use axum::body::Body;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;

/// Content type of the original's JSON.
pub(crate) const JSON: &str = "application/json; charset=utf-8";

/// Encodes a value.
pub(crate) fn encode(value: &impl Serialize) -> String {
    // Writing our own types, which have string keys only, into memory cannot fail.
    let plain = serde_json::to_string(value).unwrap_or_default();
    if !plain.contains(['<', '>', '&', '\u{2028}', '\u{2029}']) {
        return plain;
    }
    // All five occur inside strings only.
    let escaped =
        [('<', "\\u003c"), ('>', "\\u003e"), ('&', "\\u0026"), ('\u{2028}', "\\u2028"), ('\u{2029}', "\\u2029")];
    escaped.iter().fold(plain, |text, (from, to)| text.replace(*from, to))
}

/// An answer of one JSON value.
pub(crate) fn answer(status: StatusCode, value: &impl Serialize) -> Response {
    typed(status, JSON, encode(value))
}

/// An answer with a body that is at hand.
pub(crate) fn typed(status: StatusCode, content_type: &'static str, body: impl Into<Body>) -> Response {
    let mut response = Response::new(body.into());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_is_escaped_as_go_does() {
        assert_eq!(encode(&"<a href=\"x\">&\u{2028}ä"), "\"\\u003ca href=\\\"x\\\"\\u003e\\u0026\\u2028ä\"");
    }
}
