//! The losses of pairs on a GPU, without a wait for it: sums of squares and the gradient by the prediction, in one launch.

use candle_core::{DType, Result, Tensor, bail};
#[cfg(feature = "cuda")]
use candle_core::{WithDType, cuda_backend::cudarc::driver::CudaView};

#[cfg(feature = "cuda")]
use super::cuda::{self, Number, launch, of_type};

/// How a loss depends on the margin z.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Slope {
    /// -(1 - p)(1 + a p), with p = sigma(z)
    Poly(f64),
    /// 2 z - 1
    Ipo,
    /// p (1 - p)(z - logit(1 - alpha))
    Dmpo(f64),
    /// The weight of the errors' difference, clamp(0.5 - 0.4 z, eta, 1 - eta)
    Linear(f64),
    /// Not at all: the error on the preferred image
    Sft,
}

/// What a pair's loss is made from, besides the predictions.
#[derive(Clone, Copy, Debug)]
pub struct PairNumbers {
    pub target: f64,
    pub weight: f64,
    pub beta: f64,
    /// The weights of the errors of winner and loser.
    pub of_errors: [f64; 2],
}

/// What is the same for all pairs.
#[derive(Clone, Copy, Debug)]
pub struct PairLosses {
    pub slope: Slope,
    /// mu of the guard, if there is one.
    pub guard: Option<f64>,
    /// beta / 2 times the weight of the anchor; 0 without one.
    pub anchor: f64,
    /// The factor of the gradient.
    pub scale: f64,
}

/// Sums over the numbers of the images of a pair, each of winner and loser.
#[derive(Clone, Copy, Debug)]
pub struct PairSums {
    /// (policy - target)^2 and (reference - target)^2
    pub policy: [f64; 2],
    pub reference: [f64; 2],
    /// policy^2 and reference^2
    pub policy_size: [f64; 2],
    pub reference_size: [f64; 2],
    /// (policy - target) of the winner times that of the loser
    pub product: f64,
    /// (policy - base)^2
    pub apart: [f64; 2],
}

impl PairSums {
    /// f64 that a pair has in a tensor.
    pub const LENGTH: usize = 11;

    /// As the kernel writes them; `LENGTH` numbers.
    pub fn read(row: &[f64]) -> Result<Self> {
        let &[p, q, r, s, a, b, c, d, product, e, f] = row else { bail!("a pair has {} sums", row.len()) };
        let (policy, reference, policy_size, reference_size) = ([p, q], [r, s], [a, b], [c, d]);
        Ok(Self { policy, reference, policy_size, reference_size, product, apart: [e, f] })
    }
}

impl PairLosses {
    /// The gradient of `scale` times the losses by the policy's predictions, and the pairs' sums (B, `PairSums::LENGTH`). Predictions
    /// are (2B, C, h, w), the winners first; `target` is f32. `base` is that of the anchor.
    #[cfg(feature = "cuda")]
    pub fn gradient(
        &self,
        [policy, reference]: [&Tensor; 2],
        base: Option<&Tensor>,
        target: &Tensor,
        pairs: &[PairNumbers],
    ) -> Result<(Tensor, Tensor)> {
        fn of<T: Number + WithDType>(
            losses: &PairLosses,
            predictions: [&Tensor; 3],
            target: &Tensor,
            pairs: &[PairNumbers],
        ) -> Result<(Tensor, Tensor)> {
            let shape = predictions[0].shape();
            let all = [predictions[1], predictions[2], target];
            if all.iter().any(|t| t.shape() != shape) || shape.dims().first() != Some(&(2 * pairs.len())) {
                bail!("losses of {} pairs: predictions of shape {shape:?}, target {:?}", pairs.len(), target.shape())
            }
            let device = predictions[0].device().as_cuda_device()?;
            let numbers: Vec<f64> = pairs.iter().flat_map(PairNumbers::row).collect();
            let (numbers, n, each) =
                (device.clone_htod(&numbers)?, pairs.len(), shape.elem_count() / (2 * pairs.len()));
            let (seed, sums) =
                (cuda::room::<T>(device, shape.elem_count())?, cuda::room::<f64>(device, n * PairSums::LENGTH)?);
            let (form, a) = losses.slope.number();
            let (mu, anchor, scale) = (losses.guard.unwrap_or(-1.0), losses.anchor, losses.scale);
            cuda::with_views::<T, 3, _>(predictions, |device, [policy, reference, base]| {
                cuda::with_views::<f32, 1, _>([target], |_, [target]| {
                    let (name, grid) = (T::kernel("pair_loss"), (n as u32, THREADS));
                    let (numbers, to, sums): (CudaView<f64>, _, _) =
                        (numbers.as_view(), seed.as_view(), sums.as_view());
                    launch!(
                        device, name, grid, policy, reference, base, target, numbers, to, sums, each, n as i32, form,
                        a, mu, anchor, scale
                    )
                })
            })?;
            Ok((cuda::tensor(seed, device, shape), cuda::tensor(sums, device, (n, PairSums::LENGTH))))
        }
        if policy.dtype() != reference.dtype() || base.is_some_and(|base| base.dtype() != policy.dtype()) {
            bail!("losses of predictions of several types")
        }
        let base = base.unwrap_or(policy);
        of_type!(policy.dtype(), of(self, [policy, reference, base], target, pairs))
    }

    #[cfg(not(feature = "cuda"))]
    pub fn gradient(
        &self,
        _: [&Tensor; 2],
        _: Option<&Tensor>,
        _: &Tensor,
        _: &[PairNumbers],
    ) -> Result<(Tensor, Tensor)> {
        Err(candle_core::Error::NotCompiledWithCudaSupport)
    }
}

/// Threads of a block, which works on one pair.
#[cfg(feature = "cuda")]
const THREADS: u32 = 256;

#[cfg(feature = "cuda")]
impl PairNumbers {
    fn row(&self) -> [f64; 5] {
        [self.target, self.weight, self.beta, self.of_errors[0], self.of_errors[1]]
    }
}

#[cfg(feature = "cuda")]
impl Slope {
    /// The form in `kernels.cu`, and its number.
    fn number(self) -> (i32, f64) {
        match self {
            Slope::Poly(a) => (0, a),
            Slope::Ipo => (1, 0.0),
            Slope::Dmpo(alpha) => (2, alpha),
            Slope::Linear(eta) => (3, eta),
            Slope::Sft => (4, 0.0),
        }
    }
}

/// Numbers of a GPU's tensors of any shapes, read at once, as f64: the program waits for the GPU once.
pub fn read_all(tensors: &[&Tensor]) -> Result<Vec<f64>> {
    let flat = tensors.iter().map(|t| t.flatten_all()?.to_dtype(DType::F64)).collect::<Result<Vec<_>>>()?;
    match &flat[..] {
        [] => Ok(vec![]),
        [one] => one.to_vec1(),
        all => Tensor::cat(all, 0)?.to_vec1(),
    }
}
