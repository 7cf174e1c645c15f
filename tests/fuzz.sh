#!/bin/sh
# Fuzzing of peregrine-memif, guided by coverage and under AddressSanitizer, on the stable toolchain: what cargo-fuzz does, which
# wants a nightly one.
#
#   tests/fuzz.sh run SECONDS            each target for so long, going on from what earlier runs have found
#   tests/fuzz.sh test                   each target for a moment, the same runs each time; part of `make test`
#   tests/fuzz.sh replay TARGET FILE     one input again
#   tests/fuzz.sh minimise TARGET FILE   a smaller input that ends as badly
#   tests/fuzz.sh lint                   formatting and clippy; part of `make lint`
#
# TARGET is messages or descriptors. What is found lies in target/fuzz: corpus/ and crashes/.
set -eu
: "${CARGO:=cargo}"
cd "$(dirname "$0")/.."
folder=dataplane/memif/fuzz
targets='messages descriptors'
host=$(rustc -vV | sed -n 's/^host: //p')
found=target/fuzz

# The sanitizer's runtime comes with the stable toolchain, only its switch is an unstable one. The rest is what cargo-fuzz sets.
export RUSTC_BOOTSTRAP=1
export RUSTFLAGS="--cfg fuzzing -Zsanitizer=address -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
-Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
-Cllvm-args=-sanitizer-coverage-trace-compares"
options="--locked --release --manifest-path $folder/Cargo.toml --target $host --target-dir target/asan"

build() {
    # shellcheck disable=SC2086 # lists of words
    $CARGO build $options
}

# fuzz TARGET CORPUS OPTION…: new inputs that reach something new go to CORPUS; the committed ones are read only.
fuzz() {
    target=$1 corpus=$2
    shift 2
    crashes=$found/crashes/$target
    mkdir -p "$corpus" "$crashes"
    log=$(mktemp)
    # An input of a few hundred bytes does all there is to do; one that takes 30 s has found an endless loop.
    if "target/asan/$host/release/$target" -max_len=400 -timeout=30 -verbosity=1 "-artifact_prefix=$crashes/" "$@" \
        "$corpus" "$folder/corpus/$target" >"$log" 2>&1; then
        echo "fuzz $target: $(sed -n 's/^Done \(.*\)/\1/p' "$log"), $(grep -o 'cov: [0-9]*' "$log" | tail -n 1)"
        echo "test result: ok. 1 passed; 0 failed"
        rm "$log"
        return 0
    fi
    grep -v -E '^#[0-9]+[[:space:]]+(NEW|REDUCE|pulse|RELOAD)' "$log" || true
    file=$(sed -n 's/.*Test unit written to //p' "$log" | tail -n 1)
    rm "$log"
    echo "fuzz $target: FAILED; the input is ${file:-not known}"
    [ -z "$file" ] || echo "fuzz $target: to see it again: tests/fuzz.sh replay $target $file"
    echo "test result: FAILED. 0 passed; 1 failed"
    return 1
}

one() {
    build
    case " $targets " in *" $1 "*) ;; *)
        echo "fuzz: error: no target $1: $targets" >&2
        exit 2
        ;;
    esac
}

usage() {
    sed -n 's/^#   \(tests.*\)/\1/p' "$0" >&2
    exit 2
}

bad=0
case ${1-} in
run)
    [ $# -eq 2 ] || usage
    build
    for target in $targets; do
        fuzz "$target" "$found/corpus/$target" "-max_total_time=$2" || bad=1
    done
    ;;
test)
    build
    new=$(mktemp -d)
    trap 'rm -rf "$new"' EXIT
    for target in $targets; do
        fuzz "$target" "$new/$target" -seed=1 -runs=30000 -max_total_time=15 || bad=1
    done
    ;;
replay)
    [ $# -eq 3 ] || usage
    one "$2"
    "target/asan/$host/release/$2" -timeout=30 "$3"
    ;;
minimise)
    [ $# -eq 3 ] || usage
    one "$2"
    "target/asan/$host/release/$2" -timeout=30 -minimize_crash=1 -runs=100000 "-exact_artifact_path=$3.small" "$3" || true
    echo "fuzz: the smallest that was found: $3.small"
    ;;
lint)
    $CARGO fmt --manifest-path $folder/Cargo.toml --check
    # shellcheck disable=SC2086 # lists of words
    $CARGO clippy $options -- -D warnings
    ;;
*) usage ;;
esac
exit $bad
