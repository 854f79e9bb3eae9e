//! How a session changes teams: it leaves one with what it remembers, and begins in another from a step that all its ranks
//! together remember (DESIGN 5).

use std::collections::BTreeSet;

use tch::{Kind, Tensor};
use zipper_collectives::ProcessGroup;
use zipper_model::param::ParamScope;
use zipper_types::{Rank, Stage, Step};

use crate::TrainError;
use crate::memory::{HeldState, Remembered};
use crate::session::{Origin, Session};
use crate::state::TrainState;
use crate::team::Team;

/// A scope that a team shares out: who gives it, and what the others are told it is.
struct Given {
    scope: ParamScope,
    by: Rank,
}

impl Session {
    /// What this rank could give to others, newest first.
    pub fn held(&self) -> Vec<HeldState> {
        let mut held = self.memory.held();
        if let Some(state) = &self.boundary {
            let scopes = self.replica.scopes().into_keys();
            let banks = scopes.filter_map(|scope| match scope {
                ParamScope::Shared => None,
                ParamScope::Bank(language) => Some(language),
            });
            held.push(HeldState {
                step: state.step,
                stage: state.stage,
                shared: true,
                banks: banks.collect(),
            });
        }
        held.sort_by_key(|held| std::cmp::Reverse(held.step));
        held
    }

    /// Leaves the team, if there is one. What is trained and what is remembered of earlier steps stay, until a new team has made
    /// its first step.
    pub fn leave(&mut self) {
        self.reduction = None;
        self.team = None;
        let now = self
            .boundary
            .take()
            .map(|state| Remembered::of(state, &self.replica.params(), &self.optimizer));
        self.memory.end_generation(now);
    }

    /// Begins in a new team after `step` completed steps. The frozen models stay; the banks that this rank owns now are made,
    /// and everything that it does not remember itself comes from the ranks that `origin` names.
    ///
    /// With [`Origin::Checkpoint`] the caller goes on with [`Session::restore`].
    ///
    /// # Collective
    /// Every rank of the team calls it with the same arguments.
    ///
    /// # Errors
    /// [`TrainError::Collective`] if a peer is lost: nothing that was remembered is lost then. [`TrainError::State`] if a rank
    /// does not remember what it was to give.
    pub fn regroup(&mut self, team: Team, step: Step, origin: &Origin) -> Result<(), TrainError> {
        self.leave();
        match origin {
            Origin::Fresh | Origin::Checkpoint => {
                self.rebuild(Stage::Align, team.own_banks())?;
                let state = self.initial_state()?;
                self.adopt(state)?;
            }
            Origin::Memory { shared, banks } => {
                let state = self.share_state(team.world(), step, *shared)?;
                self.rebuild(state.stage, team.own_banks())?;
                self.share_rows(&team, step, *shared, banks)?;
                self.adopt(state)?;
            }
        }
        self.reduction = Some(self.new_reduction(&team)?);
        self.team = Some(team);
        Ok(())
    }

