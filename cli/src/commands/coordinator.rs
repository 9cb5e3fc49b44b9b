//! `syncpoint coordinator`.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;
use coordinator::{Deadlines, Listen, Outcome, Service, ServiceEvent, ServicePlan, SessionKind, Step, TlsFiles};
use image_format::{ApplicationId, Epoch};

use crate::context::Context;
use crate::error::{CommandError, While};
use crate::keys;
use crate::values::Time;

/// Let the hooks of several hosts wait for each other
///
/// It takes the place of criu-coordinator. Hooks come over mutual TLS, each with the certificate of its member; who belongs together follows from the dependencies that they
/// tell. They find their way here by criu-coordinator's own criu-coordinator.json, or the same words in their environment, when
/// CRIU is given `syncpoint-hook` as its action script. All members of a dump are frozen at one instant, or none is dumped; no restored task
/// runs before all are restored. The files of the containers are the engines' to take; for those, use
/// `syncpoint checkpoint --listen` with `syncpoint join`. Runs until it is told to stop; hooks that wait then abort.
#[derive(Debug, Args)]
pub struct CoordinatorArgs {
    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = "127.0.0.1:8080")]
    listen: SocketAddr,

    /// The authority of the members' certificates, as `syncpoint key ca` makes it
    #[arg(long, value_name = "FILE")]
    ca: PathBuf,

    /// The certificate of this end, as `syncpoint key issue --coordinator` makes it
    #[arg(long, value_name = "FILE")]
    certificate: PathBuf,

    /// Its private key
    #[arg(long, value_name = "FILE")]
    key: PathBuf,

    /// The application, as it is called in what is said
    #[arg(long, value_name = "ID")]
    application: ApplicationId,

    /// The number of the first session
    #[arg(long, value_name = "N", default_value = "1")]
    epoch: Epoch,

    /// Wait so long for all members, from the first one on
    #[arg(long, value_name = "TIME", default_value = "30s")]
    gather_timeout: Time,

    /// Hold members so long until the last one is dumped or restored; then none is
    #[arg(long, value_name = "TIME", default_value = "10s")]
    hold_timeout: Time,
}

/// Serves.
pub async fn run(args: CoordinatorArgs, context: &Context) -> Result<(), CommandError> {
    let CoordinatorArgs { listen, ca, certificate, key, application, epoch, gather_timeout, hold_timeout } = args;
    keys::warn_if_open(&key, context);
    let plan = ServicePlan {
        listen: Listen { address: listen, tls: TlsFiles { ca, certificate, key } },
        application,
        epoch,
        deadlines: Deadlines { gather: gather_timeout.0, hold: hold_timeout.0 },
    };
    // How many members come is not known before they do.
    engine::open_files::raise_open_files();
    let mut service = Service::start(plan).await.doing(|| "the coordinator cannot listen".to_owned())?;
    let mut events = service.events();
    context.reporter.note(&format!("listening on {}", service.address()));
    let stop = context.cancel.token();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            event = events.recv() => match event {
                Some(event) => tell(event, context),
                None => break,
            },
        }
    }
    service.close().await;
    Ok(())
}

fn tell(event: ServiceEvent, context: &Context) {
    let reporter = &context.reporter;
    match event {
        ServiceEvent::Begun { session } => {
            let members: Vec<&str> = session.members.iter().map(|member| member.as_str()).collect();
            reporter.note(&format!("{} {} begun: {}", word(session.kind), session.epoch, members.join(", ")));
        }
        ServiceEvent::Member { event, .. } => match event.step {
            Step::Arrived(hook) => reporter.detail(&format!("{}  waits at {hook}", event.member)),
            Step::Passed(hook) => reporter.detail(&format!("{}  goes on from {hook}", event.member)),
            Step::Running => reporter.note(&format!("{}  runs", event.member)),
            Step::Failed { reason } => reporter.note(&format!("{}  failed: {reason}", event.member)),
        },
        ServiceEvent::Decided { outcome: Outcome::Released { .. }, .. } => reporter.note("released: all go on"),
        ServiceEvent::Decided { outcome: Outcome::Aborted { reason, .. }, .. } => {
            reporter.warn(&format!("aborted: {reason}"));
        }
        ServiceEvent::NotBegun { kind, reason } => reporter.warn(&format!("no {} begun: {reason}", word(kind))),
        // What the members did was told already.
        _ => {}
    }
}

fn word(kind: SessionKind) -> &'static str {
    match kind {
        SessionKind::Dump => "dump",
        SessionKind::Restore => "restore",
    }
}
