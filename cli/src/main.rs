//! `syncpoint`: what a person types.

fn main() {}
