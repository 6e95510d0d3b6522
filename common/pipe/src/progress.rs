//! The progress bar: one line on a terminal, nothing anywhere else.

use std::io::IsTerminal;

pub use indicatif::ProgressBar;
use indicatif::{ProgressDrawTarget, ProgressStyle};

/// A bar over `total` steps of `what`; `None` if the total is unknown, as with a pipe. It is hidden under `--quiet` and where
/// standard error is not a terminal.
pub fn bar(what: &'static str, total: Option<u64>, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(4));
    let template = match total {
        Some(_) => "{prefix} {wide_bar} {pos}/{len} {per_sec} eta {eta} {msg}",
        None => "{prefix} {spinner} {pos} {per_sec} {msg}",
    };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.with_prefix(what)
}
