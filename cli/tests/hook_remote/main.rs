//! The real `syncpoint-hook` and whoever it meets on another host, which here is another port of this one.

mod standalone;
#[path = "../../../coordinator/tests/remote/support.rs"]
mod support;
mod ticket;

use std::process::{Child, Output};
use std::time::Duration;

use image_format::MemberId;

const PROGRAM: &str = env!("CARGO_BIN_EXE_syncpoint-hook");

/// Longer than any step takes, shorter than a person waits.
const LONG: Duration = Duration::from_secs(20);

fn id(member: &str) -> MemberId {
    member.parse().expect("an id")
}

fn end(child: Child) -> Output {
    child.wait_with_output().expect("an end")
}

fn assert_passed(output: &Output) {
    assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");
}

fn assert_refused(output: &Output, words: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(said.starts_with("Error (syncpoint-hook): ") && said.contains(words), "{said:?} has no {words:?}");
}
