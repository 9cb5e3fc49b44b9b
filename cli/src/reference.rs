//! The reference in `docs/cli.md`, made from the definitions of the command line and kept true by the test at the end.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, Command, CommandFactory};

use crate::args::Cli;
use crate::environment::VARIABLES;
use crate::exit::Exit;
use crate::manual::{definition, walk};

/// The reference in `docs/cli.md`.
fn markdown() -> String {
    let mut text = String::from(
        "# Command line reference\n\n<!-- Made from the definitions of the command line; a test keeps it true. -->\n",
    );
    let top = definition();
    let written = walk(&top, &mut |command| describe(&mut text, command, command.get_name() == top.get_name()));
    // Writing to a String does not fail.
    written.map_or_else(|_: std::fmt::Error| String::new(), |()| text)
}

fn describe(text: &mut String, command: &Command, top: bool) -> std::fmt::Result {
    let name = command.get_bin_name().unwrap_or(command.get_name());
    writeln!(text, "\n## `{name}`\n")?;
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        writeln!(text, "{about}\n")?;
    }
    let usage = command.clone().render_usage().to_string();
    writeln!(text, "```text\n{}\n```", usage.trim_start_matches("Usage: ").trim())?;
    if command.has_subcommands() {
        writeln!(text, "\n| command | |\n|---|---|")?;
        for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
            let about = below.get_about().map(ToString::to_string).unwrap_or_default();
            writeln!(text, "| `{}` | {} |", below.get_name(), cell(&about))?;
        }
    }
    let own = |arg: &&Arg| !arg.is_hide_set() && (top || !arg.is_global_set()) && !is_help(arg);
    let mut heading = None;
    for arg in command.get_arguments().filter(own) {
        let this = arg.get_help_heading().unwrap_or("Options and arguments");
        if heading != Some(this) {
            heading = Some(this);
            writeln!(text, "\n| {} | |\n|---|---|", this.to_lowercase())?;
        }
        writeln!(text, "| {} | {} |", cell(&spelled(arg)), cell(&meaning(arg)))?;
    }
    if top {
        writeln!(text, "\n| exit code | |\n|---|---|")?;
        Exit::ALL.iter().try_for_each(|exit| writeln!(text, "| {} | {} |", exit.code(), exit.meaning()))?;
        writeln!(text, "\n| environment variable | |\n|---|---|")?;
        return VARIABLES.iter().try_for_each(|(name, meaning)| writeln!(text, "| {name} | {} |", cell(meaning)));
    }
    match command.get_after_long_help() {
        Some(extra) => writeln!(text, "\n```text\n{}\n```", extra.to_string().trim()),
        None => Ok(()),
    }
}

fn is_help(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Help | ArgAction::HelpLong | ArgAction::HelpShort | ArgAction::Version)
}

/// `-v`, `--verbose`; `--to REF`; `DUMP`.
fn spelled(arg: &Arg) -> String {
    let values: Vec<_> = arg.get_value_names().unwrap_or_default().iter().map(ToString::to_string).collect();
    let value = if arg.get_action().takes_values() { values.join(" ") } else { String::new() };
    let short = arg.get_short().map(|short| format!("`-{short}`"));
    let long = arg.get_long().map(|long| format!("`{}`", format!("--{long} {value}").trim_end()));
    match (short, long) {
        (None, None) => format!("`{value}`"),
        (short, long) => short.into_iter().chain(long).collect::<Vec<_>>().join(", "),
    }
}

fn meaning(arg: &Arg) -> String {
    let mut text = arg.get_long_help().or(arg.get_help()).map(ToString::to_string).unwrap_or_default();
    let words: Vec<_> = arg.get_possible_values().iter().map(|value| format!("`{}`", value.get_name())).collect();
    if arg.get_action().takes_values() && !words.is_empty() {
        let _ = write!(text, "; one of {}", words.join(", "));
    }
    let defaults: Vec<_> = arg.get_default_values().iter().map(|value| value.to_string_lossy()).collect();
    if arg.get_action().takes_values() && !defaults.is_empty() {
        let _ = write!(text, "; `{}` if not given", defaults.join(" "));
    }
    text
}

/// A text that stays in its cell of a table.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn the_reference_is_true() {
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/cli.md");
    let text = markdown();
    if std::env::var_os("INSTA_UPDATE").is_some_and(|value| value == "always") {
        std::fs::write(&file, &text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap_or_default();
    let write = "INSTA_UPDATE=always cargo test -p syncpoint";
    assert!(written == text, "docs/cli.md is not what the definitions say; write it with {write}");
}
