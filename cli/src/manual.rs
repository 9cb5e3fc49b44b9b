//! Man pages, from the definitions that also make `--help`.

use std::io::{self, Write};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use crate::args::Cli;
use crate::environment::VARIABLES;
use crate::exit::Exit;

/// The command line's definition with every name filled in: `syncpoint key generate` is called that.
pub fn definition() -> Command {
    let mut command = Cli::command();
    command.build();
    command
}

/// Every page: its file name and its text.
pub fn pages() -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut pages = Vec::new();
    walk(&definition(), &mut |command| {
        pages.push(page(command)?);
        io::Result::Ok(())
    })?;
    Ok(pages)
}

/// Visits a command and all below it, each before what is below it.
pub fn walk<E>(command: &Command, visit: &mut impl FnMut(&Command) -> Result<(), E>) -> Result<(), E> {
    visit(command)?;
    command.get_subcommands().filter(|command| !command.is_hide_set()).try_for_each(|command| walk(command, visit))
}

fn page(command: &Command) -> io::Result<(String, Vec<u8>)> {
    let source = concat!("syncpoint ", env!("CARGO_PKG_VERSION"));
    let man = Man::new(command.clone()).source(source).manual("syncpoint");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    if command.has_subcommands() {
        man.render_subcommands_section(&mut text)?;
    }
    let top = command.get_name() == definition().get_name();
    if let (Some(extra), false) = (command.get_after_long_help(), top) {
        section(&mut text, "OUTPUT", &[])?;
        write!(text, ".nf\n{}\n.fi\n", roff(&extra.to_string()))?;
    }
    let exits: Vec<_> = Exit::ALL.iter().map(|exit| (exit.code().to_string(), exit.meaning())).collect();
    section(&mut text, "EXIT STATUS", &exits)?;
    let variables: Vec<_> = VARIABLES.iter().map(|(name, meaning)| ((*name).to_owned(), *meaning)).collect();
    section(&mut text, "ENVIRONMENT", &variables)?;
    Ok((man.get_filename(), text))
}

fn section(page: &mut Vec<u8>, head: &str, entries: &[(String, &str)]) -> io::Result<()> {
    writeln!(page, ".SH \"{head}\"")?;
    entries.iter().try_for_each(|(name, meaning)| write!(page, ".TP\n\\fB{}\\fR\n{}\n", roff(name), roff(meaning)))
}

/// A text in which roff finds nothing to obey.
fn roff(text: &str) -> String {
    let escaped = text.replace('\\', "\\e").replace('-', "\\-");
    escaped
        .lines()
        .map(|line| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() })
        .collect::<Vec<_>>()
        .join("\n")
}
