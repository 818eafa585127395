//! The admin port of a server: `/health` and `/metrics` over HTTP.
