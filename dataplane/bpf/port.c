// The XDP program of ports: every frame that a container sends, on our end of its veth, goes to the AF_XDP socket of that port.
//
// One program and one map serve all ports of a process. A second program would be the same, and to attach one that the kernel has not
// attached anywhere costs it an RCU grace period (bpf_dispatcher_update), one that it has costs nothing.
//
// What must hold: frames go to their port's socket or are dropped. A port has no other use, so the kernel's stack gets none of them.
// src/xsk/port.rs loads it and fills the map.

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

#define PLACES (1 << 16) // as PLACES in src/xsk/port.rs

// The lowest bits of the interface's number → its socket. Who enters a socket makes sure that no other one has the place; the kernel, which
// compares the socket's interface and the frame's, would drop what goes to a wrong one.
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, PLACES);
	__type(key, __u32);
	__type(value, __u32);
} ports SEC(".maps");

SEC("xdp")
int peregrine_port(struct xdp_md *ctx)
{
	return bpf_redirect_map(&ports, ctx->ingress_ifindex & (PLACES - 1), XDP_DROP);
}

// As in steer.c.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
