//! The commands, one file each.

mod checkpoint;
mod completion;
mod coordinator;
mod copy;
mod diff;
mod guard;
mod inspect;
mod interval;
mod join;
mod key;
mod link;
mod list;
mod login;
mod man;
mod pack;
mod pin;
mod preempt;
mod prune;
mod receive;
mod restore;
mod runtime;
mod sdp;
mod serve;
mod sign;
mod unpack;
mod verify;

use clap::Subcommand;

use registry::PassedOver;

use crate::context::Context;
use crate::error::{CommandError, in_a_line};

/// What a person can ask for, in the order in which it is usually asked for.
#[derive(Debug, Subcommand)]
pub enum Command {
    Checkpoint(checkpoint::CheckpointArgs),
    Pack(pack::PackArgs),
    Receive(receive::ReceiveArgs),
    Link(link::LinkArgs),
    Sign(sign::SignArgs),
    Verify(verify::VerifyArgs),
    Copy(copy::CopyArgs),
    #[command(
        about = "Copy to a registry: another word for `syncpoint copy`",
        long_about = "Copy to a registry: another word for `syncpoint copy`, where everything is explained"
    )]
    Push(copy::CopyArgs),
    #[command(
        about = "Copy from a registry: another word for `syncpoint copy`",
        long_about = "Copy from a registry: another word for `syncpoint copy`, where everything is explained"
    )]
    Pull(copy::CopyArgs),
    List(list::ListArgs),
    Inspect(inspect::InspectArgs),
    Diff(diff::DiffArgs),
    Prune(prune::PruneArgs),
    Pin(pin::PinArgs),
    Unpin(pin::UnpinArgs),
    Interval(interval::IntervalArgs),
    Unpack(unpack::UnpackArgs),
    Serve(serve::ServeArgs),
    Restore(restore::RestoreArgs),
    Guard(guard::GuardArgs),
    Preempt(preempt::PreemptArgs),
    Resume(preempt::ResumeArgs),
    Runtime(runtime::RuntimeArgs),
    Key(key::KeyArgs),
    Join(join::JoinArgs),
    Coordinator(coordinator::CoordinatorArgs),
    Sdp(sdp::SdpArgs),
    Login(login::LoginArgs),
    Logout(login::LogoutArgs),
    Completion(completion::CompletionArgs),
    Man(man::ManArgs),
    #[command(name = launcher::KEEP, hide = true, about = "What `restore --lazy` starts beside itself")]
    KeepMemory,
}

impl Command {
    /// Whether it ends in good order by itself when it is told to stop, and is not to be dropped.
    pub fn stops_by_itself(&self) -> bool {
        matches!(
            self,
            Self::Checkpoint(_)
                | Self::Coordinator(_)
                | Self::Guard(_)
                | Self::Join(_)
                | Self::Preempt(_)
                | Self::Receive(_)
                | Self::Restore(_)
                | Self::Resume(_)
        )
    }
}

/// Names what a command passes over in a repository, each with its reason.
fn passed_over(passed_over: &[PassedOver], context: &Context) {
    for PassedOver { tag, why } in passed_over {
        context.reporter.warn(&format!("the tag {tag} is passed over: {}", in_a_line(why)));
    }
}

/// Does it.
pub async fn run(command: Command, context: &Context) -> Result<(), CommandError> {
    match command {
        Command::Checkpoint(args) => checkpoint::run(args, context).await,
        Command::Pack(args) => pack::run(args, context).await,
        Command::Receive(args) => receive::run(args, context).await,
        Command::Link(args) => link::run(args, context).await,
        Command::Sign(args) => sign::run(args, context).await,
        Command::Verify(args) => verify::run(args, context).await,
        Command::Copy(args) | Command::Push(args) | Command::Pull(args) => copy::run(args, context).await,
        Command::List(args) => list::run(args, context).await,
        Command::Inspect(args) => inspect::run(args, context).await,
        Command::Diff(args) => diff::run(args, context).await,
        Command::Prune(args) => prune::run(args, context).await,
        Command::Pin(args) => pin::run(args, context).await,
        Command::Unpin(args) => pin::run_unpin(args, context).await,
        Command::Interval(args) => interval::run(args, context).await,
        Command::Unpack(args) => unpack::run(args, context).await,
        Command::Serve(args) => serve::run(args, context).await,
        Command::Restore(args) => restore::run(args, context).await,
        Command::Guard(args) => guard::run(args, context).await,
        Command::Preempt(args) => preempt::run(args, context).await,
        Command::Resume(args) => preempt::run_resume(args, context).await,
        Command::Join(args) => join::run(args, context).await,
        Command::Coordinator(args) => coordinator::run(args, context).await,
        Command::Runtime(args) => runtime::run(args, context),
        Command::Key(args) => key::run(args, context).await,
        Command::Sdp(args) => sdp::run(args, context).await,
        Command::Login(args) => login::run(args, context).await,
        Command::Logout(args) => login::run_logout(args, context).await,
        Command::Completion(args) => completion::run(args, context),
        Command::Man(args) => man::run(&args, context),
        Command::KeepMemory => {
            // It waits for one thing only.
            launcher::keep();
            Ok(())
        }
    }
}
