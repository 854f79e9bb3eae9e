//! Goal: AdamW and gradient clipping compute what PyTorch computes, also for a bank that is updated at some steps only.
//! Method: `golden/optimizer.json`, written by `golden/make_optimizer_golden.py` with torch.optim.AdamW.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use tch::{Kind, Tensor};
use zipper_config::schema::OptimizerConfig;
use zipper_model::param::{Param, ParamRole, ParamScope};
use zipper_train::optimizer::{AdamW, LearningRates, clip_factor, squared_norm};
use zipper_train::state;

#[derive(Deserialize)]
struct Golden {
    lr: f64,
    router_lr: f64,
    weight_decay: f64,
    betas: [f64; 2],
    eps: f64,
    clip: f64,
    shapes: BTreeMap<String, Vec<i64>>,
    initial: BTreeMap<String, Vec<f32>>,
    gradients: Vec<BTreeMap<String, Vec<f32>>>,
    norms: Vec<f64>,
    expected: Vec<BTreeMap<String, Vec<f32>>>,
}

struct Optimized {
    golden: Golden,
    params: Vec<Param>,
    optimizer: AdamW,
}

impl Optimized {
    fn new() -> Self {
        let golden: Golden =
            serde_json::from_str(include_str!("../golden/optimizer.json")).expect("the golden file is JSON");
        let param = |name: &str, scope, role| {
            let value = Tensor::from_slice(&golden.initial[name]).view(golden.shapes[name].as_slice());
            Param::new(name, scope, role, &value)
        };
        let params = vec![
            param("shared", ParamScope::Shared, ParamRole::Lora),
            param("bank", ParamScope::Bank(0), ParamRole::Lora),
            param("router", ParamScope::Shared, ParamRole::Router),
        ];
        let config = OptimizerConfig {
            betas: golden.betas,
            eps: golden.eps,
            weight_decay: golden.weight_decay,
        };
        let optimizer = AdamW::new(&config, &params.iter().collect::<Vec<_>>());
        Self {
            golden,
            params,
            optimizer,
        }
    }

    fn step(&mut self, step: usize) {
        let params: Vec<&Param> = self.params.iter().collect();
        let golden = &self.golden.gradients[step];
        let with_gradient: Vec<&Param> = params
            .iter()
            .copied()
            .filter(|param| golden.contains_key(&param.name))
            .collect();
        for param in &with_gradient {
            param.tensor.shallow_clone().zero_grad();
            let gradient = Tensor::from_slice(&golden[&param.name]).view(param.tensor.size().as_slice());
            // The derivative of sum(p * g) by p is g.
            (&param.tensor * gradient).sum(Kind::Float).backward();
        }
        let norm = squared_norm(with_gradient.iter().copied()).sqrt();
        for param in &with_gradient {
            let _ = param
                .tensor
                .grad()
                .g_mul_scalar_(clip_factor(norm, self.golden.clip));
        }
        let updated: BTreeSet<ParamScope> = with_gradient.iter().map(|param| param.scope).collect();
        assert!(
            (norm - self.golden.norms[step]).abs() < 1e-5,
            "norm of step {step}"
        );
        let rates = LearningRates {
            lora: self.golden.lr,
            projector: self.golden.lr,
            router: self.golden.router_lr,
        };
        self.optimizer.step(&params, &updated, rates).unwrap();
    }

    fn assert_expected(&self, step: usize) {
        for param in &self.params {
            let expected = Tensor::from_slice(&self.golden.expected[step][&param.name]);
            let difference = (param.tensor.detach().view([-1]) - expected)
                .abs()
                .max()
                .double_value(&[]);
            assert!(
                difference < 2e-6,
                "`{}` after step {step} differs by {difference:e}",
                param.name
            );
        }
    }
}

#[test]
fn adamw_and_clipping_equal_pytorch() {
    let mut optimized = Optimized::new();
    for step in 0..optimized.golden.expected.len() {
        optimized.step(step);
        optimized.assert_expected(step);
    }
}

/// State that went through a safetensors file goes on exactly where it was.
#[test]
fn restored_state_goes_on() {
    let mut before = Optimized::new();
    (0..3).for_each(|step| before.step(step));
    let mut after = Optimized::new();
    for scope in [ParamScope::Shared, ParamScope::Bank(0)] {
        let params: Vec<&Param> = before.params.iter().collect();
        let moments = before.optimizer.state(&params, scope);
        let bytes = state::to_safetensors(moments.iter().map(|(name, tensor)| (name.clone(), tensor)))
            .expect("moments can be written");
        let tensors = state::from_safetensors("optimizer/shared.safetensors", &bytes).expect("and read");
        let steps = before.optimizer.steps()[&scope];
        let params: Vec<&Param> = after.params.iter().collect();
        after
            .optimizer
            .restore(&params, scope, &tensors)
            .expect("they fit");
        after.optimizer.restore_steps(scope, steps);
    }
    for (from, to) in before.params.iter().zip(&after.params) {
        tch::no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
    }
    for step in 3..6 {
        after.step(step);
        after.assert_expected(step);
    }
}
