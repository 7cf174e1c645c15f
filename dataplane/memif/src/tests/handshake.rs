//! The server's handshake: what is refused, with which words, and that nothing stays open.

use std::os::fd::FromRawFd;

use super::*;
use crate::client::ClientConfig;
use crate::error::{Reject, Sent};
use crate::offer::Offer;
use crate::server::Refusal;

/// The server refuses this message with this reason, and says so.
#[track_caller]
fn refuses(bench: &mut Bench, message: &Message, fd: Option<BorrowedFd<'_>>, why: Reject) {
    let mut result = bench.say(message, fd);
    while let Ok(Progress::Pending) = result {
        result = bench.next_step();
    }
    match result {
        Err(HandshakeError::Rejected(given)) => assert_eq!(given, why),
        other => panic!("expected {why:?}, got {other:?}"),
    }
    assert_eq!(bench.farewell(), why.to_string());
    assert!(matches!(bench.step(), Err(HandshakeError::Finished)));
}

#[test]
fn init_is_checked() {
    let secret = |text: &str| Secret::new(text.as_bytes()).unwrap();
    let guarded = ServerConfig { secret: Some(secret("right")), ..ServerConfig::default() };
    let table = [
        (Init { version: 0x0100, ..init() }, Reject::Version { min: 0x0100, max: 0x0100 }),
        (Init { version: 0x0201, ..init() }, Reject::Version { min: 0x0201, max: 0x0201 }),
        (Init { mode: 1, ..init() }, Reject::Mode { mode: 1 }),
        (init(), Reject::SecretRequired),
        (Init { secret: secret("wrong"), ..init() }, Reject::SecretWrong),
        (Init { secret: secret("right "), ..init() }, Reject::SecretWrong),
    ];
    for (message, why) in table {
        refuses(&mut Bench::new(guarded.clone()), &Message::Init(message), None, why);
    }
    let mut bench = Bench::new(guarded);
    bench.say_and_hear_ack(&Message::Init(Init { secret: secret("right"), ..init() }), None);
    assert_eq!(bench.server.id(), Some(3));
}

#[test]
fn the_lookup_decides_and_sees_who_asks() {
    let table = [
        (Refusal::UnknownId, "unmatched interface id"),
        (Refusal::AlreadyConnected, "already connected"),
        (Refusal::NotAllowed, "not allowed"),
        (Refusal::TooSoon, "disconnected for a violation just now, try again later"),
    ];
    for (refusal, text) in table {
        let mut bench = Bench::new(ServerConfig::default());
        bench.channel.send(&Message::Init(init()), None).unwrap();
        let result = bench.server.step(&mut |request| {
            assert_eq!((request.id, request.name), (3, "tenant"));
            assert_eq!(request.credentials.unwrap().pid, std::process::id() as i32);
            Err(refusal)
        });
        assert!(matches!(result, Err(HandshakeError::Rejected(_))));
        assert_eq!(bench.farewell(), text);
    }
}

#[test]
fn messages_out_of_order_are_refused() {
    let before_init = [
        Message::Ack,
        Message::AddRegion { index: 0, size: 4096 },
        Message::AddRing(s2m()),
        Message::Connect { name: String::new() },
        Message::Connected { name: String::new() },
    ];
    for message in before_init {
        refuses(
            &mut Bench::new(ServerConfig::default()),
            &message,
            None,
            Reject::UnexpectedMessage { kind: message.kind() },
        );
    }
    for message in [Message::Init(init()), Message::Ack, Message::Connected { name: String::new() }] {
        let mut bench = Bench::described(ServerConfig::default());
        refuses(&mut bench, &message, None, Reject::UnexpectedMessage { kind: message.kind() });
    }
}

