#!/bin/sh
# Installs what building and the demo need, as far as it is missing; with the argument `tests` what the tests need, too.
# On Debian and its children with apt (with sudo where we are not root); elsewhere it names the packages and stops.
set -eu

# command or file that shows it is there (a pattern may stand for the architecture) : Debian package
wanted='
cc:gcc
c++:g++
make:make
m4:m4
pkg-config:pkg-config
clang:clang
/usr/include/bpf/bpf_helpers.h:libbpf-dev
/usr/include/libelf.h:libelf-dev
/usr/include/zlib.h:zlib1g-dev
ip:iproute2
ping:iputils-ping
ethtool:ethtool
sysctl:procps
nice:coreutils
setpriv:util-linux
nsenter:util-linux
taskset:util-linux
iperf3:iperf3
curl:curl
xz:xz-utils
python3:python3
dpdk-testpmd:dpdk-dev
/usr/lib/*/librte_net_memif.so.*:librte-net-memif23
/usr/lib/*/librte_mempool_ring.so.*:librte-mempool-ring23
valgrind:valgrind
'
# Debian starts Open vSwitch's service when it is installed: nobody gets that who only builds.
for_tests='
tshark:tshark
/usr/lib/python3/dist-packages/scapy/__init__.py:python3-scapy
ovs-vswitchd:openvswitch-switch
'
[ "${1:-}" != tests ] || wanted="$wanted$for_tests"

there() {
    case $1 in
    # shellcheck disable=SC2086 # a pattern, to be expanded
    /*) ls $1 >/dev/null 2>&1 ;;
    *) command -v "$1" >/dev/null 2>&1 || [ -x "/usr/sbin/$1" ] || [ -x "/sbin/$1" ] ;;
    esac
}

missing=
for entry in $wanted; do
    there "${entry%%:*}" || missing="$missing ${entry##*:}"
done

if [ -n "$missing" ]; then
    if ! command -v apt-get >/dev/null 2>&1; then
        echo "setup: error: missing:$missing (Debian's names): install them with this system's package manager" >&2
        exit 1
    fi
    sudo=
    if [ "$(id -u)" -ne 0 ]; then
        command -v sudo >/dev/null 2>&1 || {
            echo "setup: error: missing:$missing, and neither root nor sudo to install them: run this as root" >&2
            exit 1
        }
        sudo=sudo
    fi
    echo "setup: installing$missing"
    $sudo apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
fi

if ! command -v cargo >/dev/null 2>&1; then
    echo "setup: error: cargo not found: install Rust 1.91 or newer with rustup, then run this again" >&2
    exit 1
fi
have=$(rustc --version | sed 's/^rustc \([0-9]*\.[0-9]*\).*/\1/')
if [ "$(printf '1.91\n%s\n' "$have" | sort -V | head -n 1)" != 1.91 ]; then
    echo "setup: error: Rust $have is too old: 1.91 or newer is needed (rustup update)" >&2
    exit 1
fi
for tool in cargo-fmt cargo-clippy; do
    command -v "$tool" >/dev/null 2>&1 || {
        echo "setup: error: $tool not found: rustup component add rustfmt clippy" >&2
        exit 1
    }
done
