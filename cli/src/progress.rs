//! Progress bars: on standard error, and only when people watch it.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::output::watched;

/// A bar that counts bytes; of unknown length a running count. Invisible when nobody watches.
#[must_use]
pub(crate) fn bytes(total: Option<u64>, label: &str) -> ProgressBar {
    if !watched() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(8));
    let template = if total.is_some() {
        "{msg:20!} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec} {eta}"
    } else {
        "{msg:20!} {spinner} {bytes} {binary_bytes_per_sec} {elapsed}"
    };
    // The templates are constants; a wrong one would leave the default bar.
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(label.to_owned());
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
