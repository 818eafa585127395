//! A directory as JSON for programs, as HTML for browsers and for clients that read indexes.

use std::fmt::Write;

use axum::http::header::{ACCEPT, CONTENT_SECURITY_POLICY, LINK, VARY};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use serde::Serialize;
use wire::NamePath;
use wire::namespace::{Entry, Listing};

use crate::app::App;
use crate::fail::Fail;
use crate::files::Files;
use crate::fs::{Asked, set};
use crate::http::{dates, json, url};

#[derive(Serialize)]
struct Page<'a> {
    path: &'a str,
    entries: Vec<Item<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<&'a str>,
}

#[derive(Serialize)]
struct Item<'a> {
    name: &'a str,
    path: &'a str,
    #[serde(rename = "type")]
    kind: &'static str,
    length: u64,
    chunks: u32,
    modified: String,
}

pub(super) async fn listing<F: Files>(app: &App<F>, asked: &Asked) -> Result<Response, Fail> {
    let path = asked.path();
    let limit = limit(asked.query.filled("limit"), app.limits.page_entries)?;
    let recursive = asked.query.flag("recursive");
    let after = asked.query.get("after").unwrap_or_default();
    let page = app.files.list(path, after, limit, recursive).await.map_err(|error| Fail::of(&error, path))?;
    let mut response = if wants_html(&asked.headers) {
        let mut response = json::typed(StatusCode::OK, "text/html; charset=utf-8", html(path, &page, limit, recursive));
        // Names come from anyone: nothing in this page may run or load.
        let policy = HeaderValue::from_static("default-src 'none'");
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
        response
    } else {
        let entries = page.entries.iter().map(|entry| item(path, entry)).collect();
        json::answer(StatusCode::OK, &Page { path: path.as_str(), entries, next: page.next.as_deref() })
    };
    let headers = response.headers_mut();
    headers.insert(VARY, HeaderValue::from_static("accept"));
    if let Some(next) = next_url(path, &page, limit, recursive) {
        set(headers, LINK, format!("<{next}>; rel=\"next\""));
    }
    Ok(response)
}

/// `limit` as asked for, between one and the largest page.
pub(crate) fn limit(asked: Option<&str>, max: u32) -> Result<u32, Fail> {
    match asked.map(str::parse::<u32>) {
        None => Ok(max),
        Some(Ok(limit)) if limit > 0 => Ok(limit.min(max)),
        Some(_) => Err(Fail::invalid("limit must be a number of at least 1")),
    }
}

/// The name of an entry below a directory: its last segment, or all below it when it lies deeper.
pub(crate) fn name_below<'a>(dir: &NamePath, path: &'a str) -> &'a str {
    let rest = if dir.is_root() { Some(path) } else { path.strip_prefix(dir.as_str()) };
    rest.unwrap_or(path).trim_start_matches('/')
}

fn item<'a>(dir: &NamePath, entry: &'a Entry) -> Item<'a> {
    Item {
        name: name_below(dir, &entry.path),
        path: &entry.path,
        kind: if entry.attr.is_dir { "directory" } else { "file" },
        length: shown_len(entry),
        chunks: entry.attr.chunks,
        modified: dates::rfc3339(entry.attr.modified_ms),
    }
}

/// A listing does not ask the head of an open chunk: the last length it reported is good enough here.
pub(crate) fn shown_len(entry: &Entry) -> u64 {
    entry.attr.len.saturating_add(u64::from(entry.attr.tail_len_hint))
}

fn next_url(path: &NamePath, page: &Listing, limit: u32, recursive: bool) -> Option<String> {
    let after = url::encode_segment(page.next.as_deref()?);
    let slash = if path.is_root() { "" } else { "/" };
    let recursive = if recursive { "&recursive" } else { "" };
    Some(format!("/fs{}{slash}?limit={limit}&after={after}{recursive}", url::encode_path(path)))
}

/// HTML when it is named and not ranked below JSON. `*/*`, as curl sends it, gets JSON.
fn wants_html(headers: &HeaderMap) -> bool {
    let quality = |wanted: &str| {
        let lines = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut types = lines.flat_map(|line| line.split(','));
        types.find_map(|part| {
            let mut fields = part.split(';').map(str::trim);
            let named = fields.next()?.eq_ignore_ascii_case(wanted);
            let q = fields.find_map(|field| field.strip_prefix("q=")).map_or(Some(1.0), |q| q.parse::<f32>().ok());
            named.then_some(q.unwrap_or(0.0))
        })
    };
    quality("text/html").is_some_and(|html| html > 0.0 && html >= quality("application/json").unwrap_or(0.0))
}

fn html(path: &NamePath, page: &Listing, limit: u32, recursive: bool) -> String {
    let title = escape(path.as_str());
    let mut out = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{title}</title></head>\n\
         <body><h1>{title}</h1>\n<table cellpadding=\"4\">\n"
    );
    if !path.is_root() {
        out += "<tr><td><a href=\"../\">../</a></td><td></td><td></td></tr>\n";
    }
    for entry in &page.entries {
        let name = name_below(path, &entry.path);
        let slash = if entry.attr.is_dir { "/" } else { "" };
        // A link is relative, so each name is encoded apart and can hold no scheme, query or fragment.
        let link = name.split('/').map(url::encode_segment).collect::<Vec<_>>().join("/");
        let length = if entry.attr.is_dir { String::new() } else { shown_len(entry).to_string() };
        let modified = dates::rfc3339(dates::seconds(entry.attr.modified_ms) * 1000);
        let _ = writeln!(
            out,
            "<tr><td><a href=\"{link}{slash}\">{}{slash}</a></td><td align=\"right\">{length}</td><td>{modified}</td></tr>",
            escape(name)
        );
    }
    out += "</table>\n";
    if let Some(next) = next_url(path, page, limit, recursive) {
        let _ = writeln!(out, "<p><a rel=\"next\" href=\"{}\">more</a></p>", escape(&next));
    }
    out + "</body></html>\n"
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            '\'' => out += "&#39;",
            _ => out.push(character),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts_html(accept: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, accept.parse().unwrap());
        wants_html(&headers)
    }

    #[test]
    fn browsers_get_html_and_programs_json() {
        assert!(accepts_html("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"));
        assert!(accepts_html("application/json;q=0.5, text/html"));
        for json in ["*/*", "application/json", "text/html;q=0.5, application/json", "text/html;q=0", "text/*"] {
            assert!(!accepts_html(json), "{json}");
        }
    }

    #[test]
    fn limits_are_at_least_one_and_at_most_a_page() {
        assert_eq!(limit(None, 1000).ok(), Some(1000));
        assert_eq!(limit(Some("5000"), 1000).ok(), Some(1000));
        assert_eq!(limit(Some("7"), 1000).ok(), Some(7));
        assert!(limit(Some("0"), 1000).is_err() && limit(Some("-1"), 1000).is_err());
    }

    #[test]
    fn names_are_what_lies_below_the_directory() {
        let dir = NamePath::parse("/a").unwrap();
        assert_eq!(name_below(&dir, "/a/b/c"), "b/c");
        assert_eq!(name_below(&NamePath::root(), "/a"), "a");
    }
}