#[test]
fn malformed_packets_are_refused() {
    let ack = Message::Ack.encode();
    let table = [
        (&ack[..127], Reject::MessageSize { bytes: 127 }),
        (&ack[..1], Reject::MessageSize { bytes: 1 }),
        (&[ack, ack].concat()[..129], Reject::MessageSize { bytes: 129 }),
        (&[9; 128], Reject::UnknownMessage { kind: 0x0909 }),
        (&[0; 128], Reject::UnknownMessage { kind: 0 }),
    ];
    for (bytes, why) in table {
        let mut bench = Bench::new(ServerConfig::default());
        let tracer = Tracer::new();
        sys::send(bench.channel.as_fd(), bytes, Some(tracer.sent.as_fd())).unwrap();
        assert!(matches!(bench.step(), Err(HandshakeError::Rejected(given)) if given == why), "{why}");
        assert_eq!(bench.farewell(), why.to_string());
        tracer.assert_closed();
    }
    // A packet of no bytes looks like the end of file.
    let mut bench = Bench::new(ServerConfig::default());
    sys::send(bench.channel.as_fd(), &[], None).unwrap();
    assert!(matches!(bench.step(), Err(HandshakeError::Closed { after: Sent::Nothing })));
}

#[test]
fn unexpected_descriptors_are_refused_and_closed() {
    let tracer = Tracer::new();
    let mut bench = Bench::new(ServerConfig::default());
    refuses(&mut bench, &Message::Init(init()), Some(tracer.sent.as_fd()), Reject::UnexpectedFd);
    tracer.assert_closed();
    let tracer = Tracer::new();
    let mut bench = Bench::described(ServerConfig::default());
    let connect = Message::Connect { name: "if0".into() };
    refuses(&mut bench, &connect, Some(tracer.sent.as_fd()), Reject::UnexpectedFd);
    tracer.assert_closed();
}

/// Sends one message with `count` copies of a descriptor.
fn send_many(channel: &Channel, message: &Message, fd: BorrowedFd<'_>, count: usize) {
    use std::os::fd::AsRawFd;
    let bytes = message.encode();
    let fds = vec![fd.as_raw_fd(); count];
    let mut control = vec![0u64; 2 + count.div_ceil(2)];
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    // SAFETY: `control` is 8-byte aligned and holds a cmsghdr (16 bytes) and `count` ints; everything outlives the call.
    unsafe {
        let mut header: libc::msghdr = std::mem::zeroed();
        header.msg_iov = &mut iov;
        header.msg_iovlen = 1;
        header.msg_control = control.as_mut_ptr().cast();
        header.msg_controllen = control.len() * 8;
        let first = libc::CMSG_FIRSTHDR(&header);
        (*first).cmsg_level = libc::SOL_SOCKET;
        (*first).cmsg_type = libc::SCM_RIGHTS;
        (*first).cmsg_len = libc::CMSG_LEN(4 * count as u32) as _;
        fds.as_ptr().copy_to_nonoverlapping(libc::CMSG_DATA(first).cast(), count);
        assert_eq!(libc::sendmsg(channel.as_fd().as_raw_fd(), &header, 0), 128);
    }
}

#[test]
fn too_many_descriptors_are_refused_and_all_closed() {
    for (count, why) in [(2, Reject::UnexpectedFd), (200, Reject::ControlTruncated)] {
        let tracer = Tracer::new();
        let mut bench = Bench::new(ServerConfig::default());
        bench.init();
        let message = Message::AddRegion { index: 0, size: 4096 };
        send_many(&bench.channel, &message, tracer.sent.as_fd(), count);
        assert!(matches!(bench.step(), Err(HandshakeError::Rejected(given)) if given == why));
        assert_eq!(bench.farewell(), why.to_string());
        tracer.assert_closed();
    }
}

