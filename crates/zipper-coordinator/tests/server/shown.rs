//! Goal: whoever looks at a run from outside sees what it does, how it ended, and what an earlier coordinator left.
//! Method: the picture in the run's store, which is what the status page shows; and what is asked of a coordinator through that store.

use std::time::Duration;

use tempfile::TempDir;
use zipper_checkpoint::lease::{StopRequest, ask_to_stop};
use zipper_checkpoint::{RunStore, layout};
use zipper_cli::ExitStatus;
use zipper_proto::v1::task::Kind;
use zipper_proto::v1::{self, verdict};
use zipper_watch::Picture;
use zipper_watch::picture::{Bank, Phase, Times};

use crate::fleet::{Coordinator, Fleet, config, job, run_in, watch_from};

/// Whoever waits longer waits for nothing.
const DEADLINE: Duration = Duration::from_secs(30);

async fn picture(store: &RunStore) -> Option<Picture> {
    let bytes = store.get_if_there(layout::STATUS).await;
    let bytes = bytes.expect("the folder can be read")?;
    Some(serde_json::from_slice(&bytes).expect("a picture"))
}

/// The first picture that is as `wanted`.
async fn picture_with(store: &RunStore, wanted: impl Fn(&Picture) -> bool) -> Picture {
    let look = async {
        loop {
            if let Some(picture) = picture(store).await
                && wanted(&picture)
            {
                return picture;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if let Ok(picture) = tokio::time::timeout(DEADLINE, look).await {
        return picture;
    }
    panic!("within {DEADLINE:?} there was only {:#?}", picture(store).await)
}

fn steps(picture: &Picture) -> Vec<u64> {
    let checkpoints = picture.checkpoints.iter();
    checkpoints.map(|checkpoint| checkpoint.step).collect()
}

#[tokio::test]
async fn a_run_is_shown_while_it_goes_on_and_when_it_is_over() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let told = watch_from(&coordinator, v1::WatchRequest::default()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    fleet
        .work_until(|kind| matches!(kind, Kind::Train(task) if task.from_step == 3))
        .await;

    // What was looked at before, when they were ready, and what was told since may be in one picture.
    let now = picture_with(&store, |picture| {
        picture.workers.get("training") == Some(&2) && picture.step == 3 && steps(picture) == [2, 3]
    })
    .await;
    assert_eq!(
        (now.phase, now.generation, now.world_size),
        (Phase::Training, 1, 2)
    );
    assert_eq!((now.coordinator.epoch, &now.coordinator.page), (1, &None));
    let ranks: Vec<(&str, Option<u32>, &str)> = now
        .members
        .iter()
        .map(|member| (member.worker.as_str(), member.rank, member.state.as_str()))
        .collect();
    assert_eq!(
        ranks,
        [("node0/0", Some(0), "training"), ("node0/1", Some(1), "training")]
    );
    assert_eq!(now.workers["training"], 2);
    let banks: Vec<(&str, u32, u32)> = now
        .banks
        .iter()
        .map(|bank: &Bank| (bank.language.as_str(), bank.first_rank, bank.last_rank))
        .collect();
    assert_eq!(banks, [("en", 0, 1), ("de", 1, 1)]);
    assert_eq!(steps(&now), [2, 3]);
    assert!(now.times.total_seconds > 0.0, "{:?}", now.times);
    assert_eq!(now.times_before, Times::default(), "it is the run's first launch");

    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Done);
    assert_eq!(coordinator.ended().await, ExitStatus::Done);
    let end = picture(&store).await.expect("the last picture");
    assert_eq!((end.phase, end.step), (Phase::Done, 5));
    assert!(steps(&end).ends_with(&[3, 4, 5]), "{:?}", steps(&end));
    let evaluations: Vec<(&str, u64, f64)> = end
        .evaluations
        .iter()
        .map(|evaluation| (evaluation.name.as_str(), evaluation.step, evaluation.wer))
        .collect();
    assert_eq!(evaluations.len(), 5, "{evaluations:?}");
    assert!(evaluations.contains(&("t, silenced", 5, 0.25)), "{evaluations:?}");
    let curves = store.list(layout::TENSORBOARD).await;
    assert_ne!(curves.expect("the folder can be read"), [""; 0]);
    let told = told.await.expect("the watcher does not panic");
    let training = "workers_training: 2,";
    assert!(
        told.iter()
            .any(|word| word.starts_with("Membership") && word.contains(training)),
        "{told:?}"
    );
}

/// Steps after the checkpoint that the run goes on from are made again, so they are shown no more; what the launch before cost is.
#[tokio::test]
async fn what_an_earlier_coordinator_left_is_shown() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let mut config = config();
    config.training.align.steps = 9;
    config.watching.tensorboard = false;
    let coordinator = Coordinator::start(&store, config.clone()).await;
    let mut fleet = Fleet::join(&coordinator, &store).await;
    let before = picture_with(&store, |picture| picture.times.total_seconds > 0.0).await;
    let (id, task) = fleet.train_task().await;
    coordinator.ask_to_stop("enough").await;
    fleet.stop_at(id, &task, 5, 1.0).await;
    assert_eq!(fleet.verdict().await.outcome(), verdict::Outcome::Stopped);
    assert_eq!(coordinator.ended().await, ExitStatus::Stopped);
    let end = picture(&store).await.expect("the last picture");
    assert_eq!(
        (end.phase, end.detail.as_str(), end.step),
        (Phase::Stopped, "enough", 5)
    );
    store
        .checkpoints()
        .remove(zipper_types::Step(5))
        .await
        .expect("the folder can be written");

    let coordinator = Coordinator::start(&store, config).await;
    let now = picture_with(&store, |picture| {
        picture.coordinator.epoch == 2
            && picture.times.total_seconds > picture.times_before.total_seconds
            && picture.timeline.iter().any(|line| line.kind == "resumed")
    })
    .await;
    assert_eq!((now.phase, now.step), (Phase::Starting, 4));
    assert_eq!(now.latest.map(|latest| latest.step), Some(4));
    assert!(
        now.times_before.total_seconds >= before.times.total_seconds,
        "{:?}",
        now.times_before
    );
    let kinds: Vec<&str> = now.timeline.iter().map(|line| line.kind.as_str()).collect();
    for kind in ["generation", "evaluation", "resumed"] {
        assert!(kinds.contains(&kind), "{kind} is not among {kinds:?}");
    }
    coordinator.ask_to_stop("").await;
    assert_eq!(coordinator.ended().await, ExitStatus::Stopped);
    let curves = store.list(layout::TENSORBOARD).await;
    assert_eq!(
        curves.expect("the folder can be read"),
        [""; 0],
        "nobody wants them"
    );
}

/// Who cannot reach the coordinator may still stop the run: it looks into the store while it renews its claim.
#[tokio::test]
async fn a_stop_that_is_asked_for_in_the_store_is_heard() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let job = job(&store, config()).await;
    let request = StopRequest {
        user: "anna".to_owned(),
        host: "login".to_owned(),
        at: "2026-01-02T03:04:05Z".to_owned(),
    };
    ask_to_stop(&store, job.lease.epoch(), &request)
        .await
        .expect("the folder can be written");
    let coordinator = Coordinator::of(job).await;
    let told = watch_from(&coordinator, v1::WatchRequest::default()).await;
    assert_eq!(coordinator.ended().await, ExitStatus::Stopped);
    let told = told.await.expect("the watcher does not panic");
    assert_eq!(told.last().map(String::as_str), Some("Stopped"), "{told:?}");
    let end = picture(&store).await.expect("the last picture");
    assert_eq!(end.detail, "`zipper-launch stop` of anna on login");
}
