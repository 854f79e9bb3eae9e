//! Goal: no bytes that a peer with a certificate may send as a request make the coordinator crash, stall or forget its run.
//! Method: take requests that make sense, change their bytes at random as a fuzzer does, and give them, decoded, to the services
//! of a coordinator without a network. It has to answer a sensible request in between, and end in order.
//!
//! The same requests come from libFuzzer in fuzz/, with coverage as its guide.

use std::time::Duration;

use prost::Message;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use zipper_coordinator::server::{Services, start};
use zipper_coordinator::state::Event;
use zipper_proto::v1;
use zipper_proto::v1::agent_service_server::AgentService;
use zipper_proto::v1::run_service_server::RunService;
use zipper_proto::v1::worker_service_server::WorkerService;

use crate::fleet::{agent, config, evaluated, job, join_request, member, run_in};

/// Coordinators, each with requests from a seed of its own.
const CASES: u64 = 48;
/// Requests of one case.
const REQUESTS: usize = 150;
/// `JoinRequest` and `NextTaskRequest`, by their numbers below: they may stay open until something happens.
const LONG_POLLS: [u8; 2] = [0, 1];
/// How often a long poll asks the coordinator's state before it waits, at most.
const QUESTIONS: usize = 4;
/// How long a coordinator that is well may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Sensible requests, by their number below.
fn sensible(kind: u8, member: &v1::MemberContext) -> Vec<u8> {
    let member = Some(member.clone());
    let agent = Some(agent(1));
    let collective = v1::CollectiveState {
        group: "world".to_owned(),
        sequence: 7,
        missing: vec![0],
        arrived: vec![1],
        ..v1::CollectiveState::default()
    };
    match kind {
        0 => v1::JoinRequest {
            held: vec![v1::HeldState {
                step: 2,
                stage: 1,
                shared: true,
                banks: vec![0, 1],
            }],
            member,
            ..join_request(0)
        }
        .encode_to_vec(),
        1 => v1::NextTaskRequest {
            member,
            completed_task: Some(3),
        }
        .encode_to_vec(),
        2 => v1::CompleteTaskRequest {
            member,
            task_id: 4_294_967_296,
            outcome: Some(evaluated(0)),
        }
        .encode_to_vec(),
        3 => v1::ReportFailureRequest {
            member,
            message: "a collective failed".to_owned(),
            failed_collective: Some(collective),
            ..v1::ReportFailureRequest::default()
        }
        .encode_to_vec(),
        4 => v1::HeartbeatRequest {
            member,
            last_completed_step: 2,
            latest_collective: Some(collective),
            compute_seconds: 1.0,
            work: 2.0,
            ..v1::HeartbeatRequest::default()
        }
        .encode_to_vec(),
        5 => v1::ReportStepRequest {
            member,
            metrics: Some(v1::StepMetrics {
                step: 1,
                stage: 1,
                loss: 2.0,
                by_language: [("en".to_owned(), v1::LanguageMetrics::default())].into(),
                ..v1::StepMetrics::default()
            }),
        }
        .encode_to_vec(),
        6 => v1::BeginCheckpointRequest { member, step: 2 }.encode_to_vec(),
        7 => v1::ReportCheckpointPartsRequest {
            member,
            step: 2,
            stage: 1,
            parts: vec![v1::CheckpointPart {
                path: "shared.safetensors".to_owned(),
                bytes: 3,
                blake3: "0".repeat(64),
                object: None,
            }],
        }
        .encode_to_vec(),
        8 => v1::RegisterNodeRequest {
            agent,
            hostname: "host".to_owned(),
        }
        .encode_to_vec(),
        9 => v1::AgentHeartbeatRequest { agent }.encode_to_vec(),
        10 => v1::ReportWorkerExitRequest {
            agent,
            worker: Some(v1::WorkerProcess {
                worker_id: "node0/1".to_owned(),
                incarnation: 1,
            }),
            exit_code: Some(1),
            ..v1::ReportWorkerExitRequest::default()
        }
        .encode_to_vec(),
        11 => v1::WatchRequest { epoch: 1, seen: 1 }.encode_to_vec(),
        _ => v1::StopRequest {
            reason: "a signal".to_owned(),
        }
        .encode_to_vec(),
    }
}

