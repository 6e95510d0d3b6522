//! How a file was made, stored inside it: tool, version, the arguments that decide the content, hashes of models and inputs, and the
//! inputs' own origins. There are no timestamps, paths, threads, batch sizes, shards or devices in it: the same work gives the same
//! bytes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The metadata key, in Arrow schemas and safetensors files alike.
pub const KEY: &str = "origin";

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    pub tool: String,
    pub version: String,
    /// The arguments that decide the content, in a fixed order.
    pub args: Map<String, Value>,
    /// Role -> hash of the weights and of everything else that decides the model's output.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub models: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<InputOrigin>,
}

/// One input: its content hash (absent for a pipe) and its own origin, if it has one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InputOrigin {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub origin: Option<Box<Origin>>,
}

impl Origin {
    pub fn new(tool: &str) -> Self {
        Self {
            tool: tool.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            args: Map::new(),
            models: Map::new(),
            inputs: vec![],
        }
    }

    pub fn arg(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.args.insert(name.into(), value.into());
        self
    }

    pub fn model(mut self, role: &str, hash: impl Into<Value>) -> Self {
        self.models.insert(role.into(), hash.into());
        self
    }

    pub fn inputs(mut self, inputs: impl IntoIterator<Item = InputOrigin>) -> Self {
        self.inputs.extend(inputs);
        self
    }

    pub fn to_json(&self) -> String {
        // Maps with string keys and plain values always serialise.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The origin in a file's metadata; `None` if the text is not one.
    pub fn from_json(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }

    /// This origin and those of all inputs, nearest first.
    pub fn chain(&self) -> Vec<&Origin> {
        let mut all = vec![self];
        for input in &self.inputs {
            all.extend(input.origin.iter().flat_map(|o| o.chain()));
        }
        all
    }
}