#[test]
fn regions_are_checked() {
    let limits = Limits { regions_max: 2, ..Limits::default() };
    let config = ServerConfig { memory_bytes_max: 2 * REGION_BYTES, ..ServerConfig::default() };
    let good = sys::sealed_memory(REGION_BYTES).unwrap();
    let sized = |index, size| Message::AddRegion { index, size };
    let table = [
        (sized(1, 4096), Reject::RegionIndex { got: 1, due: 0 }),
        (sized(0, 0), Reject::RegionSize { announced: 0, actual: REGION_BYTES }),
        (
            sized(0, REGION_BYTES + 1),
            Reject::RegionSize { announced: REGION_BYTES + 1, actual: REGION_BYTES },
        ),
        (sized(0, 2 * REGION_BYTES + 1), Reject::TooMuchMemory { max: 2 * REGION_BYTES }),
        (sized(0, u64::MAX), Reject::TooMuchMemory { max: 2 * REGION_BYTES }),
    ];
    for (message, why) in table {
        let mut bench = Bench::with_limits(config.clone(), limits);
        bench.init();
        refuses(&mut bench, &message, Some(good.as_fd()), why);
    }
    let mut bench = Bench::with_limits(config.clone(), limits);
    bench.init();
    refuses(&mut bench, &sized(0, 4096), None, Reject::MissingRegionFd);
    let mut bench = Bench::with_limits(config.clone(), limits);
    bench.init();
    bench.say_and_hear_ack(&sized(0, 4096), Some(good.as_fd()));
    refuses(&mut bench, &sized(0, 4096), Some(good.as_fd()), Reject::RegionIndex { got: 0, due: 1 });
    let mut bench = Bench::with_limits(config.clone(), limits);
    bench.init();
    bench.say_and_hear_ack(&sized(0, REGION_BYTES), Some(good.as_fd()));
    bench.say_and_hear_ack(&sized(1, 4096), Some(good.as_fd()));
    refuses(&mut bench, &sized(2, 4096), Some(good.as_fd()), Reject::TooManyRegions { max: 2 });
    let mut bench = Bench::with_limits(config, limits);
    bench.init();
    bench.say_and_hear_ack(&sized(0, REGION_BYTES), Some(good.as_fd()));
    refuses(
        &mut bench,
        &sized(1, REGION_BYTES + 1),
        Some(good.as_fd()),
        Reject::TooMuchMemory { max: 2 * REGION_BYTES },
    );
}

#[test]
fn memory_that_can_shrink_is_refused_unless_allowed() {
    let message = Message::AddRegion { index: 0, size: 4096 };
    let unsealed = tempfile::tempfile().unwrap();
    unsealed.set_len(4096).unwrap();
    let tracer = Tracer::new();
    for fd in [unsealed.as_fd(), tracer.sent.as_fd()] {
        let mut bench = Bench::new(ServerConfig::default());
        bench.init();
        refuses(&mut bench, &message, Some(fd), Reject::RegionUnsealed);
    }
    tracer.assert_closed();
    let trusting = ServerConfig { allow_unsealed: true, ..ServerConfig::default() };
    let mut bench = Bench::new(trusting.clone());
    bench.init();
    bench.say_and_hear_ack(&message, Some(unsealed.as_fd()));
    // Even then it must be as long as announced.
    unsealed.set_len(4095).unwrap();
    let mut bench = Bench::new(trusting);
    bench.init();
    refuses(
        &mut bench,
        &message,
        Some(unsealed.as_fd()),
        Reject::RegionSize { announced: 4096, actual: 4095 },
    );
}

#[test]
fn rings_are_checked_when_they_come() {
    let event = sys::eventfd().unwrap();
    let table = [
        (AddRing { index: 1, ..s2m() }, Reject::RingIndex { got: 1, due: 0 }),
        (AddRing { private_header: 1, ..s2m() }, Reject::PrivateHeader),
        (AddRing { log2: 0, ..s2m() }, Reject::RingSize { log2: 0 }),
        (AddRing { log2: 15, ..s2m() }, Reject::RingSize { log2: 15 }),
        (AddRing { log2: 255, ..m2s() }, Reject::RingSize { log2: 255 }),
    ];
    for (ring, why) in table {
        let mut bench = Bench::new(ServerConfig::default());
        bench.init();
        refuses(&mut bench, &Message::AddRing(ring), Some(event.as_fd()), why);
    }
    let mut bench = Bench::new(ServerConfig::default());
    bench.init();
    refuses(&mut bench, &Message::AddRing(s2m()), None, Reject::MissingRingFd);
    // Each direction counts by itself: a repeated index is found whatever the other one has.
    for again in [s2m(), m2s()] {
        let mut bench = Bench::new(ServerConfig::default());
        bench.init();
        bench.ring(s2m());
        bench.ring(m2s());
        refuses(
            &mut bench,
            &Message::AddRing(again),
            Some(event.as_fd()),
            Reject::RingIndex { got: 0, due: 1 },
        );
    }
    let mut bench = Bench::new(ServerConfig { rings_max: 1, ..ServerConfig::default() });
    bench.init();
    bench.ring(s2m());
    bench.ring(m2s());
    let second = Message::AddRing(AddRing { index: 1, ..m2s() });
    refuses(&mut bench, &second, Some(event.as_fd()), Reject::TooManyRings { max: 1 });
    let tracer = Tracer::new();
    let mut bench = Bench::new(ServerConfig::default());
    bench.init();
    refuses(&mut bench, &Message::AddRing(s2m()), Some(tracer.sent.as_fd()), Reject::NotAnEventFd);
    tracer.assert_closed();
}

