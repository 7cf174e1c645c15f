#!/bin/sh
# Packs what a guest of the NIC lab boots: FOLDER/kernel and FOLDER/initramfs.
#
#   pack.sh FOLDER PROGRAMS    FOLDER as fetch.sh left it; PROGRAMS is where peregrine, peregrine-pktgen and nic_lab lie
#
# In it: busybox, this machine's ip, ethtool, ping and what else the tests' fixtures and the doctor's commands run (and dash: busybox's
# shell takes its own programs before those), our programs, each with the shared libraries
# that it has here; and the modules below with those that they need, in an order in which they can be loaded.
set -eu
folder=$1 programs=$2
here=$(dirname "$0")
wanted='igb e1000e vmxnet3 virtio_pci virtio_net vxlan veth 8021q bridge xsk_diag'
tools='ip ethtool ping setpriv bridge dash taskset prlimit'

guest=$folder/guest
rm -rf "$guest"
mkdir -p "$guest/bin" "$guest/modules" "$guest/lab/deps" "$guest/proc" "$guest/sys" "$guest/dev" "$guest/run" "$guest/tmp"

# A program and the libraries that it names, where it looks for them.
add() {
    from=$1 to=$2
    cp -L "$from" "$guest/$to"
    ldd "$from" | grep -o '/[^ ]*' | while read -r library; do
        mkdir -p "$guest$(dirname "$library")"
        cp -L "$library" "$guest$library"
    done
}

for tool in $tools; do
    path=$(PATH="$PATH:/usr/sbin:/sbin" command -v "$tool") || {
        echo "nic-lab: error: no program '$tool': \`make setup\` installs it" >&2
        exit 1
    }
    add "$path" "bin/$tool"
done
cp "$folder/root/bin/busybox" "$guest/bin/busybox"
# The fixtures look for our programs where cargo puts them: beside the folder of the one that runs.
for program in peregrine peregrine-pktgen nic_lab; do
    strip -o "$folder/stripped" "$programs/$program"
    place=lab/$program
    [ "$program" != nic_lab ] || place=lab/deps/nic_lab
    add "$folder/stripped" "$place"
    chmod 755 "$guest/$place"
done
rm -f "$folder/stripped"
# Programs that are not ours: for a NIC that has one already, and to see what a driver does with one.
for program in foreign drop; do
    clang -O2 -g -target bpf -I"/usr/include/$(cc -dumpmachine)" -c "$here/$program.c" -o "$guest/lab/$program.o"
done

modules=$(echo "$folder"/root/usr/lib/modules/*)
: >"$guest/modules/order"
# load NAME: what it needs first, then itself. What is no file is in the kernel.
load() {
    pattern=$(echo "$1" | sed 's/[-_]/[-_]/g')
    grep -qx "$1" "$guest/modules/order" && return
    file=$(find "$modules" -name "$pattern.ko*" | head -n 1)
    [ -n "$file" ] || return 0
    case $file in
    *.xz) xz -dc "$file" ;;
    *.zst) zstd -dc "$file" ;;
    *) cat "$file" ;;
    esac >"$guest/modules/$1.ko"
    for needed in $(tr '\0' '\n' <"$guest/modules/$1.ko" | sed -n 's/^depends=//p' | tr ',' ' '); do
        (load "$needed")
    done
    echo "$1" >>"$guest/modules/order"
}
for name in $wanted; do
    load "$name"
done

cp "$here/init" "$guest/init"
chmod 755 "$guest/init"
cp "$modules/vmlinuz" "$folder/kernel"
(cd "$guest" && find . | bin/busybox cpio -o -H newc -R 0:0) >"$folder/initramfs"
