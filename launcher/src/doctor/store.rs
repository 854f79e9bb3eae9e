//! Whether the run URL can be reached, written, read, and whether its clock is ours.

use std::time::Duration;

use zipper_checkpoint::{CheckpointError, RunStore, StoreOptions};
use zipper_types::Advised;

use super::finding::Finding;

/// Clocks that differ by more are worth a word: logs and listings are hard to compare.
const CLOCKS_DIFFER_MS: u64 = 30_000;
/// S3 refuses signed requests beyond.
const S3_ALLOWS_MS: u64 = 15 * 60 * 1000;
/// A store that takes longer for five small requests makes everything slow.
const SLOW: Duration = Duration::from_secs(5);

/// How a person waits for an answer.
pub(super) fn impatient() -> StoreOptions {
    StoreOptions {
        retry_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(10),
        ..StoreOptions::default()
    }
}

/// Creates, reads, creates again, lists and deletes an object under the run.
pub(super) async fn look(store: &RunStore) -> Vec<Finding> {
    let url = store.url();
    let probed = match store.probe().await {
        Ok(probed) => probed,
        Err(error) => return vec![refused(&error)],
    };
    let took = probed.took.as_millis();
    let found = format!("`{url}` can be written once, read, listed and deleted ({took} ms)");
    let usable = if probed.took > SLOW {
        Finding::warning("store", found).fix("look at the way to the store: checkpoints will be slow, too")
    } else {
        Finding::fine("store", found)
    };
    vec![usable, clock(probed.clock_ahead_ms)]
}

fn refused(error: &CheckpointError) -> Finding {
    let mut finding = Finding::failure("store", zipper_cli::in_words(error));
    finding.may_pass = error.is_retryable();
    match error {
        // What to do is in the error.
        CheckpointError::NoBucket { .. } | CheckpointError::Unconditional { .. } => finding,
        _ => finding.fix(
            error
                .advice()
                .unwrap_or("docs/storage.md says what a store has to do"),
        ),
    }
}

fn clock(ahead_ms: i64) -> Finding {
    let apart = ahead_ms.unsigned_abs();
    if apart == 0 {
        return Finding::fine("clock", "the same as the store's");
    }
    let side = if ahead_ms > 0 { "behind" } else { "ahead of" };
    let by = humantime::format_duration(Duration::from_millis(apart));
    let found = format!("this machine's clock is {by} {side} the store's");
    if apart < CLOCKS_DIFFER_MS {
        Finding::fine("clock", found)
    } else if apart < S3_ALLOWS_MS {
        Finding::warning("clock", found).fix("set it right: run chrony or ntpd")
    } else {
        Finding::warning(
            "clock",
            format!("{found}; S3 servers refuse requests at more than 15 minutes"),
        )
        .fix("set it right: run chrony or ntpd")
    }
}

#[cfg(test)]
mod tests {
    use super::super::finding::Level;
    use super::*;

    /// S3 servers for tests make buckets as they are needed.
    #[test]
    fn a_bucket_that_is_not_there_can_be_made() {
        let finding = refused(&CheckpointError::NoBucket {
            action: "write",
            object: "s3://nobodys/runs/a/probes/1.json".to_owned(),
            was_there: false,
        });
        assert_eq!(finding.level, Level::Failure);
        assert!(
            finding.found.contains("no such bucket; make it"),
            "{}",
            finding.found
        );
        assert!(finding.fixes.is_empty(), "said twice: {:?}", finding.fixes);
    }

    #[test]
    fn only_clocks_that_differ_much_are_worth_a_warning() {
        for (ahead, level, words) in [
            (0, Level::Ok, "the same"),
            (-1_500, Level::Ok, "1s 500ms ahead of the store's"),
            (40_000, Level::Warning, "40s behind the store's"),
            (-1_000_000, Level::Warning, "refuse requests"),
        ] {
            let finding = clock(ahead);
            assert_eq!(finding.level, level, "{ahead}");
            assert!(finding.found.contains(words), "{}", finding.found);
        }
    }
}
