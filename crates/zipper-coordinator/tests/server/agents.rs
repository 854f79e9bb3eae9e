//! Goal: the agent of a node hears what to do with its workers, and who is to leave.
//! Method: as in the rest, one test function plays the agents of a run's only node.

use std::time::Duration;

use tempfile::TempDir;
use tonic::transport::Channel;
use tonic::{Code, Status};
use zipper_proto::v1;
use zipper_proto::v1::agent_service_client::AgentServiceClient;

use crate::fleet::{Coordinator, Fleet, agent, config, join_request, member, run_in};

/// The agent of the first node says that it is there.
pub(crate) async fn register(
    agents: &mut AgentServiceClient<Channel>,
) -> (v1::AgentContext, v1::RegisterNodeResponse) {
    let agent = agent(1);
    let request = v1::RegisterNodeRequest {
        agent: Some(agent.clone()),
        hostname: "host".to_owned(),
    };
    let registered = agents.register_node(request).await.expect("agents may");
    (agent, registered.into_inner())
}

/// An agent registers, hears of workers that were given up, and is told what to do after the end of one.
#[tokio::test]
async fn agents_do_as_they_are_told() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut agents = coordinator.agents();
    let (agent, registered) = register(&mut agents).await;
    let start = |advice: Option<v1::Advice>| match advice.and_then(|advice| advice.what) {
        Some(v1::advice::What::Start(start)) => zipper_proto::duration(start.after),
        other => panic!("it is told {other:?}"),
    };
    assert_eq!(start(registered.advice), Some(Duration::ZERO));
    let _fleet = Fleet::join(&coordinator, &store).await;
    let ended = v1::ReportWorkerExitRequest {
        agent: Some(agent.clone()),
        worker: Some(v1::WorkerProcess {
            worker_id: "node0/1".to_owned(),
            incarnation: 1,
        }),
        signal: Some(9),
        ..v1::ReportWorkerExitRequest::default()
    };
    for _ in 0..2 {
        let answer = agents
            .report_worker_exit(ended.clone())
            .await
            .expect("agents may");
        let after = start(answer.into_inner().advice);
        assert_eq!(after, Some(Duration::from_secs(1)), "saying it again counts once");
    }
    let request = v1::AgentHeartbeatRequest { agent: Some(agent) };
    let heard = agents
        .agent_heartbeat(request)
        .await
        .expect("agents may")
        .into_inner();
    assert_eq!(heard.kill, [], "it has ended already");
    let status = coordinator.workers().join(join_request(1)).await;
    let status = status.expect_err("another process may take its place");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    let status = coordinator
        .workers()
        .heartbeat(v1::HeartbeatRequest {
            member: Some(v1::MemberContext {
                generation: Some(1),
                ..member(1)
            }),
            local_rank: 1,
            ..v1::HeartbeatRequest::default()
        })
        .await
        .expect_err("it was given up");
    assert_eq!(status.code(), Code::FailedPrecondition);
}

/// What a coordinator hears first of a node may be the end of a worker: it has just come back, and the agent has not said
/// anything else yet.
#[tokio::test]
async fn an_agent_of_which_nothing_was_heard_is_told_to_start_its_worker_again() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let request = v1::ReportWorkerExitRequest {
        agent: Some(agent(1)),
        worker: Some(v1::WorkerProcess {
            worker_id: "node0/1".to_owned(),
            incarnation: 1,
        }),
        signal: Some(9),
        ..v1::ReportWorkerExitRequest::default()
    };
    let answer = coordinator.agents().report_worker_exit(request).await;
    let advice = answer.expect("agents may").into_inner().advice;
    let what = advice.and_then(|advice| advice.what);
    assert!(matches!(what, Some(v1::advice::What::Start(_))), "{what:?}");
}

/// A node has one agent: the newest, and of this run.
#[tokio::test]
async fn an_agent_whose_place_another_one_has_is_told_to_leave() {
    let directory = TempDir::new().expect("a folder");
    let store = run_in(&directory);
    let coordinator = Coordinator::start(&store, config()).await;
    let mut agents = coordinator.agents();
    let mut ask = async |run: &str, incarnation| {
        let request = v1::RegisterNodeRequest {
            agent: Some(v1::AgentContext {
                run: run.to_owned(),
                ..agent(incarnation)
            }),
            hostname: "host".to_owned(),
        };
        let answer = agents.register_node(request).await?.into_inner();
        Ok::<_, Status>(answer.advice.and_then(|advice| advice.what))
    };
    let newest = ask("tiny", 2).await.expect("agents may");
    assert!(matches!(newest, Some(v1::advice::What::Start(_))), "{newest:?}");
    let Ok(Some(v1::advice::What::Leave(leave))) = ask("tiny", 1).await else {
        panic!("it is an earlier one");
    };
    assert_eq!(leave.reason, "another agent serves this node");
    let status = ask("other", 3).await.expect_err("it is of another run");
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
}
