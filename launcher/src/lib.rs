//! What happens to containers: engines, preflight and the restore run.
