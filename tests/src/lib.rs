//! End-to-end tests, testbed and benchmarks of syncpoint.
