// An XDP program that drops everything: what passes all the same, the driver has not shown it.

#include <linux/bpf.h>

#include <bpf/bpf_helpers.h>

SEC("xdp")
int drop_all(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char LICENSE[] SEC("license") = "Dual MIT/GPL";
