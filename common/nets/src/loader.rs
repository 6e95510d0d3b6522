//! From weights to a network's layers: a loader hands out tensors by path and decides which of them are trained.

use std::collections::{BTreeMap, BTreeSet};
use std::{cell::RefCell, rc::Rc};

use anyhow::{Context, Result, ensure};
use candle_core::{DType, Device, Tensor, Var};

use crate::lora::{Adapter, LoraConfig};
use crate::{params::Params, weights::Weights};

/// Hands out a network's tensors by path, as in `loader.pp("conv_in").get("weight", &[..])`.
#[derive(Clone)]
pub struct Loader<'a> {
    weights: &'a Weights,
    prefix: String,
    device: Device,
    dtype: DType,
    /// The type of matrices and kernels, if that is another.
    narrow: Option<DType>,
    trained: Trained,
    params: Rc<RefCell<Params>>,
    /// The network's tensors that are never trained, by name.
    constants: Rc<RefCell<BTreeMap<String, Tensor>>>,
    /// Frozen tensors that were handed out before, for networks that share them.
    shared: Option<Rc<RefCell<BTreeMap<String, Tensor>>>>,
    /// The matrices and kernels that were handed out, where somebody notes them.
    noted: Option<Rc<RefCell<Vec<Tensor>>>>,
    /// The names that were asked for.
    asked: Rc<RefCell<BTreeSet<String>>>,
    /// The network sees the variables' memory but is not tracked: for a reference that can be refreshed in place.
    detached: bool,
}

/// Which of a network's tensors are variables.
#[derive(Clone)]
enum Trained {
    Nothing,
    Everything,
    /// Low-rank adapters beside frozen layers, drawn from this seed.
    Adapters(Rc<LoraConfig>, u64),
}

impl<'a> Loader<'a> {
    pub fn frozen(weights: &'a Weights, dtype: DType, device: &Device) -> Self {
        Self {
            weights,
            prefix: String::new(),
            device: device.clone(),
            dtype,
            narrow: None,
            trained: Trained::Nothing,
            params: Default::default(),
            constants: Default::default(),
            shared: None,
            noted: None,
            asked: Default::default(),
            detached: false,
        }
    }

    /// The same loader, which hands out matrices and kernels in the type that the network computes in. Layers would convert them at
    /// every use, to the same numbers; they add biases, and multiply what they have normalised, in f32.
    pub fn narrowed(&self, dtype: DType) -> Self {
        Self { narrow: Some(dtype), ..self.clone() }
    }

    /// Loads f32 variables, which `params()` collects. With `detached`, the network's view of them is not tracked.
    pub fn variables(weights: &'a Weights, device: &Device, detached: bool) -> Self {
        Self { trained: Trained::Everything, detached, ..Self::frozen(weights, DType::F32, device) }
    }

    /// Loads frozen f32 tensors once: all networks that are loaded through clones of this loader hold the same tensors.
    pub fn shared(weights: &'a Weights, device: &Device) -> Self {
        Self { shared: Some(Default::default()), ..Self::frozen(weights, DType::F32, device) }
    }

    /// The same loader with new adapters on the layers that `config` names. `params()` collects these adapters.
    pub fn adapted(&self, config: &LoraConfig, seed: u64, detached: bool) -> Self {
        let trained = Trained::Adapters(Rc::new(config.clone()), seed);
        Self { trained, detached, params: Default::default(), ..self.clone() }
    }

    /// The loader of the part `name`, one step further down the path.
    pub fn pp(&self, name: impl std::fmt::Display) -> Self {
        Self { prefix: self.path(&name.to_string()), ..self.clone() }
    }

    fn path(&self, name: &str) -> String {
        if self.prefix.is_empty() { name.to_owned() } else { format!("{}.{name}", self.prefix) }
    }

    pub fn has(&self, name: &str) -> bool {
        self.weights.has(&self.path(name))
    }

