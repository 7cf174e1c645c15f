"""Builds frames with scapy for the conformance suite: an expression a line in, the frame in hexadecimal a line out.

Started once by `scapy.rs`. What the expressions say is scapy's own language, with the names below for the stations of the
suite: a frame to be received is the work of another implementation than the one that is tested.
"""

import sys
import logging

logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
from scapy.all import *  # noqa: E402,F403
from scapy.contrib.mpls import MPLS  # noqa: E402,F401
from scapy.layers.ipsec import ESP, AH  # noqa: E402,F401
from scapy.layers.sctp import SCTP, SCTPChunkInit  # noqa: E402,F401
from scapy.layers.vxlan import VXLAN  # noqa: E402

# The ends of the wire.
FAR, NEAR = "02:00:00:00:0f:02", "02:00:00:00:0f:01"
# The tenant, and a station behind the first remote.
TENANT, STATION = "02:00:00:00:42:01", "02:00:00:00:42:02"
T4, S4 = "10.42.0.1", "10.42.0.2"
T6, S6 = "fd42::1", "fd42::2"
ALL = "ff:ff:ff:ff:ff:ff"

inn = Ether(src=STATION, dst=TENANT)
out = Ether(src=TENANT, dst=STATION)


def in4(**ip):
    return inn / IP(**{"src": S4, "dst": T4, **ip})


def in6(**ip):
    return inn / IPv6(**{"src": S6, "dst": T6, **ip})


def out4(**ip):
    return out / IP(**{"src": T4, "dst": S4, **ip})


def out6(**ip):
    return out / IPv6(**{"src": T6, "dst": S6, **ip})


def u(n=0, size=32):
    """A datagram of a flow with this number."""
    return UDP(sport=20000 + n, dport=9000) / bytes(i & 255 for i in range(size))


def outer(vni, src, dst, dport=4789, vlan=None, sport=50000, chksum=None, length=None, flags=8, ip=None, tos=0, ttl=64, **vxlan):
    """What stands before an inner frame: to be followed by it."""
    eth = Ether(src=FAR, dst=NEAR)
    if vlan is not None:
        eth = eth / Dot1Q(vlan=vlan)
    if ":" in src:
        net = IPv6(**{"src": src, "dst": dst, "tc": tos, "hlim": ttl, **(ip or {})})
    else:
        net = IP(**{"src": src, "dst": dst, "tos": tos, "ttl": ttl, "id": 0, "flags": "DF", **(ip or {})})
        chksum = 0 if chksum is None else chksum
    udp = UDP(sport=sport, dport=dport, len=length)
    if chksum is not None and chksum != "right":
        udp.chksum = chksum
    return eth / net / udp / VXLAN(vni=vni, flags=flags, **vxlan)


for line in sys.stdin:
    try:
        print(bytes(eval(line)).hex(), flush=True)  # the suite's own expressions
    except Exception as error:
        print("error: " + repr(error), flush=True)