#[test]
fn rings_are_checked_in_memory_at_connect() {
    let end = REGION_BYTES as u32;
    let bytes = 128 + 16 * 32;
    let table = [
        (AddRing { region: 1, ..m2s() }, Reject::RingOutside),
        (AddRing { offset: end - bytes + 8, ..m2s() }, Reject::RingOutside),
        (AddRing { offset: u32::MAX - 7, ..m2s() }, Reject::RingOutside),
        (AddRing { offset: 0, log2: 14, ..m2s() }, Reject::RingOutside),
        (AddRing { offset: M2S_AT as u32 + 4, ..m2s() }, Reject::RingMisaligned),
        (AddRing { offset: M2S_AT as u32 + 1, ..m2s() }, Reject::RingMisaligned),
        (AddRing { offset: M2S_AT as u32 + 8, ..m2s() }, Reject::RingCookie),
    ];
    let connect = Message::Connect { name: "if0".into() };
    for (ring, why) in table {
        let mut bench = Bench::new(ServerConfig::default());
        bench.init();
        bench.region();
        bench.ring(s2m());
        bench.ring(ring);
        refuses(&mut bench, &connect, None, why);
    }
    let mut bench = Bench::new(ServerConfig::default());
    bench.init();
    bench.region();
    bench.ring(s2m());
    refuses(&mut bench, &connect, None, Reject::NoRings);
    // A ring that ends exactly where the region does is good, and so is the smallest.
    let mut bench = Bench::new(ServerConfig::default());
    bench.memory.write(u64::from(end - bytes), &0x03E3_1F20u32.to_ne_bytes());
    bench.init();
    bench.region();
    bench.ring(AddRing { log2: 1, ..s2m() });
    bench.ring(AddRing { offset: end - bytes, ..m2s() });
    assert_eq!(bench.connect().unwrap().rx[0].size(), 2);
}

/// The handshake up to its n-th message, 0 to 5.
fn up_to(count: usize) -> Bench {
    let mut bench = Bench::new(ServerConfig::default());
    let steps: [fn(&mut Bench); 4] = [Bench::init, Bench::region, |b| b.ring(s2m()), |b| b.ring(m2s())];
    steps.iter().take(count).for_each(|step| step(&mut bench));
    bench
}

/// What the client has said last by then.
const SENT: [Sent; 5] = [Sent::Nothing, Sent::Init, Sent::Region(0), Sent::RingS2m(0), Sent::RingM2s(0)];

#[test]
fn the_end_of_file_at_every_step_ends_the_handshake() {
    for (count, sent) in SENT.into_iter().enumerate() {
        let Bench { channel, mut server, memory, .. } = up_to(count);
        drop((channel, memory));
        let result = server.step(&mut |_| panic!("lookup after the end"));
        match result {
            Err(HandshakeError::Closed { after }) => assert_eq!(after, sent),
            other => panic!("step {count}: {other:?}"),
        }
    }
    for (count, sent) in SENT.into_iter().enumerate() {
        let mut bench = up_to(count);
        let message = Message::Disconnect { code: 7, text: "changed\nmy mind".into() };
        match bench.say(&message, None) {
            Err(HandshakeError::Disconnected { after, code: 7, text }) => {
                assert_eq!((after, text.as_str()), (sent, "changed?my mind"));
            }
            other => panic!("step {count}: {other:?}"),
        }
    }
    // After CONNECTED it is a disconnect.
    let mut bench = up_to(4);
    let interface = bench.connect().unwrap();
    assert_eq!(interface.control.poll_disconnect().unwrap(), None);
    drop(bench.channel);
    let reason = interface.control.poll_disconnect().unwrap();
    assert_eq!(reason, Some(crate::DisconnectReason::Closed));
}

