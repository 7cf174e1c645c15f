// The XDP program: which frames of the uplink go to AF_XDP, and which stay with the kernel.
//
// Steered are whole UDP packets to our VTEP address and port with a valid VNI that we serve. Everything else
// (ARP, SSH, other VNIs, fragments, which the kernel can reassemble) passes to the kernel untouched. Only the
// packet generator can ask for every frame, on an interface that it has for itself.
//
// What must hold: the program changes no byte, trusts no length beyond `data_end`, and counts every frame once,
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
	VERDICTS,
};

// Filled in before loading and constant after, so that the compiler's checks on them cost a compare, not a look-up.
const volatile __u32 local_address[4]; // as on the wire; IPv4 in the first
const volatile __u8 local_is_ipv6;
const volatile __u16 vxlan_port;
const volatile __u32 queue_count = 1;
const volatile __u8 take_everything;

// Receive queue → its AF_XDP socket. As many entries as there are queues (set at loading).
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
} sockets SEC(".maps");

// The VNIs that we serve; changed while running. Not preallocated: most hosts serve few of the 65,535 possible.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65535);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8);
} served_vnis SEC(".maps");

// [queue * VERDICTS + verdict], per CPU: no atomics, no shared cache line.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, VERDICTS);
	__type(key, __u32);
	__type(value, __u64);
} counters SEC(".maps");

struct vxlan_header {
	__be32 flags;
	__be32 vni; // in the upper 24 bits
};

static __always_inline enum verdict udp_is_ours(void *udp_start, void *end)
{
	struct udphdr *udp = udp_start;
	struct vxlan_header *vxlan = (void *)(udp + 1);
	__u32 vni;

	if ((void *)(udp + 1) > end)
		return MALFORMED;
	if (udp->dest != bpf_htons(vxlan_port))
		return OTHER_PORT;
	if ((void *)(vxlan + 1) > end)
		return MALFORMED;
	if (!(vxlan->flags & bpf_htonl(VXLAN_FLAG_VNI_VALID)))
		return NO_VNI_FLAG;
	vni = bpf_ntohl(vxlan->vni) >> 8;
	return bpf_map_lookup_elem(&served_vnis, &vni) ? STEERED : OTHER_VNI;
}

static __always_inline enum verdict ipv4_is_ours(struct iphdr *ip, void *end)
{
	if ((void *)(ip + 1) > end || ip->ihl < 5)
		return MALFORMED;
	if (ip->protocol != IPPROTO_UDP)
		return NOT_UDP;
	if (local_is_ipv6 || ip->daddr != local_address[0])
		return OTHER_ADDRESS;
	if (ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS_OR_OFFSET))
		return FRAGMENT;
	return udp_is_ours((void *)ip + ip->ihl * 4, end); // options are skipped, not refused
}

static __always_inline enum verdict ipv6_is_ours(struct ipv6hdr *ip, void *end)
{
	const __u32 *to = ip->daddr.in6_u.u6_addr32;

	if ((void *)(ip + 1) > end)
		return MALFORMED;
	// Whatever stands behind other extension headers is the kernel's to sort out.
	if (ip->nexthdr != IPPROTO_UDP && ip->nexthdr != IPPROTO_FRAGMENT)
		return NOT_UDP;
	if (!local_is_ipv6 || to[0] != local_address[0] || to[1] != local_address[1] ||
	    to[2] != local_address[2] || to[3] != local_address[3])
		return OTHER_ADDRESS;
	if (ip->nexthdr == IPPROTO_FRAGMENT)
		return FRAGMENT;
	return udp_is_ours(ip + 1, end);
}

static __always_inline enum verdict frame_is_ours(struct xdp_md *ctx)
{
	void *end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = (void *)(long)ctx->data;

	if (take_everything)
		return STEERED;
	if ((void *)(eth + 1) > end)
		return NOT_IP;
	if (eth->h_proto == bpf_htons(ETH_P_IP))
		return ipv4_is_ours((void *)(eth + 1), end);
	if (eth->h_proto == bpf_htons(ETH_P_IPV6))
		return ipv6_is_ours((void *)(eth + 1), end);
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

SEC("xdp")
int peregrine_steer(struct xdp_md *ctx)
{
	enum verdict verdict = frame_is_ours(ctx);
	int action = XDP_PASS;

	if (verdict == STEERED) {
		// Redirects if the queue has a socket and otherwise returns what we say: the kernel still gets it.
		action = bpf_redirect_map(&sockets, ctx->rx_queue_index, XDP_PASS);
		if (action != XDP_REDIRECT)
			verdict = NO_SOCKET;
	}
	count(ctx->rx_queue_index, verdict);
	return action;
}

// The kernel knows a few licence names only; this one says that the program may be used with it.
char LICENSE[] SEC("license") = "Dual MIT/GPL";
