//! Differentiable operations, one file each. An operation has a kernel for CPUs, a composition of candle's operations for other
//! devices, and a kernel for GPUs where the composition would take a dozen passes: see `kernel::Kernel`.
//!
//! Why not candle's own: its `softmax_last_dim` and fused `LayerNorm` have no backward pass and drop gradients without an error,
//! its `gelu` is the tanh form, and on the CPU its convolution and norms take two to eighty times as long as torch's.
//!
//! Every function returns an error where a tensor lies on another device than the others or has a shape or type that the
//! operation does not take; "Errors" below names what is special to a function.
//!
//! Two rules hold in every kernel here. Work is cut into pieces whose size never depends on the number of threads, and sums run
//! in a fixed order: so one thread and many give the same bits. And a row or an image meets the same arithmetic whatever
//! stands beside it in the batch: so shards and batch sizes give the same bits too.

mod accumulate;
mod activation;
mod adamw;
mod adapted;
mod arithmetic;
mod attention;
#[cfg(feature = "cuda")]
mod attention_cuda;
mod conv;
#[cfg(feature = "cudnn")]
mod conv_cudnn;
#[cfg(feature = "cuda")]
mod cuda;
mod frozen;
mod gate;
pub mod hand;
mod kernel;
mod linear;
#[cfg(feature = "cuda")]
mod linear_cuda;
mod math;
mod matrix;
mod narrow;
#[cfg(feature = "nccl")]
pub mod nccl;
mod norm;
mod pairs;
mod pool;
mod precomputed;
#[cfg(feature = "cuda")]
mod product;
mod rotary;
mod seed;
mod shape;
#[cfg(test)]
mod tests;
mod unchanged;
mod values;
mod way;
mod winograd;

pub use accumulate::{Sums, accumulate, accumulate_store};
pub use activation::{geglu, gelu, gelu_tanh, quick_gelu, silu};
pub use adamw::{AdamWStep, Clip, Moved, rounding_seed};
pub use adapted::linear_adapted;
pub use arithmetic::{add_to, clear, clip, map_in_place, mix, scale, scale_to, sum_of_squares, sums_of_squares};
pub use attention::{Mask, attention};
pub use conv::conv2d;
pub use frozen::{freeze, linear_frozen};
pub use gate::add_gated;
pub use linear::linear;
pub use narrow::with_copies;
pub use norm::{Activation, group_norm, group_norm_grad, layer_norm, layer_norm_grad, modulated_layer_norm, rms_norm};
pub use pairs::{PairLosses, PairNumbers, PairSums, Slope, read_all};
pub use pool::Pool;
pub use rotary::rotate;
pub use seed::backward_from;
pub use shape::{from_tokens, pad_bottom_right, to_tokens, upsample_nearest};
pub use unchanged::unchanged;
pub use values::{with_values, write};

/// Whether the operations on this device go through kernels for GPUs, which add gradients to their sums in place and are never waited
/// for. They do unless the environment has `BDPO_GPU=composed`.
pub fn has_kernels(device: &candle_core::Device) -> bool {
    device.is_cuda() && !way::is_composed()
}

/// How many GPUs this process sees: none without the feature `cuda`.
pub fn visible_gpus() -> usize {
    #[cfg(feature = "cuda")]
    {
        use candle_core::cuda_backend::cudarc::driver::CudaContext;
        CudaContext::device_count().map_or(0, |n| n.max(0) as usize)
    }
    #[cfg(not(feature = "cuda"))]
    0
}
