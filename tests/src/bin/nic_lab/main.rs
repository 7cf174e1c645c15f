//! The NIC lab: Peregrine on real drivers, in guests of QEMU with emulated NICs. `make nic-lab` runs it; what it boots was fetched and
//! packed by the scripts in `tests/nic-lab/`.
//!
//! ```text
//!  host: nic_lab host FOLDER            guest, one for each kind of NIC, and one for the machine's checks: nic_lab guest KIND
//!  ┌────────────────────┐              ┌────────────────────────────────────────────────────────────┐
//!  │ starts QEMU, reads │◄── console ──┤ each case in a process of its own: nic_lab case KIND NAME   │
//!  │ its console, pulls │              │  far: kernel's vxlan device        near: peregrine run      │
//!  │ cables (monitor)   │              │       far0, a NIC ──── QEMU's hub ──── near0, a NIC         │
//!  └────────────────────┘              └────────────────────────────────────────────────────────────┘
//! ```
//!
//! The guest prints one line for each case, and a last one; everything has a deadline. The exit status is 0 if every case of every kind
//! of NIC passed, and 1 if not.

mod bench;
mod cases;
mod guest;
mod host;
mod kinds;

use std::process::ExitCode;

use kinds::Kind;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let kind = |name: &str| Kind::named(name).unwrap_or_else(|| panic!("no kind of NIC '{name}'"));
    match words.as_slice() {
        ["host", folder, names @ ..] => {
            let chosen: Vec<Kind> = names.iter().map(|name| kind(name)).collect();
            let twice = |(at, kind)| chosen.iter().take(at).any(|other| other == kind);
            if chosen.iter().enumerate().any(twice) {
                eprintln!("nic_lab: '{}': name each kind of NIC once", names.join(" "));
                return ExitCode::from(2);
            }
            host::run(folder.as_ref(), if names.is_empty() { Kind::ALL.to_vec() } else { chosen })
        }
        ["guest", name] => guest::run(kind(name)),
        ["case", name, case] => guest::run_one(kind(name), case),
        _ => {
            eprintln!("nic_lab: usage: nic_lab host FOLDER [KIND…]");
            ExitCode::from(2)
        }
    }
}
