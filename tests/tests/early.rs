//! Rules in the config that put packets into the urgent class, followed from the driver on: which ring they came by is counted by the XDP
//! program, and what is urgent overtakes nothing of its own flow.

use etherparse::PacketBuilder;
use peregrine_dataplane::types::MacAddr;
use peregrine_tests::{Daemon, FAR, FAR_OVERLAY, Guest, Net, RawSocket, Tenant};

const URGENT_PORT: u16 = 5201;
const EF: u8 = 46;
const EACH: u8 = 20;

fn datagram(port: u16, dscp: u8, number: u8) -> Vec<u8> {
    let address = |text: &str| text.parse::<MacAddr>().unwrap().0;
    let mut frame = Vec::new();
    let mut ip =
        etherparse::Ipv4Header::new(0, 64, etherparse::IpNumber::UDP, [10, 42, 0, 2], [10, 42, 0, 1])
            .unwrap();
    ip.dscp = dscp.try_into().unwrap();
    PacketBuilder::ethernet2(address(FAR_OVERLAY.1), address(Tenant::WEB.mac))
        .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
        .udp(4000, port)
        .write(&mut frame, &[number; 32])
        .unwrap();
    frame
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_the_rules_call_urgent_comes_by_the_urgent_ring() {
    let net = Net::new();
    let config = Daemon::config(&net, &[FAR.0], &[Tenant::WEB]);
    assert!(config.contains("[uplink]\n"));
    let config = config.replace("[uplink]\n", "[uplink]\nearly = true\n")
        + &format!(
            "\n[[rules]]\nclass = \"urgent\"\nnetwork = \"blue\"\nprotocol = \"udp\"\ndestination_port = {URGENT_PORT}\n\
             \n[[rules]]\nclass = \"urgent\"\ndscp = {EF}\n"
        );
    let daemon = Daemon::start_with(&net, &config);
    daemon.wait_for_next_hops();
    let mut web = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_tenant(0, true);
    assert_eq!(daemon.status()["uplinks"][0]["early"], true);
    let steered = || {
        let stats = daemon.stats();
        let program = &stats["uplinks"][0]["program"][0];
        ["steered", "urgent"].map(|name| program[name].as_u64().unwrap())
    };

    let far = RawSocket::open(&net.far, "vx");
    let before = steered();
    let kinds = [(URGENT_PORT, 0), (9000, EF), (9000, 0)];
    for number in 0..EACH {
        for (port, dscp) in kinds {
            far.send(&datagram(port, dscp, number));
        }
    }
    // Each kind keeps its order; the normal ones are one flow, and its last is the last of all.
    let last = datagram(9000, 0, EACH);
    far.send(&last);
    let got = web.receive_until(&last);
    for (port, dscp) in kinds {
        let sent: Vec<Vec<u8>> = (0..EACH).map(|number| datagram(port, dscp, number)).collect();
        let its: Vec<&Vec<u8>> = got.iter().filter(|frame| sent.contains(frame)).collect();
        assert!(
            its.iter().copied().eq(sent.iter()),
            "port {port}, DSCP {dscp}: {} of {EACH}, in order",
            its.len()
        );
    }
    let after = steered();
    let each = u64::from(EACH);
    assert_eq!([after[0] - before[0], after[1] - before[1]], [3 * each + 1, 2 * each]);
    daemon.at_rest();
}
