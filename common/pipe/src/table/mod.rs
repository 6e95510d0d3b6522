//! Tables in and out. Files are Parquet, `-` is an Arrow IPC stream; what is read is recognised by its first bytes.

mod batches;
#[cfg(feature = "cloud")]
mod cloud;
mod input;
mod open;
mod opened;
mod output;
mod storage;
mod stream;

pub use batches::Batches;
pub use input::{BATCH, Inputs};
pub use open::is_table;
pub use output::Output;
pub use storage::is_url;
pub(crate) use storage::{Builder, Storage};
