//! What the coordinator and people are told of this rank's collectives.

use std::time::Duration;

use zipper_collectives::{CollectiveError, FlightRecorder};
use zipper_proto::v1;
use zipper_train::TrainError;

/// The collective that this rank is in, or was in last.
pub(crate) fn latest(recorder: &FlightRecorder) -> Option<v1::CollectiveState> {
    let (record, age) = recorder.latest()?;
    Some(v1::CollectiveState {
        group: record.group,
        sequence: record.sequence,
        operation: record.operation.to_owned(),
        what: record.what,
        finished: record.finished.is_some(),
        age: Some(zipper_proto::wire_duration(age)),
        missing: Vec::new(),
        arrived: Vec::new(),
    })
}

/// The collective that has failed, if one has: this is seldom the fault of the rank that notices.
pub(crate) fn failed_collective(error: &anyhow::Error) -> Option<v1::CollectiveState> {
    let error = error.chain().find_map(|cause| {
        let of_step = cause.downcast_ref::<TrainError>().and_then(|error| match error {
            TrainError::Collective(error) => Some(error),
            _ => None,
        });
        of_step.or_else(|| cause.downcast_ref::<CollectiveError>())
    })?;
    let (group, sequence, operation, what) = error.collective().unwrap_or_default();
    let ranks = |ranks: Vec<zipper_types::Rank>| ranks.into_iter().map(|rank| rank.0).collect();
    Some(v1::CollectiveState {
        group: group.to_owned(),
        sequence,
        operation: operation.to_owned(),
        what: what.to_owned(),
        finished: false,
        age: Some(zipper_proto::wire_duration(error.elapsed().max(Duration::ZERO))),
        missing: ranks(error.missing()),
        arrived: ranks(error.arrived()),
    })
}

/// The flight record as a file: the last collectives of this rank, oldest first.
pub(crate) fn flight_file(recorder: &FlightRecorder) -> Vec<u8> {
    serde_json::to_vec_pretty(&recorder.records()).unwrap_or_else(|error| error.to_string().into_bytes())
}
