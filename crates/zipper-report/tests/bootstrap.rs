//! Goal: intervals are those that scipy's percentile bootstrap gives, and what must hold of any bootstrap holds.
//! Method: counts and scipy's intervals of them, in `golden/bootstrap.json`.

use std::collections::BTreeMap;

use serde::Deserialize;
use zipper_report::Sample;
use zipper_report::bootstrap::{Interval, mean_rate, relative_change};
use zipper_score::Counts;

const RESAMPLES: usize = 20_000;

/// `golden/bootstrap.json`, written by `golden/make_golden.py`.
#[derive(Deserialize)]
struct Golden {
    lengths: Vec<u64>,
    edits: Vec<u64>,
    baseline: Vec<u64>,
    rate: [f64; 2],
    change: [f64; 2],
}

impl Golden {
    fn read() -> BTreeMap<String, Self> {
        serde_json::from_str(include_str!("golden/bootstrap.json")).expect("the script writes this")
    }

    /// Adds both systems' counts.
    fn add(&self, lang: &str, own: &mut Sample, baseline: &mut Sample) {
        for (index, (&length, (&edits, &others))) in self
            .lengths
            .iter()
            .zip(self.edits.iter().zip(&self.baseline))
            .enumerate()
        {
            let id = format!("{lang}-{index}");
            own.add(lang, &id, Counts { edits, length });
            baseline.add(
                lang,
                &id,
                Counts {
                    edits: others,
                    length,
                },
            );
        }
    }
}

/// Two bootstraps with other random numbers differ by a few percent of the interval's width.
fn assert_near(ours: Interval, theirs: [f64; 2], what: &str) {
    let width = theirs[1] - theirs[0];
    let apart = f64::max((ours.low - theirs[0]).abs(), (ours.high - theirs[1]).abs());
    assert!(apart < 0.04 * width, "{what}: {ours:?}, scipy {theirs:?}");
}

#[test]
fn intervals_are_those_of_scipy() {
    for (lang, golden) in Golden::read() {
        let (mut own, mut baseline) = (Sample::default(), Sample::default());
        golden.add(&lang, &mut own, &mut baseline);
        let languages = [lang.clone()];
        let rate = mean_rate(&own, &languages, RESAMPLES, 1).expect("the language is there");
        assert_near(rate, golden.rate, &lang);
        let change =
            relative_change(&own, &baseline, &languages, RESAMPLES, 2).expect("the language is there");
        assert_near(change, golden.change, &lang);
    }
}

/// Languages are independent, so the variance of their mean is a quarter of the sum of their variances; the interval of a mean that is
/// nearly normal is as wide as the root of that.
#[test]
fn the_mean_over_languages_is_narrower_than_each() {
    let (mut own, mut baseline) = (Sample::default(), Sample::default());
    let golden = Golden::read();
    for (lang, golden) in &golden {
        golden.add(lang, &mut own, &mut baseline);
    }
    let languages: Vec<String> = golden.keys().cloned().collect();
    let mean = mean_rate(&own, &languages, RESAMPLES, 3).expect("both are there");
    let widths = golden
        .values()
        .map(|golden| (golden.rate[1] - golden.rate[0]).powi(2));
    let expected = widths.sum::<f64>().sqrt() / 2.0;
    let width = mean.high - mean.low;
    assert!(
        (width / expected - 1.0).abs() < 0.05,
        "{width}, expected {expected}"
    );
    let rates: Vec<f64> = languages.iter().filter_map(|lang| own.rate(lang)).collect();
    assert!((mean.value - f64::midpoint(rates[0], rates[1])).abs() < 1e-12);
}

#[test]
fn a_system_is_exactly_as_good_as_itself() {
    let (mut own, mut baseline) = (Sample::default(), Sample::default());
    Golden::read()["de"].add("de", &mut own, &mut baseline);
    let change = relative_change(&own, &own, &["de".to_owned()], 100, 4).expect("it is there");
    assert_eq!((change.value, change.low, change.high), (0.0, 0.0, 0.0));
}

#[test]
fn the_same_seed_gives_the_same_interval_and_what_is_not_there_gives_none() {
    let (mut own, mut baseline) = (Sample::default(), Sample::default());
    Golden::read()["ja"].add("ja", &mut own, &mut baseline);
    let of = |seed| mean_rate(&own, &["ja".to_owned()], 200, seed);
    assert_eq!(of(1), of(1));
    assert_ne!(of(1), of(2));
    assert_eq!(mean_rate(&own, &["xx".to_owned()], 200, 1), None);
    let mut perfect = Sample::default();
    perfect.add("ja", "ja-0", Counts { edits: 0, length: 5 });
    assert_eq!(relative_change(&own, &perfect, &["ja".to_owned()], 200, 1), None);
}
