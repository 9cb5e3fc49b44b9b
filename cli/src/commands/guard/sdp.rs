//! `syncpoint guard --sdp`: the processing blocks of SKA's Configuration DB.

use std::sync::Arc;

use engine::EngineKind;
use guard::sdp::{BlockGuard, BlockGuards, BlockId, BlockPlan, Database, Storage, guard_blocks};
use guard::{GuardMetrics, GuardWatcher};

use super::http::Shown;
use super::log::Log;
use super::{GuardArgs, LogFormat, options, serve, show};
use crate::context::Context;
use crate::error::CommandError;
use crate::plan::{self, CheckpointPlan, OnTerminate, PlanMember};

/// Guards until it is told to stop.
pub async fn run(args: GuardArgs, context: &Context) -> Result<(), CommandError> {
    let pattern = plan::read_pattern(&args.plan)?;
    if pattern.guard.on_terminate == Some(OnTerminate::Preempt) {
        return Err(CommandError::usage("processing blocks are not preempted when their guard ends")
            .hint("leave on-terminate out of the plan; `syncpoint preempt` does it for one"));
    }
    let allowed: Vec<Storage> = args.storage.iter().chain(&pattern.guard.storage).cloned().collect();
    let allowed = match (allowed.is_empty(), args.any_storage) {
        (_, true) => None,
        (false, false) => Some(allowed),
        (true, false) => {
            let message = "it is not said where the Configuration DB may have memory sent";
            return Err(CommandError::usage(message)
                .hint("name the places with --storage, or with `storage` in the plan; --any-storage allows all"));
        }
    };
    let endpoint = context.environment.configuration_db().map_err(CommandError::usage)?;
    let database = Arc::new(Database::new(endpoint, args.prefix.clone())?);
    let shown = Shown::default();
    let address = show(args.metrics, shown.clone()).await?;
    let log = |application| {
        Log::new(args.log_format == LogFormat::Json, Arc::clone(&context.reporter), application).one_of_many()
    };
    let service = log(None);
    service.serving(&database.root(), address);
    let blocks = Blocks { args: &args, context, pattern, allowed, shown, log: &log };
    serve(guard_blocks(database, &blocks, &args.state_dir, &context.cancel.token())).await;
    service.ended("what runs of the processing blocks runs on");
    Ok(())
}

/// What the blocks have in common.
struct Blocks<'a, L> {
    args: &'a GuardArgs,
    context: &'a Context,
    pattern: CheckpointPlan,
    /// Where memory may go to; `None`: wherever the database says.
    allowed: Option<Vec<Storage>>,
    shown: Shown,
    log: &'a L,
}

impl<L: Fn(Option<String>) -> Log> BlockGuards for Blocks<'_, L> {
    async fn prepare(&self, plan: &BlockPlan) -> Result<BlockGuard, String> {
        let is_covered = |allowed: &Vec<Storage>| allowed.iter().any(|place| place.covers(&plan.repository));
        if !self.allowed.as_ref().is_none_or(is_covered) {
            return Err(format!(
                "its checkpoints would go to {}, which is none of the places that --storage and the plan allow",
                plan.repository
            ));
        }
        let members = plan.members.iter().map(|(id, container)| PlanMember {
            id: id.clone(),
            container: container.clone(),
            engine: Some(EngineKind::Podman),
            depends_on: Vec::new(),
            bundle: None,
            without_rootfs: false,
        });
        let whole = CheckpointPlan {
            application: Some(plan.application.clone()),
            to: Some(plan.repository.clone()),
            members: members.collect(),
            ..self.pattern.clone()
        };
        let (_, options) =
            options(self.args, whole, self.context).await.map_err(|error| error.messages().join(": "))?;
        let metrics = Arc::new(GuardMetrics::new(plan.application.clone()));
        self.shown.insert(plan.application.to_string(), Arc::clone(&metrics));
        (self.log)(Some(plan.application.to_string())).started(&plan.repository, plan.interval, None);
        Ok(BlockGuard { options, metrics })
    }

    fn watcher(&self, block: &BlockId) -> Arc<dyn GuardWatcher> {
        Arc::new((self.log)(Some(block.to_string())))
    }

    fn ended(&self, block: &BlockId) {
        self.shown.remove(block.as_str());
    }

    fn tell(&self, block: Option<&BlockId>, words: &str) {
        (self.log)(block.map(ToString::to_string)).warning(words);
    }
}