/// Changes bytes as fuzzers do: other bits, numbers at their ends, pieces doubled, moved and left out.
fn changed(mut bytes: Vec<u8>, random: &mut ChaCha8Rng) -> Vec<u8> {
    for _ in 0..random.random_range(0..4) {
        if bytes.is_empty() {
            return bytes;
        }
        let at = random.random_range(0..bytes.len());
        let until = random.random_range(at..bytes.len().min(at + 24)) + 1;
        match random.random_range(0..6) {
            0 => bytes[at] ^= 1 << random.random_range(0..8),
            1 => bytes[at] = random.next_u32().to_le_bytes()[0],
            // The largest number that a field can have.
            2 => drop(bytes.splice(at..=at, [[0xff; 9].as_slice(), &[1]].concat())),
            3 => drop(bytes.drain(at..until)),
            4 => {
                let piece = bytes[at..until].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            _ => bytes[at..until].fill(0xff),
        }
    }
    bytes
}

/// Asks the coordinator as often as a long poll may. What is asked is taken in its order: a long poll that began before is waiting by then.
async fn others_ask(services: &Services) {
    for _ in 0..QUESTIONS {
        // Of no generation: it is refused, and changes nothing.
        let request = v1::ReportStepRequest {
            member: Some(member(0)),
            metrics: None,
        };
        let refused = services.report_step(Request::new(request)).await;
        refused.expect_err("it is no member");
    }
}

/// Waits for an answer; a long poll is left when it has begun to wait.
async fn answer<T>(
    services: &Services,
    seed: u64,
    kind: u8,
    request: impl Future<Output = Result<Response<T>, Status>>,
) {
    let answered = async {
        tokio::select! {
            biased;
            // Refused or not: all is well.
            _ = request => {}
            () = others_ask(services), if LONG_POLLS.contains(&kind) => {}
        }
    };
    let answered = timeout(PATIENCE, answered).await;
    answered.unwrap_or_else(|_| panic!("seed {seed}: request {kind} is not answered"));
}

/// Gives a request to the services; whether it was one.
async fn give(services: &Services, seed: u64, kind: u8, bytes: &[u8]) -> bool {
    macro_rules! give {
        ($method:ident) => {
            match Message::decode(bytes) {
                Ok(request) => {
                    answer(
                        services,
                        seed,
                        kind,
                        services.$method(Request::new(request)),
                    )
                    .await
                }
                Err(_) => return false,
            }
        };
    }
    match kind {
        0 => give!(join),
        1 => give!(next_task),
        2 => give!(complete_task),
        3 => give!(report_failure),
        4 => give!(heartbeat),
        5 => give!(report_step),
        6 => give!(begin_checkpoint),
        7 => give!(report_checkpoint_parts),
        8 => give!(register_node),
        9 => give!(agent_heartbeat),
        10 => give!(report_worker_exit),
        11 => give!(watch),
        _ => give!(stop),
    }
    true
}

async fn one_case(seed: u64) {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let (stop, stopped) = mpsc::channel(1);
    let running = start(job(&store, config()).await, stopped)
        .await
        .expect("it starts");
    let services = running.services();
    let joins = [0, 1].map(|rank| services.join(Request::new(join_request(rank))));
    let joined = timeout(PATIENCE, futures::future::join_all(joins))
        .await
        .expect("both are there");
    let mut members = Vec::new();
    for (rank, joined) in (0..).zip(joined) {
        let assignment = joined.expect("they may join").into_inner().assignment;
        let generation = Some(assignment.expect("the generation is formed").generation);
        members.push(v1::MemberContext {
            generation,
            ..member(rank)
        });
    }
    let mut understood = 0;
    for _ in 0..REQUESTS {
        // A request to stop, rarely: after it there is less to break.
        let kind = random.random_range(0..122) / 10;
        let member = &members[random.random_range(0..members.len())];
        let bytes = changed(sensible(kind, member), &mut random);
        understood += u32::from(give(&services, seed, kind, &bytes).await);
    }
    assert!(understood > 10, "seed {seed}: most requests can be read");
    let sensible = Request::new(v1::AgentHeartbeatRequest {
        agent: Some(agent(u64::MAX)),
    });
    let answer = timeout(PATIENCE, services.agent_heartbeat(sensible)).await;
    assert!(answer.is_ok(), "seed {seed}: the coordinator does not answer");
    // A run whose workers were said to have failed is over by now.
    let _ = stop.send(Event::Abandoned).await;
    let ended = timeout(PATIENCE, running.ended()).await;
    let ended = ended.unwrap_or_else(|_| panic!("seed {seed}: the coordinator does not end"));
    ended.unwrap_or_else(|error| panic!("seed {seed}: {error:#}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_breaks_the_coordinator() {
    let mut cases: JoinSet<()> = (0..CASES).map(one_case).collect();
    while let Some(ended) = cases.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}
