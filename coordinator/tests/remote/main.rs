//! Members of other hosts, over mutual TLS on real sockets.

mod control;
mod rendezvous;
mod service;
mod support;
