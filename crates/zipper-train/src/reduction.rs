//! Which gradients are summed together, over which ranks, and when (docs/decisions/0003).
//!
//! Gradients of shared parameters are summed over the world, those of a bank over its owners. They lie in buckets, in the
//! order in which a backward pass completes them: the last layer first.

use std::collections::BTreeSet;
use std::time::Duration;

use zipper_collectives::{BucketPlan, BucketSpec, CollectiveError, GradientReducer, ReduceReport};
use zipper_config::schema::RuntimeConfig;
use zipper_model::param::{Param, ParamScope};
use zipper_types::Step;

use crate::team::Team;

const MIB: f64 = 1024.0 * 1024.0;

/// The gradient buckets of one rank in one stage.
pub(crate) struct Reduction {
    reducer: GradientReducer,
    /// The scope of each bucket.
    scopes: Vec<ParamScope>,
    overlap: bool,
}

/// What the reductions of one step were, on this rank.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Traffic {
    /// Bytes of shared gradients, summed over the world.
    pub(crate) shared_bytes: u64,
    /// Bytes of gradients of banks, summed over their owners.
    pub(crate) bank_bytes: u64,
    /// Time for which the training thread waited for them.
    pub(crate) exposed: Duration,
    /// Buckets that were summed, but only after the backward pass.
    pub(crate) late_buckets: usize,
}

/// What this rank has to do with the languages of a step.
pub(crate) struct StepLanguages<'a> {
    /// Those of the global batch.
    pub(crate) in_batch: &'a BTreeSet<usize>,
    /// Those whose banks get a gradient in this rank's last backward pass; empty on a rank without utterances.
    pub(crate) in_last_pass: &'a BTreeSet<usize>,
}

impl Reduction {
    /// Lays the gradients of `params` out in buckets. `num_llm_sites` is the number of adapted layers of the LLM: their
    /// gradients are complete before those of the encoder.
    ///
    /// # Collective
    /// Every rank calls it when it enters a stage.
    ///
    /// # Errors
    /// [`CollectiveError`] if the ranks do not agree about the layout.
    pub(crate) fn new(
        params: &[&Param],
        num_llm_sites: usize,
        team: &Team,
        config: &RuntimeConfig,
    ) -> Result<Self, CollectiveError> {
        let gradients: Vec<Gradient> = params
            .iter()
            .map(|param| Gradient {
                scope: param.scope,
                position: param
                    .site
                    .filter(|&site| site < num_llm_sites)
                    .map_or(0, |site| site + 1),
                bytes: param.bytes(),
            })
            .collect();
        let buckets = buckets(&gradients, (config.bucket_mib * MIB) as usize);
        let specs: Vec<BucketSpec<'_>> = buckets
            .iter()
            .map(|bucket| BucketSpec {
                name: format!("{} from layer {}", gradients_of(bucket.scope), bucket.position),
                group: match bucket.scope {
                    ParamScope::Shared => Some(team.world()),
                    ParamScope::Bank(language) => team.owners_of(language),
                },
                params: bucket.params.iter().map(|&index| &params[index].tensor).collect(),
            })
            .collect();
        Ok(Self {
            reducer: GradientReducer::new(&specs)?,
            scopes: buckets.iter().map(|bucket| bucket.scope).collect(),
            overlap: config.overlap,
        })
    }

    /// Sets the gradients of what is shared, and of the banks of `languages`, to zero.
    pub(crate) fn zero(&self, languages: &BTreeSet<usize>) {
        self.reducer.zero(|bucket| match self.scopes[bucket] {
            ParamScope::Shared => true,
            ParamScope::Bank(language) => languages.contains(&language),
        });
    }

    /// Before the last backward pass of a step; on a rank without utterances there is none.
    pub(crate) fn begin(&self, step: Step, languages: &StepLanguages<'_>) -> Result<(), CollectiveError> {
        let idle = languages.in_last_pass.is_empty();
        let plans: Vec<BucketPlan> = self
            .scopes
            .iter()
            .map(|scope| {
                let (takes_part, gets_gradient) = match scope {
                    ParamScope::Shared => (true, !idle),
                    ParamScope::Bank(language) => (
                        languages.in_batch.contains(language),
                        languages.in_last_pass.contains(language),
                    ),
                };
                match (takes_part, self.overlap, gets_gradient) {
                    (false, _, _) => BucketPlan::Skip,
                    (true, false, _) => BucketPlan::AtEnd,
                    (true, true, true) => BucketPlan::AsReady,
                    (true, true, false) => BucketPlan::Now,
                }
            })
            .collect();
        self.reducer.begin(&format!("step {step}"), &plans)
    }

