//! The crate from outside: real dumps, hostile input, and any input at all.

mod dumps;
mod files;
mod generations;
mod hostile;
mod lazily;
mod raw;
mod round_trip;
mod stream;
mod support;