    /// Everything that is not a tensor after `step`, as rank `from` remembers it.
    fn share_state(&self, world: &ProcessGroup, step: Step, from: Rank) -> Result<TrainState, TrainError> {
        let device = self.replica.device();
        let own = match self.memory.state(step) {
            Some(state) if from == world.rank() => {
                serde_json::to_vec(state).map_err(|error| TrainError::State(error.to_string()))?
            }
            _ => Vec::new(),
        };
        let what = format!("state of step {step}");
        let len = Tensor::from_slice(&[own.len() as i64]).to_device(device);
        world.broadcast(&len, from, &what)?;
        let len = len.int64_value(&[0]);
        if len == 0 {
            return Err(TrainError::State(format!(
                "rank {from} was to tell the {what}, and does not remember it"
            )));
        }
        let bytes = if own.is_empty() {
            Tensor::zeros([len], (Kind::Uint8, device))
        } else {
            Tensor::from_slice(&own).to_device(device)
        };
        world.broadcast(&bytes, from, &what)?;
        let bytes = Vec::<u8>::try_from(&bytes.to_device(tch::Device::Cpu))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| TrainError::State(format!("the {what} of rank {from}: {error}")))
    }

    /// Fills parameters and optimizer with their values after `step`: from this rank's own memory, or from others for whom
    /// that is not enough.
    fn share_rows(
        &mut self,
        team: &Team,
        step: Step,
        shared: Rank,
        banks: &[Rank],
    ) -> Result<(), TrainError> {
        let mut scopes = vec![Given {
            scope: ParamScope::Shared,
            by: shared,
        }];
        if self.replica.has_banks() {
            let given = |(language, &by)| Given {
                scope: ParamScope::Bank(language),
                by,
            };
            scopes.extend(banks.iter().enumerate().map(given));
        }
        let mine: BTreeSet<ParamScope> = self.replica.scopes().into_keys().collect();
        let flag = |is: bool| f64::from(u8::from(is));
        // Of each scope: who needs it and lacks it, and whether the one who is to give it does.
        let lacks = scopes.iter().flat_map(|given| {
            let lacks = self.memory.row(step, given.scope).is_none();
            let gives = given.by == team.rank();
            [flag(lacks && mine.contains(&given.scope)), flag(lacks && gives)]
        });
        let lacks = Tensor::from_slice(&lacks.collect::<Vec<f64>>()).to_device(self.replica.device());
        team.world()
            .all_reduce_sum(&lacks, &format!("what is needed of step {step}"))?;
        let lacks = Vec::<f64>::try_from(&lacks)?;
        for (given, lacks) in scopes.iter().zip(lacks.chunks_exact(2)) {
            let name = match given.scope {
                ParamScope::Shared => "the shared parameters".to_owned(),
                ParamScope::Bank(language) => {
                    format!("the bank of `{}`", self.replica.config().data.languages[language])
                }
            };
            if lacks[0] > 0.0 && lacks[1] > 0.0 {
                return Err(TrainError::State(format!(
                    "rank {} was to give {name} of step {step}, and does not remember it",
                    given.by
                )));
            }
            let own = self.memory.row(step, given.scope).map(Tensor::shallow_clone);
            let row = if lacks[0] > 0.0 {
                let row = own.unwrap_or_else(|| self.empty_row(given.scope));
                team.world()
                    .broadcast(&row, given.by, &format!("{name} of step {step}"))?;
                Some(row)
            } else {
                own
            };
            if let Some(row) = row.filter(|_| mine.contains(&given.scope)) {
                self.optimizer.set_row(&self.replica.params(), given.scope, &row);
            }
        }
        Ok(())
    }

    /// A place for a row that another rank gives.
    fn empty_row(&self, scope: ParamScope) -> Tensor {
        let params = self.replica.params();
        let numel: i64 = match scope {
            ParamScope::Shared => {
                let shared = params.iter().filter(|param| param.scope == scope);
                shared.map(|param| param.tensor.numel() as i64).sum()
            }
            ParamScope::Bank(_) => self.replica.adapters().bank_len(),
        };
        // Parameters and two moments.
        Tensor::zeros([3 * numel], (params[0].tensor.kind(), self.replica.device()))
    }

    /// After step `step`: gives the banks that this rank alone owns to the next one, and takes those of the one before, if a
    /// snapshot is due.
    ///
    /// # Collective
    /// Every rank of the team calls it.
    ///
    /// # Errors
    /// [`TrainError::Collective`] if a peer is lost: the snapshot before stays whole.
    pub(crate) fn snapshot_if_due(&mut self, step: Step) -> Result<(), TrainError> {
        let every = self.replica.config().elastic.snapshot_every;
        let (rank, world_size) = (self.team().rank().0, self.team().placement().world_size().0);
        if every == 0 || !step.0.is_multiple_of(every) || world_size == 1 || !self.replica.has_banks() {
            return Ok(());
        }
        let (next, before) = ((rank + 1) % world_size, (rank + world_size - 1) % world_size);
        let alone = |rank: u32| self.team().owned_alone(Rank(rank));
        let due = |languages: &BTreeSet<usize>| -> Vec<usize> {
            let changed =
                |language: &usize| !self.memory.has_snapshot() || self.memory.changed().contains(language);
            languages.iter().copied().filter(changed).collect()
        };
        let params = self.replica.params();
        let give: Vec<Tensor> = due(&alone(rank))
            .into_iter()
            .flat_map(|language| self.optimizer.row(&params, ParamScope::Bank(language)))
            .collect();
        let given = (!give.is_empty()).then(|| Tensor::cat(&give, 0));
        let peers = alone(before);
        let take = due(&peers);
        let row_len = 3 * self.replica.adapters().bank_len();
        let len = row_len * take.len() as i64;
        let kind = (params[0].tensor.kind(), self.replica.device());
        let taken = (!take.is_empty()).then(|| Tensor::zeros([len], kind));
        self.team().world().exchange(
            given.as_ref().map(|given| (given, Rank(next))).as_slice(),
            taken.as_ref().map(|taken| (taken, Rank(before))).as_slice(),
            &format!("copies of banks after step {step}"),
        )?;
        let came = take.iter().enumerate().filter_map(|(index, &language)| {
            let row = taken.as_ref()?.narrow(0, index as i64 * row_len, row_len);
            Some((language, row.copy()))
        });
        let came = came.collect();
        // With a snapshot after every step, what is kept of the last two steps is enough.
        let own = (every > 1).then(|| Remembered::of(self.train_state(), &params, &self.optimizer));
        self.memory.snapshot(step, own, &peers, came);
        Ok(())
    }
}
