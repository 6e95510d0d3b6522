//! The common part of the tools: tables, provenance, the command line, seeds, and what pairs, metrics and scored tables are.
//! No network is needed here, so `vote`, `winrate` and `prompts` build in seconds.
//!
//! A function that reads or writes a file fails if that cannot be done, and names the file and what is wrong with it.

pub mod ahead;
pub mod atomic;
pub mod augment;
pub mod cli;
pub mod column;
pub mod delimited;
pub mod device;
pub mod fields;
pub mod foreign;
pub mod grid;
pub mod hashes;
pub mod id;
pub mod image_column;
pub mod image_keys;
pub mod job;
pub mod kappa;
pub mod lock;
pub mod memory;
pub mod metrics;
pub mod moments;
pub mod names;
pub mod origin;
pub mod pairs;
pub mod panics;
pub mod parts;
pub mod place;
pub mod progress;
pub mod prompt_source;
mod replaced;
pub mod rule;
pub mod schema;
pub mod scored;
pub mod scratch;
pub mod seed;
pub mod shard;
pub mod shown;
pub mod stdout;
pub mod stop;
pub mod strict;
pub mod table;
pub mod take;
pub mod text;
pub mod winrates;
