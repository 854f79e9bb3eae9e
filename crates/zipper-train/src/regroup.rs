//! How a session changes teams: it leaves one with what it remembers, and begins in another from a step that all its ranks
//! together remember (docs/recovery.md).

use std::collections::BTreeSet;

use tch::{Device, Kind, Tensor};
use zipper_collectives::{CollectiveError, ProcessGroup};
use zipper_model::param::ParamScope;
use zipper_types::{Rank, Stage, Step};

use crate::TrainError;
use crate::memory::{HeldState, Remembered, fingerprint};
use crate::session::{Origin, Session};
use crate::state::TrainState;
use crate::team::Team;

/// What a row holds of each element of a parameter: its value and two moments.
const VALUES_PER_ELEMENT: i64 = 3;

/// A scope that a team shares out, and who gives it.
#[derive(Clone, Copy)]
struct Given {
    scope: ParamScope,
    by: Rank,
}

/// What a rank says of a scope before it is shared out.
#[derive(Clone, Copy)]
struct Holding {
    /// It trains it from now on.
    needs: bool,
    /// It remembers it.
    has: bool,
    /// Of what it remembers.
    fingerprint: i64,
}

impl Session {
    /// What this rank could give to others, newest first.
    pub fn held(&self) -> Vec<HeldState> {
        let mut held = self.memory.held();
        if let Some(state) = &self.boundary {
            let now = HeldState::of(state, self.replica.scopes().into_keys());
            match held.get_mut(&now.step) {
                Some(held) => held.banks.extend(now.banks),
                None => {
                    held.insert(now.step, now);
                }
            }
        }
        held.into_values().rev().collect()
    }

    /// Bytes of parameters and moments of other steps, and of other ranks' banks, that this rank remembers.
    pub fn memory_bytes(&self) -> u64 {
        self.memory.bytes()
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
    /// does not remember what it was to give, [`TrainError::Corpus`] if that is of another corpus than this rank's.
    pub fn regroup(&mut self, team: Team, step: Step, origin: &Origin) -> Result<(), TrainError> {
        self.leave();
        match origin {
            Origin::Fresh => {
                self.rebuild(Stage::Align, team.own_banks())?;
                let state = self.initial_state()?;
                self.adopt(state)?;
            }
            // The rest is read by `restore`.
            Origin::Checkpoint => self.rebuild(Stage::Align, team.own_banks())?,
            Origin::Memory { shared, banks } => {
                let state = self.share_state(team.world(), step, *shared)?;
                self.rebuild(state.stage, team.own_banks())?;
                self.share_rows(&team, step, *shared, banks)?;
                self.adopt(state)?;
            }
        }
        self.reduction = Some(self.new_reduction(&team)?);
        self.team = Some(team);
        if *origin != Origin::Checkpoint {
            self.memory.forget_after(step);
        }
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
        let bytes = Vec::<u8>::try_from(&bytes.to_device(Device::Cpu))?;
        serde_json::from_slice(&bytes)
            .map_err(|error| TrainError::State(format!("the {what} of rank {from}: {error}")))
    }

    /// Fills parameters and optimizer with their values after `step`: from this rank's own memory, or from those who give them, if
    /// it lacks them or has other bits.
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
        let holdings = self.tell_holdings(team.world(), step, &scopes)?;
        let own = team.rank();
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for (index, &given) in scopes.iter().enumerate() {
            let giver = holdings[given.by.0 as usize][index];
            let lacks = |holding: &Holding| {
                holding.needs && (!giver.has || !holding.has || holding.fingerprint != giver.fingerprint)
            };
            let ranks = holdings.iter().zip(0..);
            let takers: Vec<Rank> = ranks
                .filter(|(of_rank, _)| lacks(&of_rank[index]))
                .map(|(_, rank)| Rank(rank))
                .collect();
            if !takers.is_empty() && !giver.has {
                return Err(TrainError::State(format!(
                    "rank {} was to give {} of step {step}, and does not remember it",
                    given.by,
                    self.name(given.scope)
                )));
            }
            if takers.contains(&own) {
                received.push((given.scope, self.empty_row(given.scope), given.by));
            } else if given.by == own {
                let row = self.memory.row(step, given.scope).map(Tensor::shallow_clone);
                let row = row.expect("it has what it was found to have");
                sent.extend(takers.into_iter().map(|taker| (row.shallow_clone(), taker)));
            }
        }
        let sent: Vec<(&Tensor, Rank)> = sent.iter().map(|(row, rank)| (row, *rank)).collect();
        let taken: Vec<(&Tensor, Rank)> = received.iter().map(|(_, row, rank)| (row, *rank)).collect();
        team.world()
            .exchange(&sent, &taken, &format!("what is needed of step {step}"))?;
        for scope in self.replica.scopes().into_keys() {
            let came = received.iter().find(|(received, ..)| *received == scope);
            let row = came
                .map(|(_, row, _)| row)
                .or_else(|| self.memory.row(step, scope));
            let row = row.expect("what it lacked has come");
            self.optimizer.set_row(&self.replica.params(), scope, row);
        }
        Ok(())
    }

