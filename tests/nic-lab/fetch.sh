#!/bin/sh
# Fetches what the NIC lab boots, QEMU and a kernel, and unpacks it; nothing is installed, and nothing of this machine's package
# sources is changed.
#
#   fetch.sh FOLDER CACHE      packages to CACHE, unpacked to FOLDER/root, their versions in FOLDER/versions
#
# They come by apt from the Debian mirror that this machine is set up with, with lists and settings of their own in CACHE: QEMU from
# a suite whose version has `igb`, the kernel from unstable. Who has a full CACHE needs no network. Exit status 3: they cannot be had.
set -eu
folder=$1 cache=$2

cannot() {
    echo "nic-lab: cannot fetch QEMU and a kernel: $1" >&2
    exit 3
}

# Everything of apt's that would be written, or that would mix this machine's settings with ours.
apt() {
    program=$1
    shift
    "$program" -qq -o "Dir::State=$cache/apt" -o Dir::State::status=/var/lib/dpkg/status -o "Dir::Cache=$cache/apt" \
        -o "Dir::Etc::sourcelist=$cache/apt/sources.list" -o Dir::Etc::sourceparts=/dev/null \
        -o "Dir::Etc::preferences=$cache/apt/preferences" -o Dir::Etc::preferencesparts=/dev/null \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false \
        -o Acquire::Retries=2 -o Acquire::http::Timeout=30 \
        -o APT::Install-Recommends=false -o APT::Sandbox::User= -o Debug::NoLocking=1 "$@"
}

fetch() {
    command -v apt-get >/dev/null 2>&1 || cannot "this system has no apt"
    # shellcheck source=/dev/null
    codename=$(. /etc/os-release && echo "${VERSION_CODENAME:-}")
    # Says what it would read, and reads nothing.
    mirror=$(apt-get update --print-uris -o Debug::NoLocking=1 2>/dev/null |
        sed -n "s|^'\(.*\)/dists/$codename/\(In\)\{0,1\}Release'.*|\1|p" | head -n 1)
    [ -n "$mirror" ] || cannot "the package sources name no mirror for '$codename'"
    qemu_suite=$codename
    [ "$codename" != bookworm ] || qemu_suite=bookworm-backports
    keys=/usr/share/keyrings/debian-archive-keyring.gpg
    options="arch=amd64"
    [ ! -f "$keys" ] || options="$options signed-by=$keys"

    rm -rf "$cache/apt" "$cache/debs"
    mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial" "$cache/new"
    for suite in "$codename" "$qemu_suite" unstable; do
        echo "deb [$options] $mirror $suite main"
    done | uniq >"$cache/apt/sources.list"
    # Only what is asked for by name comes from there.
    printf 'Package: *\nPin: release n=sid\nPin-Priority: 1\n' >"$cache/apt/preferences"

    echo "nic-lab: fetching QEMU and a kernel"
    apt apt-get update --error-on=any || cannot "the mirror does not answer, or has no suites $qemu_suite and unstable"
    # What QEMU needs and this machine has not: it runs with the rest of it.
    apt apt-get install -y --reinstall --download-only -t "$qemu_suite" qemu-system-x86 seabios ||
        cannot "no package qemu-system-x86"
    kernel=$(apt apt-cache depends linux-image-amd64/unstable |
        sed -n 's/^ *Depends: linux-image-\([0-9].*\)$/\1/p' | head -n 1)
    [ -n "$kernel" ] || cannot "no package linux-image-amd64 in unstable"
    (cd "$cache/new" && apt apt-get download "linux-binary-$kernel/unstable" "linux-modules-$kernel/unstable" \
        "busybox-static/$codename") || cannot "no package of Linux $kernel, or no busybox-static"
    mv "$cache/apt/archives/"*.deb "$cache/new/"
    for package in "$cache/new/"*.deb; do
        dpkg-deb --show --showformat '${Package} ${Version}\n' "$package"
    done >"$cache/new/versions"
    rm -rf "$cache/apt"
    mv "$cache/new" "$cache/debs"
}

mkdir -p "$cache"
# One at a time; and what was fetched is what this machine lacks: another set of packages, another cache.
exec 9>"$cache/lock"
flock 9
rm -rf "$cache/new"
installed=$(dpkg-query --show --showformat '${Package} ${Version}\n' 2>/dev/null | cksum)
if [ ! -f "$cache/debs/versions" ] || [ "$(cat "$cache/debs/installed" 2>/dev/null)" != "$installed" ]; then
    fetch
    echo "$installed" >"$cache/debs/installed"
fi
if ! cmp -s "$cache/debs/versions" "$folder/versions"; then
    rm -rf "$folder/root" "$folder/versions"
    mkdir -p "$folder/root"
    for package in "$cache/debs/"*.deb; do
        dpkg-deb -x "$package" "$folder/root"
    done
    cp "$cache/debs/versions" "$folder/versions"
fi
grep -E '^(qemu-system-x86|linux-binary-.*|busybox-static) ' "$folder/versions" | sed 's/^/nic-lab: /'
