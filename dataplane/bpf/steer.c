// The XDP program: which frames of the uplink go to AF_XDP, and which stay with the kernel.
//
// Steered are whole UDP packets to one of our VTEP addresses, over IPv4 or IPv6, with a valid VNI that we serve and to that one's port;
// untagged ones, or, where the underlay is a VLAN, only those with its tag. Everything else
// (ARP, SSH, other VNIs, fragments, which the kernel can reassemble) passes to the kernel untouched. Only the
// packet generator can ask for every frame, on an interface that it has for itself.
//
// Early classes: a queue may have a second socket, for urgent frames. Which frames these are say the maps `early_*`:
// see above them. What they do not say goes to the first socket.
//
// What must hold: the program changes no byte, reads nothing beyond `data_end`, of an inner frame nothing beyond the outer
// headers' lengths, and counts every frame once,
// under its receive queue. src/xsk/program.rs loads it, fills its constants and maps, and reads the counters;
// `enum verdict` and the names there have the same order.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/udp.h>

#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define IP_MORE_FRAGMENTS_OR_OFFSET 0x3fff
#define VXLAN_FLAG_VNI_VALID 0x08000000

enum verdict {
	STEERED,
	NO_SOCKET,
	NOT_IP,
	MALFORMED,
	NOT_UDP,
	OTHER_ADDRESS,
	FRAGMENT,
	OTHER_PORT,
	NO_VNI_FLAG,
	OTHER_VNI,
	URGENT, // steered, too, to the second socket
	OTHER_VLAN,
	VERDICTS,
};

// Filled in before loading and constant after, so that the compiler's checks on them cost a compare, not a look-up.
#define LOCALS_MAX 8
const volatile __u32 ipv4_locals[LOCALS_MAX]; // as on the wire
const volatile __u32 ipv4_count;
const volatile __u32 ipv6_locals[LOCALS_MAX * 4];
const volatile __u32 ipv6_count;
const volatile __u16 vlan; // its number; 0: frames without a tag
const volatile __u16 vxlan_port; // of most networks
const volatile __u32 queue_count = 1;
const volatile __u8 take_everything;
const volatile __u8 has_early; // the queues have second sockets; without them nothing of it costs anything

// Receive queue * 2 → its AF_XDP socket; and * 2 + 1 → that for urgent frames. Twice as many entries as there are queues
// (set at loading).
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

// The VNIs that we serve, each with its UDP port; changed while running. Not preallocated: most hosts serve few of the 65,535 possible.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65535);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u16);
} served_vnis SEC(".maps");

// [queue * VERDICTS + verdict], per CPU: no atomics, no shared cache line.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

// Early classes. A frame is judged by one `early_rule`: that of its VNI, or the one for all networks if its VNI has none.
// It is urgent if
// - the rule says EARLY_EVERYTHING, or
// - its inner packet is IPv4 or IPv6 with a DSCP whose bit is set in `dscps`, or
// - the same with TCP, UDP or SCTP next to the IP header (behind IPv6 extension headers, and in fragments, whole first
//   ones too, there are no ports), and `early_ports` has its protocol with its source or destination port, on that side:
//   under its VNI if the rule says EARLY_OWN_PORTS, under EARLY_ALL_NETWORKS if it says EARLY_ALL_PORTS.
// Up to two VLAN tags in the inner frame are skipped. What is cut off is not urgent, and what stands behind the outer UDP
// datagram (padding, or worse) is no part of the inner packet: the stages cut it off as well.
//
// Everything stands here twice, once for each generation, and `early_generation` says which one holds. Control changes the
// other one and then that number: a frame is judged by the old rules or by the new ones, never by half of each. (Control
// empties the old ones at its next change only, so they outlive the frames that are just being judged by them.)
//
// The cost is bounded: two look-ups in arrays, one in `early_networks`, four in `early_ports`, and no loop.
enum early_flags {
	EARLY_EVERYTHING = 1,
	EARLY_OWN_PORTS = 2,
	EARLY_ALL_PORTS = 4,
	EARLY_NETWORKS = 8, // in the rule for all: `early_networks` has some
};

enum early_sides {
	EARLY_SOURCE = 1,
	EARLY_DESTINATION = 2,
};

#define EARLY_ALL_NETWORKS (1 << 24) // no VNI

struct early_rule {
	__u64 dscps;
	__u64 flags;
};

// [0]: the generation that holds, 0 or 1.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} early_generation SEC(".maps");

// [generation]: the rule for all networks that have none of their own.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct early_rule);
} early_all SEC(".maps");

// generation << 24 | VNI → its rule. Room for both generations is made at loading, if it is needed.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, struct early_rule);
} early_networks SEC(".maps");

// generation << 56 | VNI or EARLY_ALL_NETWORKS << 24 | protocol << 16 | port → sides. Room as above.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u64);
	__type(value, __u8);
} early_ports SEC(".maps");

struct vxlan_header {
	__be32 flags;
	__be32 vni; // in the upper 24 bits
};

struct vlan_header {
	__be16 tag;
	__be16 protocol; // of what follows
};