#[test]
fn a_silent_client_is_told_when_its_time_is_over() {
    let mut bench = Bench::with_limits(
        ServerConfig::default(),
        Limits { handshake_timeout: Duration::ZERO, ..Limits::default() },
    );
    assert!(bench.server.deadline() <= Instant::now());
    assert!(matches!(bench.step(), Err(HandshakeError::Rejected(Reject::TimedOut))));
    assert_eq!(bench.farewell(), "handshake timed out");
}

#[test]
fn hello_says_what_the_limits_are() {
    let (ours, theirs) = sys::socket_pair().unwrap();
    let limits = Limits { regions_max: 16, rings_max: 4, ..Limits::default() };
    let _server = Handshake::new(theirs, "srv".into(), limits);
    let mut bytes = [0xee; 128];
    assert_eq!(sys::receive(ours.as_fd(), &mut bytes).unwrap().bytes, 128);
    let mut golden = [0; 128];
    golden[..5].copy_from_slice(b"\x02\x00srv");
    golden[34..45].copy_from_slice(&[0, 2, 0, 2, 15, 0, 3, 0, 3, 0, 14]);
    assert_eq!(bytes, golden);
}

/// Adds seals to a memory file.
fn add_seals(file: &File, seals: i32) {
    // SAFETY: no pointers.
    let result = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(file), libc::F_ADD_SEALS, seals) };
    assert_eq!(result, 0);
}

#[test]
fn memory_that_cannot_be_sealed_against_holes_is_refused_unless_allowed() {
    let connect = Message::Connect { name: "if0".into() };
    let mut bench = Bench::described(ServerConfig::default());
    add_seals(&bench.memory.file, libc::F_SEAL_SEAL);
    refuses(&mut bench, &connect, None, Reject::RegionUnsealable);
    let trusting = ServerConfig { allow_unsealed: true, ..ServerConfig::default() };
    let mut bench = Bench::described(trusting.clone());
    add_seals(&bench.memory.file, libc::F_SEAL_SEAL);
    bench.connect().unwrap();
    // Truncated between ADD_REGION and CONNECT: an error, no SIGBUS.
    let mut bench = Bench::new(trusting);
    bench.init();
    let unsealed = tempfile::tempfile().unwrap();
    unsealed.set_len(8192).unwrap();
    bench.say_and_hear_ack(&Message::AddRegion { index: 0, size: 8192 }, Some(unsealed.as_fd()));
    bench.ring(s2m());
    bench.ring(m2s());
    unsealed.set_len(4096).unwrap();
    refuses(&mut bench, &connect, None, Reject::RegionPopulate);
}

#[test]
fn memory_serves_one_connection_only_unless_left_unsealed() {
    let message = Message::AddRegion { index: 0, size: REGION_BYTES };
    let mut first = Bench::described(ServerConfig::default());
    first.connect().unwrap();
    let mut second = Bench::new(ServerConfig::default());
    second.init();
    refuses(&mut second, &message, Some(first.memory.file.as_fd()), Reject::RegionReadOnly);
    let trusting = ServerConfig { allow_unsealed: true, ..ServerConfig::default() };
    let mut first = Bench::described(trusting.clone());
    first.connect().unwrap();
    let mut second = Bench::new(trusting);
    second.init();
    second.say_and_hear_ack(&message, Some(first.memory.file.as_fd()));
}

