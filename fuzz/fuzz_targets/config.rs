//! Goal: no text crashes the reading of a configuration, and what is accepted says the same after it was written down.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(config) = zipper_config::from_str(text, "run.yaml", &[]) else {
        return;
    };
    config.warnings();
    let written = config.to_yaml();
    let again = zipper_config::from_str(&written, "run.yaml", &[]);
    let again = again.unwrap_or_else(|error| panic!("what was written is refused: {error}\n{written}"));
    assert_eq!(config, again);
});
