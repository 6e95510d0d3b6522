//! Tables in and out. Files are Parquet, `-` is an Arrow IPC stream; what is read is recognised by its first bytes.

mod batches;
mod input;
mod open;
mod output;
mod stream;

pub use batches::Batches;
pub use input::{BATCH, Inputs};
pub use open::is_table;
pub use output::{Output, target};
