//! Frames from AF_XDP sockets. Of VXLAN the XDP program of the dataplane steers those of one network to us, the kernel keeps
//! all else, and what the sink sees is the inner frames; or it steers every frame to us, and the sink sees them as they are.
//!
//! The outer UDP checksum is not looked at: the kernel's vxlan device sends one and Peregrine none, and neither half of a
//! comparison shall pay for it here.

use std::time::Duration;

use peregrine_dataplane::frame::{Burst, FramePool};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::{QueueId, Vni};
use peregrine_dataplane::wire::outer::{self, Vtep};
use peregrine_dataplane::wire::vxlan::VxlanHeader;
use peregrine_dataplane::xsk::{self, Steering, Uplink, UplinkInfo, XskConfig, XskSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{Port, PortStatistics, Source, XdpStatistics};
use crate::clock::now_ns;
use crate::error::Error;
use crate::limits::{Wait, is_nothing};
use crate::trailer::Trailer;

/// What is received, and where.
#[derive(Clone, Debug)]
pub struct XdpSettings {
    /// Name of the interface.
    pub interface: String,
    /// Its queues.
    pub queues: Vec<QueueId>,
    /// How the sockets are bound.
    pub mode: XdpMode,
    /// Which frames are taken.
    pub taken: Taken,
}

/// Which frames are taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Taken {
    /// VXLAN frames to us, of this network.
    Vxlan(Vtep, Vni),
    /// All of them; the kernel gets none.
    Everything,
}

/// Open sockets, one for each queue. Dropped, they detach the program.
#[derive(Debug)]
pub struct XdpPort {
    // First, so that they are closed before their memory goes.
    sockets: Vec<XskSocket>,
    pool: FramePool,
    uplink: Uplink,
    taken: Taken,
    burst: Burst,
    /// The socket that is looked at first.
    turn: usize,
}

impl XdpPort {
    /// Opens the sockets and attaches the XDP program.
    ///
    /// # Errors
    /// Whatever [`xsk::open`] refuses.
    pub fn open(settings: &XdpSettings) -> Result<XdpPort, Error> {
        let mut config = XskConfig::new(&settings.interface, settings.mode);
        if xsk::interface(&settings.interface)?.mtu > 1700 {
            config.chunk_size = 4096;
        }
        match settings.taken {
            Taken::Everything => config.everything = true,
            Taken::Vxlan(vtep, vni) => {
                config.steering = Some(Steering::new(vtep.address.into(), vtep.port, &[vni]));
            }
        }
        let (uplink, ports) = xsk::open(&config, std::slice::from_ref(&settings.queues))?;
        let Some(port) = ports.into_iter().next() else {
            return Err(Error::Arguments(format!("no socket on {}", settings.interface)));
        };
        Ok(XdpPort {
            sockets: port.sockets,
            pool: port.pool,
            uplink,
            taken: settings.taken,
            burst: Burst::new(),
            turn: 0,
        })
    }
}

/// The inner frame of a VXLAN frame of one of our networks to us.
#[inline]
pub fn inner<'a>(frame: &'a [u8], vtep: Vtep, vnis: &[Vni]) -> Option<&'a [u8]> {
    let outer = outer::parse_unsummed(frame, vtep).ok()?;
    let payload = frame.get(outer.header_len..)?.get(..outer.payload_len)?;
    let (vxlan, inner) = VxlanHeader::split(payload).ok()?;
    vnis.contains(&vxlan.vni()).then_some(inner)
}

impl Port for XdpPort {
    const HEADERS_TAKEN_OFF: usize = 0;

    #[inline]
    fn trailer(packet: &[u8]) -> Option<Trailer> {
        Trailer::of_frame(packet)
    }

    fn rest(&mut self, wait: Wait, longest_ns: u64) -> Result<(), Error> {
        let longest = Duration::from_nanos(longest_ns);
        match wait {
            Wait::Poll => std::hint::spin_loop(),
            Wait::Yield => std::thread::yield_now(),
            Wait::Interrupt => {
                let mut sockets: Vec<_> =
                    self.sockets.iter().map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
                let timeout = Timespec::try_from(longest).ok();
                if let Err(why) = poll(&mut sockets, timeout.as_ref()).map_err(std::io::Error::from)
                    && !is_nothing(&why)
                {
                    return Err(Error::system("waiting for the AF_XDP sockets")(why));
                }
            }
            Wait::Pause(pause) => std::thread::sleep(pause.min(longest)),
        }
        Ok(())
    }

    fn gone(&mut self) -> Option<String> {
        let UplinkInfo { interface, ifindex, .. } = self.uplink.info();
        xsk::unusable(interface, *ifindex)
    }

    fn statistics(&self) -> PortStatistics {
        PortStatistics::Xdp(Box::new(XdpStatistics {
            uplink: self.uplink.info().clone(),
            kernel: self.uplink.sockets().unwrap_or_default(),
        }))
    }
}

impl Source for XdpPort {
    /// Where VXLAN is taken, a frame that is none of ours is given as an empty packet, which is then counted as not ours.
    #[inline]
    fn receive(&mut self, _wait: Wait, mut each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        for _ in 0..self.sockets.len() {
            let at = self.turn;
            self.turn = if at + 1 < self.sockets.len() { at + 1 } else { 0 };
            let Some(socket) = self.sockets.get_mut(at) else { continue };
            let count = socket.receive(&mut self.pool, &mut self.burst);
            let now = now_ns();
            for frame in self.burst.drain() {
                each(
                    now,
                    match self.taken {
                        Taken::Vxlan(vtep, vni) => inner(frame.bytes(), vtep, &[vni]).unwrap_or_default(),
                        Taken::Everything => frame.bytes(),
                    },
                );
                self.pool.put(frame);
            }
            socket.refill(&mut self.pool);
            socket.kick(now);
            if count > 0 {
                return Ok(count);
            }
        }
        Ok(0)
    }
}