// What rules ask of an inner packet.
struct inner {
	__u8 dscp;
	__u8 protocol;
	__be16 *ports; // source and destination; NULL if there are none
};

// `left`: bytes of the inner frame, of which some may lie beyond `end`. Both are asked before each header: the verifier
// wants `end`, and cannot be given a nearer one.
static __always_inline int read_inner(struct inner *inner, void *start, void *end, __u32 left)
{
	struct ethhdr *eth = start;
	void *at = eth + 1;
	void *segment = NULL;
	__be16 type;

	if (at > end || left < sizeof(*eth))
		return 0;
	left -= sizeof(*eth);
	type = eth->h_proto;
#pragma unroll
	for (int tags = 0; tags < 2; tags++) {
		struct vlan_header *vlan = at;

		if (type != bpf_htons(ETH_P_8021Q) && type != bpf_htons(ETH_P_8021AD))
			break;
		if ((void *)(vlan + 1) > end || left < sizeof(*vlan))
			return 0;
		left -= sizeof(*vlan);
		type = vlan->protocol;
		at = vlan + 1;
	}
	if (type == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = at;

		if ((void *)(ip + 1) > end || left < sizeof(*ip) || ip->version != 4 || ip->ihl < 5)
			return 0;
		inner->dscp = ip->tos >> 2;
		inner->protocol = ip->protocol;
		if (!(ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET))) {
			__u32 header = ip->ihl * 4;

			segment = at + header;
			if (segment > end || left < header)
				return 0; // cut off: for the rules it is no IP packet
			left -= header;
		}
	} else if (type == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *ip = at;

		if ((void *)(ip + 1) > end || left < sizeof(*ip) || ip->version != 6)
			return 0;
		left -= sizeof(*ip);
		inner->dscp = ip->priority << 2 | ip->flow_lbl[0] >> 6;
		inner->protocol = ip->nexthdr;
		segment = ip + 1;
	} else {
		return 0;
	}
	inner->ports = NULL;
	if (segment && segment + 4 <= end && left >= 4 &&
	    (inner->protocol == IPPROTO_TCP || inner->protocol == IPPROTO_UDP || inner->protocol == IPPROTO_SCTP))
		inner->ports = segment;
	return 1;
}

static __always_inline int has_port(__u64 scope, __u8 protocol, __be16 port, __u8 side)
{
	__u64 key = scope | (__u64)protocol << 16 | bpf_ntohs(port);
	__u8 *sides = bpf_map_lookup_elem(&early_ports, &key);

	return sides && (*sides & side);
}

static __always_inline int has_ports(__u64 scope, const struct inner *inner)
{
	return has_port(scope, inner->protocol, inner->ports[0], EARLY_SOURCE) ||
	       has_port(scope, inner->protocol, inner->ports[1], EARLY_DESTINATION);
}

static __always_inline int is_urgent(__u32 vni, void *start, void *end, __u32 length)
{
	__u32 key = 0;
	__u32 *active = bpf_map_lookup_elem(&early_generation, &key);
	struct early_rule *found;
	struct early_rule rule;
	struct inner inner;
	__u32 generation;
	__u64 scope;

	if (!active)
		return 0;
	generation = *active & 1;
	found = bpf_map_lookup_elem(&early_all, &generation);
	if (!found)
		return 0;
	rule = *found;
	if (rule.flags & EARLY_NETWORKS) {
		key = generation << 24 | vni;
		found = bpf_map_lookup_elem(&early_networks, &key);
		if (found)
			rule = *found;
	}
	if (rule.flags & EARLY_EVERYTHING)
		return 1;
	if (!rule.dscps && !(rule.flags & (EARLY_OWN_PORTS | EARLY_ALL_PORTS)))
		return 0;
	if (!read_inner(&inner, start, end, length))
		return 0;
	if (rule.dscps >> (inner.dscp & 63) & 1)
		return 1;
	if (!inner.ports)
		return 0;
	scope = (__u64)generation << 56;
	if ((rule.flags & EARLY_OWN_PORTS) && has_ports(scope | (__u64)vni << 24, &inner))
		return 1;
	return (rule.flags & EARLY_ALL_PORTS) && has_ports(scope | (__u64)EARLY_ALL_NETWORKS << 24, &inner);
}

// Bytes of the inner frame, as the outer headers say it: UDP within the `room` of the IP packet.
static __always_inline __u32 inner_length(const struct udphdr *udp, __u32 room)
{
	__u32 headers = sizeof(struct udphdr) + sizeof(struct vxlan_header);
	__u32 length = bpf_ntohs(udp->len);

	if (length > room)
		length = room;
	return length < headers ? 0 : length - headers;
}

