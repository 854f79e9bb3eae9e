//! What the agent of a node says.

use std::sync::Arc;

use tonic::transport::Channel;
use zipper_proto::v1;
use zipper_proto::v1::agent_service_client::AgentServiceClient;
use zipper_types::WorkerId;

use super::fleet::{Fleet, RUN, hostname, refused};

/// The agent of a node.
pub(super) struct Agent {
    fleet: Arc<Fleet>,
    node: u32,
    client: AgentServiceClient<Channel>,
}

impl Agent {
    pub(super) fn new(fleet: &Arc<Fleet>, node: u32) -> Self {
        Self {
            fleet: Arc::clone(fleet),
            node,
            client: AgentServiceClient::new(fleet.channel(node)),
        }
    }

    fn context(&self) -> v1::AgentContext {
        v1::AgentContext {
            run: RUN.to_owned(),
            node_rank: self.node,
            incarnation: 1,
        }
    }

    /// Serves its node until the run is over.
    pub(super) async fn serve(mut self) -> Result<(), String> {
        let request = v1::RegisterNodeRequest {
            agent: Some(self.context()),
            hostname: hostname(self.node),
        };
        let registered = self.client.register_node(request).await;
        self.fleet
            .note(registered.map_err(|status| refused("a node", &status)))?;
        self.fleet.is_registered();
        let mut ticks = self.fleet.heartbeats(self.node, self.fleet.load.nodes());
        loop {
            ticks.tick().await;
            let request = v1::AgentHeartbeatRequest {
                agent: Some(self.context()),
            };
            let answer = self.client.agent_heartbeat(request).await;
            let answer = self
                .fleet
                .note(answer.map_err(|status| refused("an agent's heartbeat", &status)))?;
            if answer.into_inner().verdict.is_some() {
                return Ok(());
            }
        }
    }

    /// A worker's process was killed.
    pub(super) async fn report_exit(mut self, worker: &WorkerId) -> Result<(), String> {
        let request = v1::ReportWorkerExitRequest {
            agent: Some(self.context()),
            worker: Some(v1::WorkerProcess {
                worker_id: worker.to_string(),
                incarnation: 1,
            }),
            signal: Some(9),
            ..v1::ReportWorkerExitRequest::default()
        };
        let answer = self.client.report_worker_exit(request).await;
        answer
            .map(drop)
            .map_err(|status| refused("a worker's end", &status))
    }
}
