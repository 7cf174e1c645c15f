//! Three VTEPs held against the RFCs: Peregrine, Linux and Open vSwitch's userspace datapath, each between a wire and tenants
//! that are this suite. scapy builds what they receive, tshark judges what they send. What Peregrine fails fails here; what the
//! others fail is recorded. `docs/conformance.md` is the outcome as a table, written by `make conformance`.
//!
//! `bench` is the bench, `sut` the three, `suite` runs groups of cases, `judge` asks tshark, `page` writes the table; the rest are cases.

mod answers;
mod bench;
mod checksums;
mod header;
mod judge;
mod jumbo;
mod known;
mod limits;
mod overlay;
mod page;
mod scapy;
mod settings;
mod suite;
mod sut;
mod tagged;
mod transparency;
mod underlay;

/// All groups, in the order of the page.
static GROUPS: &[&suite::Group] = &[
    &header::HEADER,
    &overlay::OVERLAY,
    &underlay::UNDERLAY,
    &tagged::TAGGED,
    &checksums::CHECKSUMS,
    &settings::SETTINGS,
    &transparency::TRANSPARENCY,
    &answers::ANSWERS,
    &limits::LIMITS,
    &jumbo::JUMBO,
];
