//! How sure a figure is: percentile bootstrap over utterances (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter
//! 13; for word error rates Bisani and Ney, ICASSP 2004).
//!
//! Utterances are drawn within each language, so every resample has as many of each as the test set. Two systems are compared on the
//! same draws. What another seed would have given is not in these intervals.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use zipper_score::Counts;

use crate::Sample;

/// The part of resamples that an interval covers.
const COVERAGE: f64 = 0.95;
/// Resamples of a figure in a report.
pub const RESAMPLES: usize = 2000;

/// A figure with its interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The figure itself.
    pub value: f64,
    /// Lower end.
    pub low: f64,
    /// Upper end.
    pub high: f64,
}

/// The mean of the error rates of `languages`; nothing if none is in the sample.
pub fn mean_rate(sample: &Sample, languages: &[String], resamples: usize, seed: u64) -> Option<Interval> {
    let strata = strata(sample, sample, languages);
    let value = mean_rates(&strata, |pairs| sum(pairs.iter()))?[0];
    let draws = draws(&strata, resamples, seed);
    Some(interval(value, draws.iter().map(|rates| rates[0]).collect()))
}

/// How much the mean error rate of `languages` is above that of a baseline, relative to it: -0.1 is 10 % fewer errors. Nothing if they
/// have no utterance in common, or the baseline makes no errors.
pub fn relative_change(
    sample: &Sample,
    baseline: &Sample,
    languages: &[String],
    resamples: usize,
    seed: u64,
) -> Option<Interval> {
    let strata = strata(sample, baseline, languages);
    let change = |[own, baseline]: [f64; 2]| own / baseline - 1.0;
    let value = change(mean_rates(&strata, |pairs| sum(pairs.iter()))?);
    let draws = draws(&strata, resamples, seed);
    let changes: Vec<f64> = draws
        .into_iter()
        .map(change)
        .filter(|change| change.is_finite())
        .collect();
    (value.is_finite() && !changes.is_empty()).then(|| interval(value, changes))
}

/// The counts of both systems, language by language.
fn strata(a: &Sample, b: &Sample, languages: &[String]) -> Vec<Vec<[Counts; 2]>> {
    let pairs = languages.iter().map(|lang| a.pairs(b, lang));
    pairs.filter(|pairs| !pairs.is_empty()).collect()
}

fn sum<'a>(pairs: impl Iterator<Item = &'a [Counts; 2]>) -> [Counts; 2] {
    pairs.fold([Counts::default(); 2], |[a, b], pair| [a + pair[0], b + pair[1]])
}

/// Mean over the languages of both systems' rates.
fn mean_rates(
    strata: &[Vec<[Counts; 2]>],
    mut counted: impl FnMut(&[[Counts; 2]]) -> [Counts; 2],
) -> Option<[f64; 2]> {
    let mut means = [0.0; 2];
    for pairs in strata {
        let counts = counted(pairs);
        for (mean, counts) in means.iter_mut().zip(counts) {
            *mean += counts.rate() / strata.len() as f64;
        }
    }
    (!strata.is_empty()).then_some(means)
}

fn draws(strata: &[Vec<[Counts; 2]>], resamples: usize, seed: u64) -> Vec<[f64; 2]> {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let one = |_| {
        mean_rates(strata, |pairs| {
            sum((0..pairs.len()).map(|_| &pairs[random.random_range(0..pairs.len())]))
        })
    };
    (0..resamples).filter_map(one).collect()
}

fn interval(value: f64, mut draws: Vec<f64>) -> Interval {
    draws.sort_by(f64::total_cmp);
    let tail = (1.0 - COVERAGE) / 2.0;
    Interval {
        value,
        low: quantile(&draws, tail),
        high: quantile(&draws, 1.0 - tail),
    }
}

/// Of sorted values, with linear interpolation.
fn quantile(sorted: &[f64], part: f64) -> f64 {
    let place = part * (sorted.len() - 1) as f64;
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    sorted[below] + (sorted[above] - sorted[below]) * place.fract()
}
