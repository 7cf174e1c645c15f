#!/bin/sh
# Runs the NIC lab: fetches QEMU and a kernel, packs what the guests boot, and runs the cases on each kind of NIC. `make nic-lab` builds
# our programs and calls it.
#
#   run.sh [KIND…]      igb, virtio-net, vmxnet3, e1000e, or machine: the doctor's checks of the machine; all of them if none is named
#
# NIC_LAB_CACHE     where downloads are kept (target/nic-lab/cache); with it full, no network is needed; emptied, newer ones are fetched
# NIC_LAB_CASES     only these cases, separated by commas
#
# Exit status: 0 if every case passed, 1 if one failed, 3 if the lab did not run because QEMU or a kernel cannot be had. The last line
# says the same.
set -u
cd "$(dirname "$0")/../.." || exit 1
folder=$PWD/target/nic-lab
cache=${NIC_LAB_CACHE:-$folder/cache}
mkdir -p "$folder" "$cache"
cache=$(cd "$cache" && pwd)
programs=${CARGO_TARGET_DIR:-target}/release

did_not_run() {
    echo "nic-lab: DID NOT RUN: $1"
    exit 3
}

[ "$(uname -m)" = x86_64 ] || did_not_run "it needs an x86-64 machine, whose programs its guests run"
tests/nic-lab/fetch.sh "$folder" "$cache"
case $? in
0) ;;
3) did_not_run "QEMU and a kernel cannot be had here (above: why)" ;;
*) exit 1 ;;
esac
tests/nic-lab/pack.sh "$folder" "$programs" || exit 1
exec "$programs/nic_lab" host "$folder" "$@"
