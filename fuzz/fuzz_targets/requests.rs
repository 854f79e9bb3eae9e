//! Goal: no bytes that a peer with a certificate may send as requests make the coordinator crash or stall.
//!
//! An input is a row of requests, each a byte that says which, two that say how long, and its bytes. They go to the services of a
//! coordinator without a network, whose run is in memory. docs/security.md says how to run this.

#![no_main]

use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use prost::Message;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tonic::{Request, Response, Status};
use zipper_checkpoint::RunStore;
use zipper_checkpoint::lease::{Holder, Lease, LeaseOptions};
use zipper_coordinator::clock::Clock;
use zipper_coordinator::server::{Job, Services, start};
use zipper_coordinator::state::{Crew, Event};
use zipper_proto::v1;
use zipper_proto::v1::agent_service_server::AgentService;
use zipper_proto::v1::run_service_server::RunService;
use zipper_proto::v1::worker_service_server::WorkerService;

const CONFIG: &str = "
name: tiny
model: {encoder: {path: w}, llm: {path: q}}
data: {languages: [en, de], train: [train.jsonl], validation: [validation.jsonl]}
training: {align: {steps: 3}, zipper: {steps: 2}, batch_audio_seconds: 8}
checkpoint: {every_steps: 2}
";
const REPORT: &str = r#"{"languages": [
    {"lang": "en", "utterances": 720, "seconds": 7200.0, "characters": 36000},
    {"lang": "de", "utterances": 360, "seconds": 3600.0, "characters": 18000}
]}"#;
/// How long a long poll is waited for.
const POLL: Duration = Duration::from_micros(200);
/// How long a coordinator that is well may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

fuzz_target!(|input: &[u8]| {
    // A clock that goes on as soon as everybody waits: the end of a run gives others seconds to hear of it.
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build();
    runtime.expect("a runtime").block_on(one_input(input));
});

async fn one_input(mut input: &[u8]) {
    let (stop, stopped) = mpsc::channel(1);
    let running = start(job().await, stopped).await.expect("it starts");
    let services = running.services();
    for local_rank in 0..2 {
        let join = v1::JoinRequest {
            member: Some(v1::MemberContext {
                run: "tiny".to_owned(),
                worker_id: format!("node0/{local_rank}"),
                incarnation: 1,
                generation: None,
            }),
            local_rank,
            store_address: "127.0.0.1:7000".to_owned(),
            ..v1::JoinRequest::default()
        };
        let _ = timeout(POLL, services.join(Request::new(join))).await;
    }
    while let [kind, low, high, rest @ ..] = input {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, others) = rest.split_at(length);
        give(&services, *kind, bytes).await;
        input = others;
    }
    let _ = stop.send(Event::Abandoned).await;
    let ended = timeout(PATIENCE, running.ended()).await.expect("it ends");
    ended.expect("its state is not lost");
}

async fn job() -> Job {
    let store = RunStore::in_memory();
    let report = store.put("data/report.json", REPORT.into()).await;
    report.expect("memory can be written");
    let holder = Holder {
        host: "host".to_owned(),
        pid: 1,
        since: "2026-01-02T03:04:05Z".to_owned(),
        address: "https://127.0.0.1:1".to_owned(),
    };
    let options = LeaseOptions {
        ttl: Duration::from_secs(15),
    };
    let lease = Lease::acquire(&store, holder, options, None).await;
    Job {
        config: zipper_config::from_str(CONFIG, "fuzz", &[]).expect("a valid configuration"),
        crew: Crew {
            min_workers: 2,
            max_workers: 2,
            nodes: 1,
            workers_per_node: 2,
        },
        bank_bytes: None,
        lease: lease.expect("memory can be written").expect("nobody else has it"),
        adopt: false,
        clock: Clock::system(),
        store,
    }
}

/// Gives a request to the services, if it is one.
async fn give(services: &Services, kind: u8, bytes: &[u8]) {
    async fn answer<T>(request: impl Future<Output = Result<Response<T>, Status>>) {
        // Refused, answered, or a long poll: all is well.
        let _ = timeout(POLL, request).await;
    }
    macro_rules! give {
        ($method:ident) => {
            if let Ok(request) = Message::decode(bytes) {
                answer(services.$method(Request::new(request))).await;
            }
        };
    }
    match kind % 13 {
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
}
