//! Goal: the configurations in configs/ are valid, and those of the paper's two settings differ in their data alone.
//! Method: each is loaded as zipper-launch loads it.

use std::fs;
use std::path::{Path, PathBuf};

use zipper_config::sweep::SweepConfig;
use zipper_types::Normalizer;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../configs")
}

#[test]
fn every_configuration_is_valid() {
    let mut runs = 0;
    for entry in fs::read_dir(folder()).expect("the repository has it").flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|ending| ending != "yaml") {
            continue;
        }
        let name = path.display();
        let text = fs::read_to_string(&path).expect("a file");
        if text.contains("\naxes:") {
            SweepConfig::load(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
            continue;
        }
        let config = zipper_config::load(&path, &[]).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(config.warnings().is_empty(), "{name}: {:?}", config.warnings());
        runs += 1;
    }
    assert!(runs >= 4, "{runs}");
}

#[test]
fn the_papers_settings_differ_in_their_data_alone() {
    let load = |name: &str| {
        zipper_config::load(&folder().join(name), &[]).unwrap_or_else(|error| panic!("{name}: {error}"))
    };
    let (large, mut small) = (load("paper-lite-30h.yaml"), load("paper-lite-1h.yaml"));
    assert_ne!(large.data.train, small.data.train);
    small.name.clone_from(&large.name);
    small.data.train.clone_from(&large.data.train);
    assert_eq!(large, small);
    let augment = &large.training.augment;
    assert!(augment.spec_augment.is_some() && augment.speed.len() == 3);
    assert_eq!(large.checkpoint.keep_best, 3);
    let evaluation = &large.evaluation;
    for language in &evaluation.cer_languages {
        assert_eq!(
            evaluation.scoring(language).normalizer,
            Normalizer::BasicSplit,
            "{language}"
        );
    }
}
