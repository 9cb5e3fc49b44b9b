//! `syncpoint interval`.

use std::cmp::Reverse;
use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use guard::guard_state;
use guard::interval::{Cost, optimum, overhead};
use image_format::{ApplicationId, Timeline};
use registry::{Catalogue, Listed, Reference, catalogue};
use serde::Serialize;

use crate::context::Context;
use crate::error::CommandError;
use crate::exit::Exit;
use crate::keys;
use crate::output::{Format, Report, count};
use crate::store;
use crate::transport::Transport;
use crate::values::Age;

/// The newest checkpoints that are measured by.
const NEWEST: usize = 10;

/// Say how often a checkpoint is worth taking
///
/// By Daly's formula, from what a checkpoint costs and from how often something fails. The cost is measured by the timelines of the newest
/// ten checkpoints in REPO (the median of how long tasks stood still), or given; the mean time between failures by what a guard of the
/// application saw on this machine, or given. Between two checkpoints an application should work for as long as is said, and never for less
/// than it takes until a checkpoint is permanent: the next one would come before that.
#[derive(Debug, Args)]
#[command(
    after_long_help = "With --json: {repository, checkpoints, frozen, whole, cost, mtbf, restart, optimum, interval, \
overhead_at_optimum, overhead, warnings: [text]}. Times are in seconds; overhead is the share by which work takes longer, 0.1 for a tenth; \
what is not known is null."
)]
pub struct IntervalArgs {
    /// The repository whose checkpoints are measured: oci:DIR or HOST/REPO
    #[arg(value_name = "REPO", required_unless_present = "cost")]
    repository: Option<Reference>,

    /// Measure by checkpoints of this application; needed where the repository has several
    #[arg(long, value_name = "ID", requires = "repository")]
    application: Option<ApplicationId>,

    /// A public key by which checkpoints must be signed to count; may be repeated
    #[arg(long, value_name = "FILE", requires = "repository")]
    key: Vec<PathBuf>,

    /// What a checkpoint costs, such as 800ms or 12s, instead of what was measured
    #[arg(long, value_name = "TIME")]
    cost: Option<Age>,

    /// The mean time between two failures, such as 24h, instead of what a guard saw
    #[arg(long, value_name = "TIME", required_unless_present = "repository")]
    mtbf: Option<Age>,

    /// Where the guards of this machine keep what they saw
    #[arg(long, value_name = "DIR", default_value = guard::GUARD_DIR)]
    state_dir: PathBuf,

    /// How long it takes until a failed application runs again
    #[arg(long, value_name = "TIME", default_value = "0s")]
    restart: Age,

    /// Judge this interval
    #[arg(long, value_name = "TIME")]
    interval: Option<Age>,

    #[command(flatten)]
    format: Format,

    #[command(flatten)]
    transport: Transport,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Answer {
    repository: Option<String>,
    checkpoints: usize,
    frozen: Option<f64>,
    whole: Option<f64>,
    cost: f64,
    mtbf: f64,
    restart: f64,
    optimum: f64,
    interval: Option<f64>,
    overhead_at_optimum: Option<f64>,
    overhead: Option<f64>,
    warnings: Vec<String>,
}

impl Report for Answer {
    fn human(&self, out: &mut dyn fmt::Write) -> fmt::Result {
        if let (Some(frozen), Some(whole)) = (self.frozen, self.whole) {
            let measured = count(self.checkpoints as u64, "checkpoint");
            writeln!(out, "measured   {} frozen, {} until permanent ({measured})", time(frozen), time(whole))?;
        }
        writeln!(out, "cost       {}", time(self.cost))?;
        writeln!(out, "failures   every {}, and {} until it runs again", time(self.mtbf), time(self.restart))?;
        writeln!(out, "optimum    {}{}", time(self.optimum), share(self.overhead_at_optimum))?;
        match self.interval {
            Some(interval) => writeln!(out, "interval   {}{}", time(interval), share(self.overhead)),
            None => Ok(()),
        }
    }

