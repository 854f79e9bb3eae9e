//! A checkpoint's contents, taken from the training thread: the copy from the device into reused host memory is all that
//! training waits for. Serialising happens elsewhere.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tch::{Device, Tensor};
use zipper_model::param::ParamScope;
use zipper_types::{Rank, Stage, Step};

use crate::TrainError;
use crate::session::{Part, Session};
use crate::state::{self, STATE_PART, TrainState};

/// Named tensors in host memory: the contents of one part.
type Named = BTreeMap<String, Tensor>;

/// Host memory of earlier captures, by part.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pool(Arc<Mutex<Vec<BTreeMap<String, Named>>>>);

/// This rank's parts of a checkpoint, in host memory; gives the memory back when it is dropped.
#[derive(Debug)]
pub struct Capture {
    state: TrainState,
    /// Whether this rank writes what is not a tensor.
    writes_state: bool,
    parts: BTreeMap<String, Named>,
    pool: Pool,
}

impl Session {
    /// Copies this rank's part of the state as it is: rank 0 the shared parameters, the first owner of a bank that bank.
    ///
    /// # Errors
    /// [`TrainError::State`] between the entry into a stage and its first step.
    pub fn capture(&self) -> Result<Capture, TrainError> {
        let state = self.boundary.clone().ok_or_else(|| {
            TrainError::State("a checkpoint holds the state after a step, and none was made".to_owned())
        })?;
        let rank = self.team().rank();
        let params = self.replica.params();
        let mut parts = self.pool.take();
        let mut fill = |part: String, tensors: Vec<(String, Tensor)>| {
            let before = parts.remove(&part).unwrap_or_default();
            let named = tensors.into_iter().map(|(name, tensor)| {
                let copy = host_copy(&tensor, before.get(&name));
                (name, copy)
            });
            let named = named.collect();
            (part, named)
        };
        let mut filled = BTreeMap::new();
        for (scope, name) in self.replica.scopes() {
            let writer = match scope {
                ParamScope::Shared => Rank(0),
                ParamScope::Bank(language) => self.team().placement().first_owner(language),
            };
            if writer != rank {
                continue;
            }
            let of_scope = params.iter().filter(|param| param.scope == scope);
            let values = of_scope.map(|param| (param.name.clone(), param.tensor.detach()));
            filled.extend([
                fill(state::parameters_part(&name), values.collect()),
                fill(state::optimizer_part(&name), self.optimizer.state(&params, scope)),
            ]);
        }
        Ok(Capture {
            state,
            writes_state: rank == Rank(0),
            parts: filled,
            pool: self.pool.clone(),
        })
    }
}

/// `tensor` in host memory: in that of `before`, if it has the right shape and kind.
fn host_copy(tensor: &Tensor, before: Option<&Tensor>) -> Tensor {
    match before {
        Some(before) if before.size() == tensor.size() && before.kind() == tensor.kind() => {
            let mut copy = before.shallow_clone();
            tch::no_grad(|| copy.copy_(tensor));
            copy
        }
        _ => tensor.to_device(Device::Cpu).copy(),
    }
}

impl Capture {
    /// The step it is of.
    pub fn step(&self) -> Step {
        self.state.step
    }

    /// The stage of that step.
    pub fn stage(&self) -> Stage {
        self.state.stage
    }

    /// The objects of the checkpoint that this rank writes.
    ///
    /// # Errors
    /// [`TrainError::State`] if a part cannot be built.
    pub fn parts(&self) -> Result<Vec<Part>, TrainError> {
        let mut parts = Vec::with_capacity(self.parts.len() + 1);
        for (name, tensors) in &self.parts {
            let tensors = tensors.iter().map(|(name, tensor)| (name.clone(), tensor));
            parts.push(Part {
                name: name.clone(),
                bytes: state::to_safetensors(tensors)?,
            });
        }
        if self.writes_state {
            let bytes = serde_json::to_vec_pretty(&self.state)
                .map_err(|error| TrainError::State(error.to_string()))?;
            parts.push(Part {
                name: STATE_PART.to_owned(),
                bytes,
            });
        }
        Ok(parts)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.pool.give_back(std::mem::take(&mut self.parts));
    }
}

impl Pool {
    /// Checkpoints that are on their way at the same time: one that is stored, one that waits.
    const CAPTURES: usize = 2;

    fn take(&self) -> BTreeMap<String, Named> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop()
            .unwrap_or_default()
    }

    fn give_back(&self, parts: BTreeMap<String, Named>) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < Self::CAPTURES {
            free.push(parts);
        }
    }
}