/// As VPP with zero-copy: rings in one region and buffers in another, anywhere.
#[test]
fn rings_and_buffers_may_lie_anywhere() {
    let mut bench = Bench::new(ServerConfig::default());
    let pool = Memory::new(sys::sealed_memory(3 * REGION_BYTES).unwrap());
    let (ring_at, packet_at, buffer_at) = (2 * REGION_BYTES, 3 * REGION_BYTES - 61, 77);
    pool.write(ring_at, &0x03E3_1F20u32.to_ne_bytes());
    bench.init();
    bench.region();
    let message = Message::AddRegion { index: 1, size: 3 * REGION_BYTES };
    bench.say_and_hear_ack(&message, Some(pool.file.as_fd()));
    bench.ring(AddRing { region: 1, offset: ring_at as u32, ..s2m() });
    bench.ring(m2s());
    pool.write(packet_at, &[5; 61]);
    pool.set_slot(ring_at, 0, descriptor(0, 1, 61, packet_at as u32));
    bench.memory.set_slot(M2S_AT, 0, descriptor(0, 1, 100, buffer_at));
    let mut interface = bench.connect().unwrap();
    pool.set_head(ring_at, 1);
    bench.memory.set_head(M2S_AT, 1);
    let mut bytes = [0; 61];
    assert_eq!(interface.rx[0].pending(), Ok(1));
    assert_eq!(interface.rx[0].next_packet().unwrap().unwrap().copy_to(&mut bytes), Some(61));
    assert_eq!(bytes, [5; 61]);
    interface.tx[0].push(&[6; 100]).unwrap();
    interface.tx[0].flush().unwrap();
    assert_eq!(bench.memory.slot(M2S_AT, 0), descriptor(0, 1, 100, buffer_at));
    assert_eq!(pool.read::<100>(u64::from(buffer_at)), [6; 100]);
}

/// libmemif and VPP set SO_PASSCRED on their listeners, and what they accept inherits it.
#[test]
fn credentials_next_to_a_descriptor_are_no_harm() {
    let mut bench = Bench::new(ServerConfig::default());
    let on = 1i32;
    let (level, option) = (libc::SOL_SOCKET, libc::SO_PASSCRED);
    let socket = bench.server.raw_socket().unwrap();
    // SAFETY: the kernel reads the four bytes of `on`.
    let result = unsafe { libc::setsockopt(socket, level, option, (&raw const on).cast(), 4) };
    assert_eq!(result, 0);
    bench.init();
    bench.region();
    bench.ring(s2m());
    bench.ring(m2s());
    bench.connect().unwrap();
}

/// Its mapping would be longer than announced, and could not be replaced or unmapped by its announced length.
#[test]
fn a_region_that_ends_inside_a_huge_page_is_refused() {
    // SAFETY: the name is a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"huge".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_HUGETLB) };
    assert!(fd >= 0, "memfd_create with huge pages: {}", std::io::Error::last_os_error());
    // SAFETY: new, and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let page = sys::huge_page_bytes(&file).unwrap();
    assert!(page.is_power_of_two() && page > 4096);
    file.set_len(2 * page).unwrap();
    let config = ServerConfig { allow_unsealed: true, ..ServerConfig::default() };
    let mut offer = Offer::new(1, 1);
    let why = Reject::RegionHugePage { bytes: page + 8192, page };
    let fd = || Some(OwnedFd::from(file.try_clone().unwrap()));
    assert_eq!(offer.add_region(0, page + 8192, fd(), &config), Err(why));
    assert_eq!(offer.add_region(0, 2 * page, fd(), &config), Ok(()));
    assert_eq!(sys::huge_page_bytes(&sys::sealed_memory(4096).unwrap()), None);
}

#[test]
fn a_client_can_forbid_seals_and_only_a_trusting_server_takes_that() {
    let client = ClientConfig { forbid_seals: true, ring_log2: 5, ..ClientConfig::default() };
    let refused = crate::pair(client.clone(), ServerConfig::default()).unwrap_err().to_string();
    assert!(refused.contains("F_SEAL_FUTURE_WRITE"), "{refused}");
    let trusting = ServerConfig { allow_unsealed: true, ..ServerConfig::default() };
    assert!(crate::pair(client, trusting).is_ok());
    let file = sys::sealed_memory(4096).unwrap();
    sys::forbid_seals(&file).unwrap();
    assert_eq!(sys::seal_against_holes(&file).unwrap_err().raw_os_error(), Some(libc::EPERM));
    sys::empty(&file).unwrap();
}
