//! Network namespaces that look like hosts: each has its own address and can be cut off. Made by `cluster/netns.sh`.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use super::{NotPermitted, repository, run};

/// Networks 10.231.0 to 10.231.255 are tried.
const NETWORKS: std::ops::RangeInclusive<u8> = 0..=255;

/// Some hosts on one bridge. They go with this value.
#[derive(Debug)]
pub struct Namespaces {
    prefix: String,
    network: u8,
    number: u8,
}

/// One of them.
#[derive(Debug, Clone, Copy)]
pub struct Host<'a> {
    namespaces: &'a Namespaces,
    index: u8,
}

impl Namespaces {
    /// Makes `number` hosts.
    ///
    /// # Errors
    /// [`NotPermitted`] without root, or where the kernel has no network namespaces.
    pub fn up(number: u8) -> Result<Self, NotPermitted> {
        // Names of interfaces have 15 characters at most, process ids 7.
        let prefix = format!("z{}", std::process::id());
        let mut refused = NotPermitted(String::new());
        let first = std::process::id() as u8;
        for network in NETWORKS.map(|offset| first.wrapping_add(offset)) {
            let arguments = [&prefix, &number.to_string(), &format!("10.231.{network}")];
            if is_taken(network) {
                continue;
            }
            match run(Command::new(repository("cluster/netns.sh"))
                .arg("up")
                .args(arguments))
            {
                Ok(()) => {
                    return Ok(Self {
                        prefix,
                        network,
                        number,
                    });
                }
                Err(error) => refused = error,
            }
            break;
        }
        Err(NotPermitted(format!(
            "network namespaces cannot be made, which needs root: {refused}"
        )))
    }

    /// All hosts.
    pub fn hosts(&self) -> impl Iterator<Item = Host<'_>> {
        (0..self.number).map(|index| self.host(index))
    }

    /// One host.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn host(&self, index: u8) -> Host<'_> {
        assert!(index < self.number, "there are {} hosts", self.number);
        Host {
            namespaces: self,
            index,
        }
    }

    /// What the names of their namespaces begin with.
    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The first three numbers of their addresses.
    pub(super) fn network(&self) -> String {
        format!("10.231.{}", self.network)
    }

    /// How many there are.
    pub fn number(&self) -> u8 {
        self.number
    }

    /// This machine's own address, as hosts see it.
    pub fn gateway(&self) -> IpAddr {
        Ipv4Addr::new(10, 231, self.network, 1).into()
    }

    /// The words before a command that run it on host `{node}`.
    pub fn command_of_node(&self) -> String {
        format!("nsenter --net=/run/netns/{}{{node}}", self.prefix)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        if let Err(error) = run(Command::new(repository("cluster/netns.sh")).args(["down", &self.prefix])) {
            eprintln!("network namespaces {}* stay: {error}", self.prefix);
        }
    }
}

impl Host<'_> {
    /// Its address.
    pub fn address(&self) -> IpAddr {
        Ipv4Addr::new(10, 231, self.namespaces.network, 10 + self.index).into()
    }

    /// `program`, to be run on it; the process is the program itself.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!(
            "--net=/run/netns/{}{}",
            self.namespaces.prefix, self.index
        ));
        command.arg(program);
        command
    }

    /// Cuts it off from everything: packets vanish, connections stay.
    pub fn cut_off(&self) {
        self.link("down");
    }

    /// Connects it again.
    pub fn connect(&self) {
        self.link("up");
    }

    fn link(&self, state: &str) {
        let link = format!("{}v{}", self.namespaces.prefix, self.index);
        run(Command::new("ip").args(["link", "set", &link, state])).expect("who made a link can switch it");
    }
}

/// Whether this machine has an address in the network.
fn is_taken(network: u8) -> bool {
    let output = Command::new("ip").args(["-4", "-o", "address"]).output();
    output
        .is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(&format!(" 10.231.{network}.")))
}
