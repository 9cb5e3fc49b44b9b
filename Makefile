# The commands of the README. Each does all its own set-up on a fresh Debian machine that has cargo.
#
#   make demo    the main job on a real application (root: with podman and CRIU, in namespaces of its own)
#   make test    every tier; TIERS=rootless for what needs no root
#   make bench   packing, sending, restoring and freezing against the peers, in one run, with the ratios; then how long barriers take

TIERS ?= lint rootless real

.PHONY: demo test bench fmt
demo:
	tests/demo/run

test:
	tests/tiers $(TIERS)

bench:
	tests/bench/run; ran=$$?; tests/bench/barrier && exit $$ran

fmt:
	cargo fmt --all