    /// The shape of the tensor `name` at this path, which has `N` dimensions: for networks whose files name no sizes.
    pub fn dims<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let path = self.path(name);
        let dims = self.weights.dims(&path).with_context(|| format!("tensor '{path}' is missing"))?;
        dims.try_into().with_context(|| format!("tensor '{path}' has shape {dims:?}, expected {N} dimensions"))
    }

    /// How many parts `name`.0, `name`.1, ... there are at this path.
    pub fn count(&self, name: &str) -> usize {
        let part = |i: usize| format!("{}.{i}.", self.path(name));
        let names = self.weights.names();
        (0..).take_while(|&i| names.iter().any(|n| n.starts_with(&part(i)))).count()
    }

    /// The same loader, which notes the matrices and kernels that it hands out.
    pub fn noting(&self) -> Self {
        Self { noted: Some(Default::default()), ..self.clone() }
    }

    pub fn noted(&self) -> Vec<Tensor> {
        self.noted.as_ref().map(|noted| noted.borrow().clone()).unwrap_or_default()
    }

    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.load(name, shape)?;
        if let Some(noted) = self.noted.as_ref().filter(|_| shape.len() > 1) {
            noted.borrow_mut().push(tensor.clone());
        }
        Ok(tensor)
    }

    fn load(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let path = self.path(name);
        self.asked.borrow_mut().insert(path.clone());
        let dtype = self.narrow.filter(|_| shape.len() > 1).unwrap_or(self.dtype);
        let load = || Ok::<_, anyhow::Error>(self.weights.get(&path, shape)?.to_dtype(dtype)?.to_device(&self.device)?);
        if let Trained::Everything = self.trained {
            return Ok(self.collect(path.clone(), Var::from_tensor(&load()?)?));
        }
        let Some(shared) = &self.shared else { return load() };
        if let Some(tensor) = shared.borrow().get(&path) {
            return Ok(tensor.clone());
        }
        let tensor = load()?;
        shared.borrow_mut().insert(path, tensor.clone());
        Ok(tensor)
    }

    /// A tensor that is never trained, such as a table of positions.
    pub fn constant(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let frozen = Self { trained: Trained::Nothing, narrow: None, ..self.clone() };
        let tensor = frozen.get(name, shape)?;
        self.constants.borrow_mut().insert(self.path(name), tensor.clone());
        Ok(tensor)
    }

    /// The adapter of the linear layer at this path, if it has one. `weight` is the shape of the layer's weight.
    pub fn adapter(&self, weight: &[usize]) -> Result<Option<Adapter>> {
        let Trained::Adapters(config, seed) = &self.trained else { return Ok(None) };
        if !config.adapts(&self.prefix) {
            return Ok(None);
        }
        let (rank, full) = (config.rank, weight[0].min(weight[1]));
        ensure!(
            rank <= full,
            "an adapter of rank {rank} does not fit the layer '{}', whose weight has rank {full} at most",
            self.prefix
        );
        let (a, b) = Adapter::initial(&self.prefix, weight, rank, *seed, &self.device)?;
        let [name_a, name_b] = Adapter::names(&self.prefix);
        Ok(Some(Adapter { a: self.collect(name_a, a), b: self.collect(name_b, b), scale: config.scale() }))
    }

    /// For layers that cannot be adapted.
    pub fn refuse_adapter(&self) -> Result<()> {
        let asked = matches!(&self.trained, Trained::Adapters(config, _) if config.adapts(&self.prefix));
        ensure!(!asked, "'{}' is not a linear layer: leave it out of the layers to adapt", self.prefix);
        Ok(())
    }

    fn collect(&self, path: String, var: Var) -> Tensor {
        let view = if self.detached { var.as_detached_tensor() } else { var.as_tensor().clone() };
        self.params.borrow_mut().insert(path, var);
        view
    }

    /// Refuses weights that hold more than was asked for: what a network does not read is lost in what it is saved as.
    pub fn refuse_others(&self) -> Result<()> {
        let asked = self.asked.borrow();
        let other = self.weights.names().into_iter().find(|name| !asked.contains(name));
        ensure!(
            other.is_none(),
            "{} holds the tensor '{}', which the configuration does not mention: it belongs to another kind of network",
            self.weights.name,
            other.unwrap_or_default()
        );
        Ok(())
    }

    pub fn params(&self) -> Params {
        self.params.borrow().clone()
    }

    pub fn constants(&self) -> BTreeMap<String, Tensor> {
        self.constants.borrow().clone()
    }
}