    /// What every rank holds of each scope after `step`, in the order of ranks.
    fn tell_holdings(
        &self,
        world: &ProcessGroup,
        step: Step,
        scopes: &[Given],
    ) -> Result<Vec<Vec<Holding>>, TrainError> {
        let mine: BTreeSet<ParamScope> = self.replica.scopes().into_keys().collect();
        let own: Vec<i64> = scopes
            .iter()
            .flat_map(|given| {
                let row = self.memory.row(step, given.scope);
                [
                    i64::from(mine.contains(&given.scope)),
                    i64::from(row.is_some()),
                    row.map_or(0, fingerprint),
                ]
            })
            .collect();
        let own = Tensor::from_slice(&own).to_device(self.replica.device());
        let all = world.all_gather(&own, &format!("what ranks remember of step {step}"))?;
        let holding = |told: &[i64]| Holding {
            needs: told[0] == 1,
            has: told[1] == 1,
            fingerprint: told[2],
        };
        all.iter()
            .map(|of_rank| {
                let told = Vec::<i64>::try_from(of_rank.to_device(Device::Cpu))?;
                Ok(told.chunks_exact(3).map(holding).collect())
            })
            .collect()
    }

    fn name(&self, scope: ParamScope) -> String {
        match scope {
            ParamScope::Shared => "the shared parameters".to_owned(),
            ParamScope::Bank(language) => {
                format!("the bank of `{}`", self.replica.config().data.languages[language])
            }
        }
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
        let kind = params[0].tensor.kind();
        Tensor::zeros([VALUES_PER_ELEMENT * numel], (kind, self.replica.device()))
    }

    /// Whether this team makes snapshots: there are banks of which copies are kept.
    pub(crate) fn makes_snapshots(&self) -> bool {
        self.replica.config().elastic.snapshot_every > 0
            && self.replica.has_banks()
            && self.team().keepers().iter().any(Option::is_some)
    }

    /// After step `step`, if a snapshot is due: remembers this state, gives the banks of which others keep copies to them, and takes
    /// those that this rank keeps. Only what has changed since the last snapshot travels.
    ///
    /// # Collective
    /// Every rank of the team calls it.
    ///
    /// # Errors
    /// [`CollectiveError`] if a peer is lost: the snapshot before stays whole.
    pub(crate) fn snapshot_if_due(&mut self, step: Step) -> Result<(), CollectiveError> {
        let every = self.replica.config().elastic.snapshot_every;
        if !self.makes_snapshots() || (self.memory.has_snapshot() && !step.0.is_multiple_of(every)) {
            return Ok(());
        }
        let team = self.team.as_ref().expect("a session trains in a team");
        let changed = |language| self.memory.has_changed(ParamScope::Bank(language));
        let copies: Vec<(usize, Rank, Rank, bool)> = team
            .keepers()
            .iter()
            .enumerate()
            .filter_map(|(language, keeper)| {
                let giver = team.placement().first_owner(language);
                Some((language, giver, (*keeper)?, changed(language)))
            })
            .collect();
        let kept = copies.iter().filter(|(_, _, keeper, _)| *keeper == team.rank());
        let kept: Vec<usize> = kept.map(|(language, ..)| *language).collect();
        let state = self.boundary.clone().expect("a step has been made");
        let params = self.replica.params();
        let row_len = VALUES_PER_ELEMENT * self.replica.adapters().bank_len();
        let snapshot = self
            .memory
            .begin_snapshot(state, &params, &self.optimizer, &kept, row_len);
        let (mut sent, mut received) = (Vec::new(), Vec::new());
        for &(language, giver, keeper, _) in copies.iter().filter(|(.., changed)| *changed) {
            let row = snapshot.rows.get(&ParamScope::Bank(language));
            let row = || row.expect("its own, or one that it keeps");
            if giver == team.rank() {
                sent.push((row(), keeper));
            } else if keeper == team.rank() {
                received.push((row(), giver));
            }
        }
        let what = format!("copies of banks after step {step}");
        team.world().exchange(&sent, &received, &what)?;
        self.memory.end_snapshot(snapshot);
        Ok(())
    }
}