    /// Waits until every gradient is summed.
    pub(crate) fn finish(&self) -> Result<Traffic, CollectiveError> {
        let ReduceReport {
            bytes_by_bucket,
            exposed,
            launched_in_backward,
        } = self.reducer.finish()?;
        let summed = bytes_by_bucket.iter().filter(|&&bytes| bytes > 0).count();
        let mut traffic = Traffic {
            exposed,
            late_buckets: summed - launched_in_backward,
            ..Traffic::default()
        };
        for (scope, bytes) in self.scopes.iter().zip(bytes_by_bucket) {
            match scope {
                ParamScope::Shared => traffic.shared_bytes += bytes,
                ParamScope::Bank(_) => traffic.bank_bytes += bytes,
            }
        }
        Ok(traffic)
    }
}

fn gradients_of(scope: ParamScope) -> String {
    match scope {
        ParamScope::Shared => "shared gradients".to_owned(),
        ParamScope::Bank(language) => format!("gradients of bank {language}"),
    }
}

/// One parameter's gradient, as the layout sees it.
#[derive(Debug, Clone, Copy)]
struct Gradient {
    scope: ParamScope,
    /// Place in the forward pass; 0 for what stands before the LLM or is used by all of it.
    position: usize,
    bytes: usize,
}

/// Gradients that are summed together.
#[derive(Debug, PartialEq, Eq)]
struct Bucket {
    scope: ParamScope,
    /// Its first place in the forward pass: the last of its gradients to be complete.
    position: usize,
    /// Indices of parameters.
    params: Vec<usize>,
    bytes: usize,
}

/// Buckets of at most `limit` bytes, except for larger parameters, in the order in which backward completes them.
///
/// The buckets of a scope depend only on its own parameters, and their order only on scope and position: ranks with
/// different banks agree about everything that they share.
fn buckets(gradients: &[Gradient], limit: usize) -> Vec<Bucket> {
    let mut order: Vec<usize> = (0..gradients.len()).collect();
    order.sort_by_key(|&index| {
        (
            gradients[index].scope,
            std::cmp::Reverse(gradients[index].position),
        )
    });
    let mut buckets: Vec<Bucket> = Vec::new();
    for index in order {
        let Gradient {
            scope,
            position,
            bytes,
        } = gradients[index];
        match buckets.last_mut() {
            Some(bucket) if bucket.scope == scope && bucket.bytes + bytes <= limit => {
                bucket.params.push(index);
                bucket.bytes += bytes;
                bucket.position = position;
            }
            _ => buckets.push(Bucket {
                scope,
                position,
                params: vec![index],
                bytes,
            }),
        }
    }
    buckets.sort_by_key(|bucket| (std::cmp::Reverse(bucket.position), bucket.scope));
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient(scope: ParamScope, position: usize, bytes: usize) -> Gradient {
        Gradient {
            scope,
            position,
            bytes,
        }
    }

    /// Goal: two ranks with different banks have the same shared buckets, in the same order relative to a common bank.
    #[test]
    fn ranks_agree_about_what_they_share() {
        let layers = 0..5;
        let rank = |banks: &[usize]| {
            let mut gradients: Vec<Gradient> = vec![gradient(ParamScope::Shared, 0, 700)];
            gradients.extend(
                layers
                    .clone()
                    .map(|layer| gradient(ParamScope::Shared, layer + 1, 300)),
            );
            for &language in banks {
                let bank = |layer| gradient(ParamScope::Bank(language), layer + 1, 450);
                gradients.extend(layers.clone().map(bank));
            }
            buckets(&gradients, 1000)
        };
        let common = |buckets: Vec<Bucket>| -> Vec<(ParamScope, usize, usize)> {
            let common = buckets
                .into_iter()
                .filter(|bucket| matches!(bucket.scope, ParamScope::Shared | ParamScope::Bank(2)));
            common
                .map(|bucket| (bucket.scope, bucket.position, bucket.params.len()))
                .collect()
        };
        let first = common(rank(&[0, 2]));
        assert_eq!(first, common(rank(&[2, 3, 7])));
        assert_eq!(
            first,
            [
                (ParamScope::Bank(2), 4, 2),
                (ParamScope::Shared, 3, 3),
                (ParamScope::Bank(2), 2, 2),
                (ParamScope::Shared, 1, 2),
                (ParamScope::Bank(2), 1, 1),
                (ParamScope::Shared, 0, 1),
            ]
            .map(|bucket| bucket)
        );
    }

    /// Goal: every gradient is in one bucket, and only one that is larger by itself exceeds the limit.
    #[test]
    fn buckets_keep_the_limit() {
        let sizes = [40, 10, 90, 30, 200, 5, 60];
        let gradients: Vec<Gradient> = sizes
            .iter()
            .enumerate()
            .map(|(layer, &bytes)| gradient(ParamScope::Shared, layer, bytes))
            .collect();
        let buckets = buckets(&gradients, 100);
        let mut seen: Vec<usize> = buckets.iter().flat_map(|bucket| bucket.params.clone()).collect();
        assert!(
            buckets
                .iter()
                .all(|bucket| bucket.bytes <= 100 || bucket.params.len() == 1)
        );
        seen.sort_unstable();
        assert_eq!(seen, (0..sizes.len()).collect::<Vec<_>>());
    }
}