// `room`: bytes of the IP packet behind its header, as that says.
static __always_inline enum verdict udp_is_ours(void *udp_start, void *end, __u32 room)
{
	struct udphdr *udp = udp_start;
	struct vxlan_header *vxlan = (void *)(udp + 1);
	__u16 *port;
	int is_usual;
	__u32 vni;

	if ((void *)(udp + 1) > end)
		return MALFORMED;
	// To another port it may be anything: it is ours only if what stands in the place of a VNI has that port.
	is_usual = udp->dest == bpf_htons(vxlan_port);
	if ((void *)(vxlan + 1) > end)
		return is_usual ? MALFORMED : OTHER_PORT;
	if (!(vxlan->flags & bpf_htonl(VXLAN_FLAG_VNI_VALID)))
		return is_usual ? NO_VNI_FLAG : OTHER_PORT;
	vni = bpf_ntohl(vxlan->vni) >> 8;
	port = bpf_map_lookup_elem(&served_vnis, &vni);
	if (!port)
		return is_usual ? OTHER_VNI : OTHER_PORT;
	if (udp->dest != bpf_htons(*port))
		return OTHER_PORT;
	return has_early && is_urgent(vni, vxlan + 1, end, inner_length(udp, room)) ? URGENT : STEERED;
}

static __always_inline int is_local_ipv4(__u32 address)
{
#pragma unroll
	for (__u32 at = 0; at < LOCALS_MAX; at++)
		if (at < ipv4_count && address == ipv4_locals[at])
			return 1;
	return 0;
}

static __always_inline int is_local_ipv6(const __u32 *address)
{
#pragma unroll
	for (__u32 at = 0; at < LOCALS_MAX; at++)
		if (at < ipv6_count && address[0] == ipv6_locals[4 * at] && address[1] == ipv6_locals[4 * at + 1] &&
		    address[2] == ipv6_locals[4 * at + 2] && address[3] == ipv6_locals[4 * at + 3])
			return 1;
	return 0;
}

static __always_inline enum verdict ipv4_is_ours(struct iphdr *ip, void *end)
{
	__u32 header, length;

	if ((void *)(ip + 1) > end || ip->ihl < 5)
		return MALFORMED;
	if (ip->protocol != IPPROTO_UDP)
		return NOT_UDP;
	if (!is_local_ipv4(ip->daddr))
		return OTHER_ADDRESS;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET))
		return FRAGMENT;
	header = ip->ihl * 4; // options are skipped, not refused
	length = bpf_ntohs(ip->tot_len);
	return udp_is_ours((void *)ip + header, end, length < header ? 0 : length - header);
}

static __always_inline enum verdict ipv6_is_ours(struct ipv6hdr *ip, void *end)
{
	if ((void *)(ip + 1) > end)
		return MALFORMED;
	// Whatever stands behind other extension headers is the kernel's to sort out.
	if (ip->nexthdr != IPPROTO_UDP && ip->nexthdr != IPPROTO_FRAGMENT)
		return NOT_UDP;
	if (!is_local_ipv6(ip->daddr.in6_u.u6_addr32))
		return OTHER_ADDRESS;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return FRAGMENT;
	return udp_is_ours(ip + 1, end, bpf_ntohs(ip->payload_len));
}

static __always_inline enum verdict frame_is_ours(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;
	void *packet = eth + 1;
	__be16 type;

	if (take_everything)
		return STEERED;
	if (packet > end)
		return NOT_IP;
	type = eth->h_proto;
	if (vlan) {
		struct vlan_header *tag = packet;

		if (type != bpf_htons(ETH_P_8021Q) || (void *)(tag + 1) > end || (bpf_ntohs(tag->tag) & 0xfff) != vlan)
			return OTHER_VLAN;
		type = tag->protocol;
		packet = tag + 1;
	}
	if (type == bpf_htons(ETH_P_IP))
		return ipv4_is_ours(packet, end);
	if (type == bpf_htons(ETH_P_IPV6))
		return ipv6_is_ours(packet, end);
	return NOT_IP;
}

static __always_inline void count(__u32 queue, enum verdict verdict)
{
	// The channel count may grow while we run: queues that came later share the last place.
	__u32 place = (queue < queue_count ? queue : queue_count - 1) * VERDICTS + verdict;
	__u64 *counter = bpf_map_lookup_elem(&counters, &place);

	if (counter)
		(*counter)++;
}

static __always_inline int steer(struct xdp_md *ctx)
{
	enum verdict verdict = frame_is_ours(ctx);
	int action = XDP_PASS;

	if (verdict == STEERED || verdict == URGENT) {
		// Redirects if the queue has a socket and otherwise returns what we say: the kernel still gets it.
		action = bpf_redirect_map(&sockets, ctx->rx_queue_index * 2 + (verdict == URGENT), XDP_PASS);
		if (action != XDP_REDIRECT)
			verdict = NO_SOCKET;
	}
	count(ctx->rx_queue_index, verdict);
	return action;
}

SEC("xdp")
int peregrine_steer(struct xdp_md *ctx)
{
	return steer(ctx);
}

// The same for packets in several fragments, where packets may be longer than a chunk: a driver refuses the other one for a large
// MTU. All that is looked at is in the first fragment.
SEC("xdp.frags")
int peregrine_steer_frags(struct xdp_md *ctx)
{
	return steer(ctx);
}

// The kernel knows a few licence names only; this one says that the program may be used with it.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
