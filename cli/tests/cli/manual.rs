//! Help, completions and man pages.

use std::fs;

use crate::common::World;

#[test]
fn help_is_what_it_was() {
    let world = World::new();
    insta::assert_snapshot!("help", world.good(&["--help"]));
    insta::assert_snapshot!("pack", world.good(&["pack", "--help"]));
    insta::assert_snapshot!("pack_short", world.good(&["pack", "-h"]));
}

#[test]
fn push_and_pull_say_that_they_are_copy() {
    let world = World::new();
    for word in ["push", "pull"] {
        assert!(world.good(&[word, "--help"]).contains("another word for `syncpoint copy`"));
    }
}

#[test]
fn every_shell_has_completions() {
    let world = World::new();
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = world.good(&["completion", shell]);
        for word in ["unpack", "depends-on", "zstd"] {
            assert!(script.contains(word), "{shell} knows {word}");
        }
    }
    // Where the shell is there, it takes the script.
    let script = world.path("script");
    fs::write(&script, world.good(&["completion", "bash"])).unwrap();
    let checked = world.program("bash", &["-n", script.to_str().unwrap()]).output().unwrap();
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn every_command_has_a_man_page() {
    let world = World::new();
    world.good(&["man", "share/man1"]);
    let mut pages: Vec<_> =
        fs::read_dir(world.path("share/man1")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    pages.sort();
    let help = world.good(&["-h"]);
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    for command in commands.filter_map(|line| line.split_whitespace().next()) {
        assert!(pages.iter().any(|page| *page == *format!("syncpoint-{command}.1")), "{command}: {pages:?}");
    }
    let page = fs::read_to_string(world.path("share/man1/syncpoint-pack.1")).unwrap();
    for part in
        [".TH syncpoint-pack 1", "SYNOPSIS", "EXIT STATUS", "ENVIRONMENT", "COSIGN_PASSWORD", "\\-\\-depends\\-on"]
    {
        assert!(page.contains(part), "{part}: {page}");
    }
    insta::assert_snapshot!(page);
}
