//! Which of two implementations the operations use on a GPU.

use std::sync::OnceLock;

/// Whether operations use only the older implementation, which was tested on a GPU: `BDPO_GPU=composed` in the environment.
pub(crate) fn is_composed() -> bool {
    static COMPOSED: OnceLock<bool> = OnceLock::new();
    *COMPOSED.get_or_init(|| std::env::var_os("BDPO_GPU").is_some_and(|way| way == "composed"))
}
