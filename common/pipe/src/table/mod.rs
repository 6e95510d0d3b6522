//! Reading and writing tables. Files are Parquet, `-` is an Arrow IPC stream; inputs are recognised by their first bytes.

mod batches;
#[cfg(feature = "cloud")]
mod cloud;
mod input;
mod ipc;
mod open;
mod opened;
mod output;
mod storage;
mod stream;
mod text;

pub use batches::Batches;
pub(crate) use batches::columns_of;
pub use input::{BATCH, Inputs};
pub use open::{has_parts, is_table};
pub use output::Output;
pub(crate) use storage::{Builder, Source};
