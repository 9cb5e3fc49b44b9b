//! What an engine has, as far as a restore needs to know.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::ties::Pod;
use crate::volumes::Volume;

/// What one engine has, as far as a restore needs to know.
#[derive(Debug, Clone, Default)]
pub struct Survey {
    /// The version of its program, as that prints it.
    pub version: String,
    /// The name of the runtime that it uses.
    pub runtime: Option<String>,
    /// Whether it needs the runtime that restores, and does not know one.
    pub lacks_runtime: bool,
    /// All of its containers.
    pub containers: Vec<Container>,
    /// Those of the wanted networks that are there.
    pub networks: BTreeMap<String, Network>,
    /// All of its volumes, by name.
    pub volumes: BTreeMap<String, Volume>,
    /// The names of its secrets, where a member has any.
    pub secrets: BTreeSet<String>,
    /// Its pods, where a member was in one.
    pub pods: Vec<Pod>,
    /// Those of the wanted images that are there, by id.
    pub images: BTreeSet<String>,
    /// Where it keeps containers.
    pub storage: Option<PathBuf>,
}

/// A container that an engine knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The engine's own id.
    pub id: String,
    /// Its names, the one that people use first.
    pub names: Vec<String>,
    /// Its state, in the engine's word, such as `running`.
    pub state: String,
}

impl Container {
    /// What people call it.
    pub fn name(&self) -> &str {
        self.names.first().unwrap_or(&self.id)
    }
}

/// A network that an engine knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Network {
    /// The ranges that its addresses come from.
    pub subnets: Vec<Subnet>,
    /// Who has which address now.
    pub taken: BTreeMap<IpAddr, String>,
}

/// A range of addresses, such as `10.90.0.0/24`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subnet {
    address: IpAddr,
    length: u32,
}

impl Subnet {
    /// Whether an address is in the range. An IPv4 address is in no IPv6 range.
    pub fn contains(self, address: IpAddr) -> bool {
        // The bits after the prefix are shifted out; a shift by all the bits compares nothing.
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(32 - self.length.min(32)).unwrap_or(0) == 0
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => {
                (own.to_bits() ^ other.to_bits()).checked_shr(128 - self.length.min(128)).unwrap_or(0) == 0
            }
            (IpAddr::V4(_), IpAddr::V6(_)) | (IpAddr::V6(_), IpAddr::V4(_)) => false,
        }
    }
}

impl FromStr for Subnet {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (address, length) = text.split_once('/').ok_or(())?;
        Ok(Self { address: address.parse().map_err(|_| ())?, length: length.parse().map_err(|_| ())? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subnets_contain_their_addresses() {
        for (subnet, address, inside) in [
            ("10.90.0.0/24", "10.90.0.255", true),
            ("10.90.0.0/24", "10.90.1.0", false),
            ("10.88.0.0/16", "10.88.255.1", true),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("10.0.0.1/32", "10.0.0.1", true),
            ("10.0.0.1/32", "10.0.0.0", false),
            ("fd00::/64", "fd00::1:2", true),
            ("fd00::/64", "fd00:0:0:1::", false),
            ("::/0", "fd00::", true),
            ("10.0.0.0/8", "::ffff:10.0.0.1", false),
        ] {
            let subnet: Subnet = subnet.parse().unwrap();
            assert_eq!(subnet.contains(address.parse().unwrap()), inside, "{subnet:?} {address}");
        }
        for bad in ["", "10.0.0.0", "10.0.0.0/x", "x/8", "10.0.0/8"] {
            assert!(bad.parse::<Subnet>().is_err(), "{bad}");
        }
    }
}
