//! Which of two ways the operations go on a GPU.

use std::sync::OnceLock;

/// Whether a GPU goes the way that a GPU has confirmed, and no newer one: `BDPO_GPU=composed` in the environment.
pub(crate) fn is_composed() -> bool {
    static COMPOSED: OnceLock<bool> = OnceLock::new();
    *COMPOSED.get_or_init(|| std::env::var_os("BDPO_GPU").is_some_and(|way| way == "composed"))
}
