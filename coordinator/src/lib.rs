//! When members move: the two-phase protocol and the rendezvous of CRIU hooks.
