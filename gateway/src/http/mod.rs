//! HTTP's own rules, apart from any route: pure functions of header fields and attributes.

pub(crate) mod conditions;
pub(crate) mod dates;
pub(crate) mod digest;
pub(crate) mod etag;
pub(crate) mod json;
pub(crate) mod range;
pub(crate) mod url;