    fn brief(&self) -> Option<String> {
        Some(format!("{:.3}", self.optimum))
    }
}

/// Seconds as people say them.
fn time(seconds: f64) -> String {
    match seconds {
        seconds if seconds < 1.0 => format!("{:.0} ms", seconds * 1000.0),
        seconds if seconds < 120.0 => format!("{seconds:.2} s"),
        seconds if seconds < 7200.0 => format!("{:.2} min", seconds / 60.0),
        seconds => format!("{:.2} h", seconds / 3600.0),
    }
}

fn share(overhead: Option<f64>) -> String {
    overhead.map_or_else(
        || ", at which it never ends".to_owned(),
        |overhead| format!(", at which work takes {:.2} % longer", overhead * 100.0),
    )
}

/// Says.
pub async fn run(args: IntervalArgs, context: &Context) -> Result<(), CommandError> {
    let Age(restart) = args.restart;
    if [args.mtbf, args.interval].into_iter().flatten().any(|Age(time)| time.is_zero()) {
        return Err(CommandError::usage("a time of nothing makes no sense for --mtbf and --interval"));
    }
    let (application, timelines) = match &args.repository {
        Some(repository) => timelines(repository, &args, context).await?,
        None => (None, Vec::new()),
    };
    let mtbf = match args.mtbf {
        Some(Age(mtbf)) => mtbf,
        None => seen_by_guard(&args.state_dir, application.as_ref())?,
    };
    let measured = Cost::of(&timelines);
    let cost = args.cost.map(|Age(cost)| cost).or(measured.map(|measured| measured.frozen)).ok_or_else(|| {
        CommandError::new(Exit::NotFound, "no checkpoint there says how long it took")
            .hint("say what one costs with --cost; `syncpoint checkpoint` keeps a timeline, `syncpoint link` does not")
    })?;
    let best = optimum(cost, mtbf);
    let lost = |interval: Duration| {
        Some(overhead(interval, cost, restart, mtbf)).filter(|overhead| overhead.is_finite() && !interval.is_zero())
    };
    let interval = args.interval.map(|Age(interval)| interval);
    let least = measured.map_or(cost, |measured| measured.whole.max(cost));
    let mut warnings = Vec::new();
    for (what, judged) in [("the optimum", Some(best)), ("the interval", interval)] {
        if let Some(judged) = judged.filter(|judged| *judged < least) {
            warnings.push(format!(
                "{what}, {}, is shorter than a checkpoint takes, {}: some would be skipped",
                time(judged.as_secs_f64()),
                time(least.as_secs_f64())
            ));
        }
    }
    warnings.iter().for_each(|warning| context.reporter.warn(warning));
    let answer = Answer {
        repository: args.repository.as_ref().map(Reference::to_string),
        checkpoints: timelines.len(),
        frozen: measured.map(|measured| measured.frozen.as_secs_f64()),
        whole: measured.map(|measured| measured.whole.as_secs_f64()),
        cost: cost.as_secs_f64(),
        mtbf: mtbf.as_secs_f64(),
        restart: restart.as_secs_f64(),
        optimum: best.as_secs_f64(),
        interval: interval.map(|interval| interval.as_secs_f64()),
        overhead_at_optimum: lost(best),
        overhead: interval.and_then(lost),
        warnings,
    };
    context.output.print(args.format, &answer)
}

/// The mean time between the failures that a guard of this machine saw.
fn seen_by_guard(state_dir: &Path, application: Option<&ApplicationId>) -> Result<Duration, CommandError> {
    let unknown = |why: String| {
        CommandError::new(Exit::NotFound, why).hint("say with --mtbf how much time there is between two failures")
    };
    let application = application.ok_or_else(|| unknown("there is no checkpoint, of no application".to_owned()))?;
    let state = guard_state(state_dir, application).map_err(|error| {
        let what = format!("what the guard of {application} keeps in {} cannot be read", state_dir.display());
        match error.kind() {
            ErrorKind::InvalidData | ErrorKind::UnexpectedEof => CommandError::new(Exit::Damaged, error),
            _ => CommandError::from(error),
        }
        .context(what)
    })?;
    let mean = state.and_then(|state| state.mean_time_between_losses()).filter(|mean| !mean.is_zero());
    mean.ok_or_else(|| {
        unknown(format!("no guard of {application} on this machine ({}) saw two failures", state_dir.display()))
    })
}

/// The application whose checkpoints are there, and the timelines of the newest.
async fn timelines(
    repository: &Reference,
    args: &IntervalArgs,
    context: &Context,
) -> Result<(Option<ApplicationId>, Vec<Timeline>), CommandError> {
    let store = store::open(repository, &args.transport, context).await?;
    let trust = keys::of_line(None, args.key.iter().map(PathBuf::as_path), context)?;
    let Catalogue { mut listed, passed_over } = catalogue(&*store, &trust, args.transport.jobs()).await?;
    super::passed_over(&passed_over, context);
    if let Some(application) = &args.application {
        listed.retain(|listed| listed.global.application() == application);
    }
    let application = |listed: &Listed| listed.global.application().clone();
    if listed.iter().any(|other| application(other) != application(&listed[0])) {
        return Err(CommandError::usage(format!("{repository} has checkpoints of several applications"))
            .hint("say which one with --application"));
    }
    listed.sort_by_key(|listed| Reverse(listed.global.epoch()));
    listed.dedup_by_key(|listed| listed.root.digest);
    let timelines = listed.iter().filter_map(|listed| listed.global.timeline().ok().flatten());
    Ok((listed.first().map(application), timelines.take(NEWEST).collect()))
}
