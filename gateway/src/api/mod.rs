//! `/api/v1/...`: the original's API, route by route, and the routes its documents promised.
//!
//! Success is `{"data":…,"message":"…","success":true}`, failure
//! `{"error":"…","code":"…","message":"Operation failed"}`, keys in this order, empty ones left out.

pub(crate) mod chunk;
pub(crate) mod data;
pub(crate) mod documented;
pub(crate) mod list;
pub(crate) mod names;
pub(crate) mod system;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;

use crate::edge::RequestId;
use crate::fail::{Fail, Form};
use crate::http::json;

#[derive(Serialize)]
struct Success<T: Serialize> {
    data: T,
    #[serde(skip_serializing_if = "str::is_empty")]
    message: &'static str,
    success: bool,
}

/// A 200 with its envelope.
fn success(data: impl Serialize, message: &'static str) -> Response {
    json::answer(StatusCode::OK, &Success { data, message, success: true })
}

/// Runs a handler and renders its failure in the form of its surface.
async fn answer<H>(request: Request, form: Form, handle: impl FnOnce(Request) -> H) -> Response
where
    H: Future<Output = Result<Response, Fail>>,
{
    let id = RequestId::of(&request);
    match handle(request).await {
        Ok(response) => response,
        Err(fail) => fail.render(form, id.as_str()),
    }
}

/// The value of a parameter that must be there.
fn required<'a>(value: Option<&'a str>, text: &'static str) -> Result<&'a str, Fail> {
    value.ok_or_else(|| Fail::invalid(text))
}
