#!/bin/sh
# Runs every test and ends with one line that says how many ran.
# With NIC_LAB set the NIC lab (tests/nic-lab/run.sh) runs as well, and its cases are counted.
# First all that any user can run, then, as root, those marked `ignore = "needs root …"`, one at a time: they share
# the machine's cores.
set -u
: "${CARGO:=cargo}"
cd "$(dirname "$0")/.." || exit 1
log=$(mktemp)
trap 'rm -f "$log"' EXIT

run() {
    echo "tests: $*"
    { "$@" 2>&1 || echo "run failed: $*"; } | tee -a "$log"
}

run $CARGO test --workspace --locked --no-fail-fast
# memif, whose memory others write, once more under AddressSanitizer: its runtime is part of the stable toolchain, only the
# switch is not. Then a moment of fuzzing.
host=$(rustc -vV | sed -n 's/^host: //p')
# It leaves SIGBUS alone, which some of the tests are about.
run env RUSTC_BOOTSTRAP=1 ASAN_OPTIONS=handle_sigbus=0 RUSTFLAGS=-Zsanitizer=address $CARGO test --locked --no-fail-fast -p peregrine-memif --lib \
    --test data_path --test connections --target "$host" --target-dir target/asan
run tests/fuzz.sh test
# The packet path, piece by piece, in the program that `make build` made: it allocates nothing, and costs no more instructions
# than the baseline says.
run timeout 120 target/release/peregrine-perf instructions --compare perf/baseline/instructions.json
# cargo itself stays with the user; only the test programs run as root.
if [ "$(id -u)" -ne 0 ]; then
    triple=$(echo "$host" | tr 'a-z-' 'A-Z_')
    export "CARGO_TARGET_${triple}_RUNNER=sudo -E env PATH=$PATH:/usr/sbin:/sbin"
fi
run $CARGO test --workspace --locked --no-fail-fast -- --ignored --test-threads=1
RUSTFLAGS="--cfg loom" run $CARGO test --locked --release -p peregrine-memif -p peregrine-dataplane --test loom --target-dir target/loom
RUSTFLAGS="--cfg loom" run $CARGO test --locked --release -p peregrine-dataplane --lib --target-dir target/loom ::loom_tests
# The guard that keeps flows in order while they move, left out: then the test must see packets overtaken.
run $CARGO test --locked -p peregrine-dataplane --features unguarded --test moves

# Real drivers, in guests. Where QEMU and a kernel cannot be had that is no failure, but it is said where nobody overlooks it.
lab=off
if [ -n "${NIC_LAB:-}" ]; then
    { tests/nic-lab/run.sh 2>&1; echo "nic-lab status: $?"; } | tee -a "$log"
    lab=$(sed -n 's/^nic-lab status: //p' "$log")
    case $lab in
    0 | 3) ;;
    *) echo "run failed: tests/nic-lab/run.sh" | tee -a "$log" ;;
    esac
fi

# What tests leave out on this machine they say by themselves.
grep '^left out: ' "$log" | sort -u | sed 's/^/tests: /'
failed_runs=$(grep -c '^run failed: ' "$log")
sum() { sed -n 's/^test result: .* \([0-9][0-9]*\) '"$1"'.*/\1/p' "$log" | awk '{ n += $1 } END { print n + 0 }'; }
passed=$(sum passed)
failed=$(sum failed)
lab_sum() { sed -n 's/^nic-lab: \([0-9]*\) passed, \([0-9]*\) failed, in .*/'"\\$1"'/p' "$log" | awk '{ n += $1 } END { print n + 0 }'; }
passed=$((passed + $(lab_sum 1)))
failed=$((failed + $(lab_sum 2)))
[ "$lab" != 3 ] || echo "tests: WARNING: the NIC lab DID NOT RUN: no real driver was tested"
# A run that broke off before its tests counts as a failure too.
[ "$failed_runs" -gt 0 ] && [ "$failed" -eq 0 ] && failed=$failed_runs
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$failed_runs" -eq 0 ] && [ "$passed" -gt 0 ]
