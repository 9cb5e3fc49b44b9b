//! What no program that syncpoint starts is to know.

/// Variables of the environment that hold secrets, which no program that is started needs: what outlives this one, such as the monitor
/// of a container, would show them for as long as it runs.
pub const SECRET_VARIABLES: &[&str] = &["COSIGN_PASSWORD", "SDP_CONFIG_PASSWORD"];
