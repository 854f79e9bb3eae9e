//! The trained projector between encoder and LLM.
//!
//! Two kinds of the field: `conv` (two convolutions and two linear layers, 50 Hz to 12.5 Hz, the official MLC-SLM
//! baseline) and `stack` (k frames side by side, then an MLP; SLAM-LLM). Utterances are projected together, so that the weights are read
//! once and their gradients made once, but each as if it were alone: padding never leaks into a convolution's edge.

use tch::{Device, Kind, Tensor};
use zipper_config::schema::{ProjectorConfig, ProjectorKind};

use crate::init;
use crate::param::{Param, ParamRole, ParamScope};

const LAYER_NORM_EPS: f64 = 1e-5;
/// Frames that the `conv` projector turns into one.
const CONV_STRIDE: i64 = 4;

/// Turns encoder frames into LLM embeddings.
#[derive(Debug)]
pub struct Projector {
    kind: ProjectorKind,
    stack: i64,
    params: Vec<Param>,
}

impl Projector {
    /// A projector with PyTorch's default initial values, drawn from `seed`; its parameters are of `kind`.
    pub fn new(
        config: &ProjectorConfig,
        d_encoder: i64,
        d_llm: i64,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Self {
        let stack = config.stack as i64;
        let mut new = Initial {
            seed,
            device,
            kind,
            params: Vec::new(),
        };
        match config.kind {
            ProjectorKind::Conv => {
                new.layer("conv1", &[d_encoder, d_encoder, 3]);
                new.layer("conv2", &[CONV_STRIDE * d_encoder, d_encoder, 3]);
                new.layer("linear1", &[d_encoder, CONV_STRIDE * d_encoder]);
                new.layer("linear2", &[d_llm, d_encoder]);
                new.add("norm.weight", &Tensor::ones([d_llm], tch::kind::FLOAT_CPU));
                new.add("norm.bias", &Tensor::zeros([d_llm], tch::kind::FLOAT_CPU));
            }
            ProjectorKind::Stack => {
                let hidden = config.hidden.map_or(d_encoder, |hidden| hidden as i64);
                new.layer("linear1", &[hidden, stack * d_encoder]);
                new.layer("linear2", &[d_llm, hidden]);
            }
        }
        Self {
            kind: config.kind,
            stack,
            params: new.params,
        }
    }

    /// Its trainable parameters.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// Projects utterances.
    ///
    /// # Shapes
    /// - `utterances`: `[time, d_encoder]` each
    /// - returns: for each of them `[ceil(time / 4), d_llm]` with `conv`, `[ceil(time / stack), d_llm]` with `stack`
    ///
    /// # Panics
    /// If there are no utterances.
    pub fn forward(&self, utterances: &[Tensor]) -> Vec<Tensor> {
        let stride = match self.kind {
            ProjectorKind::Conv => CONV_STRIDE,
            ProjectorKind::Stack => self.stack,
        };
        let lengths = utterances
            .iter()
            .map(|frames| (frames.size()[0] + stride - 1) / stride);
        let lengths: Vec<i64> = lengths.collect();
        let kind = self.params[0].tensor.kind();
        let utterances: Vec<Tensor> = utterances.iter().map(|frames| frames.to_kind(kind)).collect();
        let packed = match self.kind {
            ProjectorKind::Conv => self.convolve(&utterances, &lengths),
            ProjectorKind::Stack => self.stack(&utterances),
        };
        packed.split_with_sizes(&lengths, 0)
    }

    /// `[ceil(time / 4) of all utterances, d_llm]`.
    fn convolve(&self, utterances: &[Tensor], lengths: &[i64]) -> Tensor {
        let tensor = |index: usize| &self.params[index].tensor;
        let longest = utterances
            .iter()
            .map(|frames| frames.size()[0])
            .max()
            .unwrap_or(0);
        let padded: Vec<Tensor> = utterances
            .iter()
            .map(|frames| frames.constant_pad_nd([0, 0, 0, longest - frames.size()[0]]))
            .collect();
        let ends: Vec<i64> = utterances.iter().map(|frames| frames.size()[0]).collect();
        let x = Tensor::stack(&padded, 0).transpose(1, 2);
        let x = x.conv1d(tensor(0), Some(tensor(1)), 1, 1, 1, 1).gelu("none");
        // Behind its end an utterance has zeros, as where it ends by itself, and not what the first convolution makes of zeros.
        let ends = Tensor::from_slice(&ends).to_device(x.device()).view([-1, 1, 1]);
        let behind = Tensor::arange(longest, (Kind::Int64, x.device())).ge_tensor(&ends);
        let x = x.masked_fill(&behind, 0.0);
        let x = x
            .conv1d(tensor(2), Some(tensor(3)), CONV_STRIDE, 1, 1, 1)
            .transpose(1, 2);
        let valid: Vec<Tensor> = x
            .unbind(0)
            .iter()
            .zip(lengths)
            .map(|(x, &length)| x.narrow(0, 0, length))
            .collect();
        let x = Tensor::cat(&valid, 0).linear(tensor(4), Some(tensor(5))).relu();
        let x = x.linear(tensor(6), Some(tensor(7))).relu();
        let width = x.size()[1];
        x.layer_norm([width], Some(tensor(8)), Some(tensor(9)), LAYER_NORM_EPS, false)
    }

    /// `[ceil(time / stack) of all utterances, d_llm]`.
    fn stack(&self, utterances: &[Tensor]) -> Tensor {
        let tensor = |index: usize| &self.params[index].tensor;
        let stacked: Vec<Tensor> = utterances
            .iter()
            .map(|frames| {
                let (time, width) = frames.size2().expect("frames are [time, d_encoder]");
                let padding = (self.stack - time % self.stack) % self.stack;
                frames
                    .constant_pad_nd([0, 0, 0, padding])
                    .view([-1, self.stack * width])
            })
            .collect();
        let x = Tensor::cat(&stacked, 0)
            .linear(tensor(0), Some(tensor(1)))
            .gelu("none");
        x.linear(tensor(2), Some(tensor(3)))
    }
}

/// Parameters being made.
struct Initial {
    seed: u64,
    device: Device,
    kind: Kind,
    params: Vec<Param>,
}

impl Initial {
    /// Weight and bias of a linear layer `[d_out, d_in]` or a convolution `[d_out, d_in, width]`, both uniform within
    /// 1 / sqrt(inputs), as `torch.nn.Linear` and `torch.nn.Conv1d` start.
    fn layer(&mut self, name: &str, shape: &[i64]) {
        let inputs: i64 = shape[1..].iter().product();
        let bound = 1.0 / (inputs as f64).sqrt();
        for (part, shape) in [("weight", shape), ("bias", &shape[..1])] {
            let name = format!("{name}.{part}");
            let value = init::uniform(self.seed, &format!("projector.{name}"), shape, bound);
            self.add(&name, &value);
        }
    }

    fn add(&mut self, name: &str, value: &Tensor) {
        let name = format!("projector.{name}");
        let value = value.to_device(self.device).to_kind(self.kind);
        self.params
            .push(Param::new(name, ParamScope::Shared, ParamRole::Projector, &value));
    }
}
