//! POST and DELETE: names made, moved, removed, brought back.

use axum::body::Body;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Serialize;
use wire::Kind;

use crate::app::App;
use crate::fail::Fail;
use crate::files::Files;
use crate::fs::{Asked, changed, check_conditions, current, write};
use crate::http::{json, url};
use crate::intake::Intake;

const ACTIONS: &str = "POST needs one of ?append, ?mkdir, ?rename=<target>, ?undelete";

#[derive(Serialize)]
struct Named<'a> {
    path: &'a str,
}

pub(super) async fn post<F: Files>(app: &App<F>, asked: &Asked, intake: Intake<F>) -> Result<Response, Fail> {
    let actions = ["append", "mkdir", "rename", "undelete"];
    let mut wanted = actions.into_iter().filter(|action| asked.query.get(action).is_some());
    match (wanted.next(), wanted.next()) {
        (Some("append"), None) => write::append(app, asked, intake).await,
        (Some("mkdir"), None) => mkdir(app, asked).await,
        (Some("rename"), None) => rename(app, asked).await,
        (Some("undelete"), None) => undelete(app, asked).await,
        _ => Err(Fail::invalid(ACTIONS)),
    }
}

/// Makes a directory and those above it: 201, or 200 when it is there already.
async fn mkdir<F: Files>(app: &App<F>, asked: &Asked) -> Result<Response, Fail> {
    let path = asked.path();
    let there = current(app, path).await?.is_some_and(|attr| attr.is_dir);
    app.files.mkdir(path).await.map_err(|error| Fail::of(&error, path))?;
    let status = if there { StatusCode::OK } else { StatusCode::CREATED };
    Ok(json::answer(status, &Named { path: path.as_str() }))
}

async fn rename<F: Files>(app: &App<F>, asked: &Asked) -> Result<Response, Fail> {
    let Some(target) = asked.query.filled("rename") else { return Err(Fail::invalid("?rename= needs a target path")) };
    let target = url::name_path(target)?;
    check_conditions(app, asked).await?;
    let renamed = app.files.rename(asked.path(), &target, asked.query.flag("replace")).await;
    let attr = renamed.map_err(|error| match error.kind() {
        Kind::Exists => Fail::exists(format!("target path {target} already exists")),
        _ => Fail::of(&error, asked.path()),
    })?;
    Ok(if attr.is_dir {
        json::answer(StatusCode::OK, &Named { path: target.as_str() })
    } else {
        changed(StatusCode::OK, &target, &attr)
    })
}

async fn undelete<F: Files>(app: &App<F>, asked: &Asked) -> Result<Response, Fail> {
    let path = asked.path();
    let attr = app.files.undelete(path).await.map_err(|error| Fail::of(&error, path))?;
    Ok(if attr.is_dir {
        json::answer(StatusCode::OK, &Named { path: path.as_str() })
    } else {
        changed(StatusCode::OK, path, &attr)
    })
}

/// A file, or with `?recursive` a directory and all below it, goes to the trash.
pub(super) async fn delete<F: Files>(app: &App<F>, asked: &Asked) -> Result<Response, Fail> {
    let path = asked.path();
    if path.is_root() {
        return Err(Fail::conflict("cannot remove root directory"));
    }
    check_conditions(app, asked).await?;
    let recursive = asked.query.flag("recursive");
    let attr = app.files.stat(path).await.map_err(|error| Fail::of(&error, path))?;
    if asked.target.slash && !attr.is_dir {
        return Err(Fail::not_found(path));
    }
    if attr.is_dir && !recursive {
        return Err(Fail::conflict(format!("{path} is a directory; delete it and all below it with ?recursive")));
    }
    app.files.delete(path, recursive).await.map_err(|error| Fail::of(&error, path))?;
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    Ok(response)
}
