//! What faults are made with: a real S3-compatible server, a proxy before it, hosts of our own, a real Slurm, small disks, a
//! clock that jumps. And what looks at runs as people do: a browser, a terminal.

mod browser;
mod clock;
mod disk;
mod hosts;
mod proxy;
mod s3;
mod slurm;
mod terminal;

pub use browser::Browser;
pub use clock::FalseClock;
pub use disk::SmallDisk;
pub use hosts::{Host, Namespaces};
pub use proxy::{FaultProxy, Mode};
pub use s3::S3Server;
pub use slurm::Slurm;
pub use terminal::Terminal;

use std::fmt;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};

/// Below the ports that the system gives to outgoing connections, so that none of those takes the port of a server that
/// is down for a while.
const PORTS: std::ops::Range<u16> = 15_000..32_000;

/// This machine does not allow something: why, for a test that leaves out what needs it.
#[derive(Debug, Clone)]
pub struct NotPermitted(String);

impl fmt::Display for NotPermitted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Whether tests have to show all that they can show: what the machine does not allow is a failure then.
pub fn everything_is_required() -> bool {
    std::env::var_os("ZIPPER_RIGS").is_some_and(|value| value == "required")
}

/// What a test makes of a rig that this machine does not allow: it says so and shows nothing, unless it has to show something.
///
/// # Panics
/// If it has to.
pub fn permitted<T>(rig: Result<T, NotPermitted>) -> Option<T> {
    match rig {
        Ok(rig) => Some(rig),
        Err(why) if everything_is_required() => panic!("ZIPPER_RIGS=required, but {why}"),
        Err(why) => {
            eprintln!("left out: {why}");
            None
        }
    }
}

/// A file of this repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Runs a command; what it said on stderr if it fails.
fn run(command: &mut Command) -> Result<(), NotPermitted> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(NotPermitted(format!("`{program}`: {}", said.trim())))
        }
        Err(error) => Err(NotPermitted(format!("`{program}`: {error}"))),
    }
}

/// A port that nobody else listens on, with a listener on it.
fn free_port(host: IpAddr) -> (SocketAddr, TcpListener) {
    // Processes begin in different places, and go on where they found the last one.
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let first = (std::process::id() as u16).wrapping_mul(97);
    loop {
        let offset = first.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % (PORTS.end - PORTS.start);
        let address = SocketAddr::new(host, PORTS.start + offset);
        if let Ok(listener) = TcpListener::bind(address) {
            listener.set_nonblocking(true).expect("a listener can be set so");
            return (address, listener);
        }
    }
}
