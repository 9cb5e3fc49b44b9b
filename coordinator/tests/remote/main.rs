//! Members of other hosts, over mutual TLS on real sockets.

mod rendezvous;
mod service;
mod support;
