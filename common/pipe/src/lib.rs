//! What every tool does besides its own verb: tables, provenance, the command-line frame, seeds.
//! Nothing here knows of a network, so `vote`, `winrate` and `prompts` build in seconds.

pub mod ahead;
pub mod atomic;
pub mod augment;
pub mod cli;
pub mod column;
pub mod device;
pub mod grid;
pub mod id;
pub mod job;
pub mod kappa;
pub mod key;
pub mod metrics;
pub mod moments;
pub mod names;
pub mod origin;
pub mod pairs;
pub mod parts;
pub mod place;
pub mod progress;
pub mod prompt_source;
pub mod rule;
pub mod schema;
pub mod scored;
pub mod seed;
pub mod shard;
pub mod stdout;
pub mod stop;
pub mod table;
pub mod take;
pub mod text;
