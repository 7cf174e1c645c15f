# The steps that people and CI run alike. `make demo` is the one to begin with.

CARGO ?= cargo
# What needs root is run with sudo when we are not root.
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)

# How long `make fuzz` works at each of its targets.
FUZZ_SECONDS ?= 300

# And `make long` at its load.
LONG_SECONDS ?= 600

.PHONY: help setup setup-tests build demo test conformance long nic-lab fuzz lint bench report instructions-baseline clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /  \1: /p' Makefile

setup: ## install the Debian packages that are missing; name them elsewhere
	@./setup.sh

setup-tests: ## the same with what the tests need (Debian starts the service of one, Open vSwitch)
	@./setup.sh tests

build: setup ## the programs, optimised, in target/release
	$(CARGO) build --release --locked

demo: build ## Peregrine on real traffic in namespaces, beside the kernel's overlay
	$(SUDO) target/release/peregrine demo $(DEMO_ARGS)

test: setup-tests build ## every test, those that need root included
	@CARGO="$(CARGO)" tests/run.sh

conformance: setup-tests build ## hold Peregrine, Linux and Open vSwitch against the RFCs; writes docs/conformance.md (minutes)
	$(CARGO) build --locked --bins
	$(CARGO) test --locked -p peregrine-tests --test conformance --no-run
	CONFORMANCE_WRITE=1 $(CARGO) test --locked -p peregrine-tests --test conformance \
		--config 'target."cfg(unix)".runner = "$(if $(SUDO),sudo -E env PATH=$(PATH):/usr/sbin:/sbin,env)"' \
		-- --ignored --test-threads=1 page_is_what_the_suite_finds_now

long: setup-tests build ## Linux, Peregrine and Open vSwitch as three VTEPs of one network, tenants moving between them, each packet accounted for (LONG_SECONDS=600)
	$(CARGO) build --locked --bins
	LONG_SECONDS=$(LONG_SECONDS) $(CARGO) test --locked -p peregrine-tests --test three_vteps \
		--config 'target."cfg(unix)".runner = "$(if $(SUDO),sudo -E env PATH=$(PATH):/usr/sbin:/sbin,env)"' \
		-- --ignored --test-threads=1 --nocapture

nic-lab: build ## Peregrine on the drivers of igb, virtio-net, vmxnet3 and e1000e, in QEMU's guests, zero-copy where they have it (minutes; NIC_LAB_CACHE=DIR keeps the downloads)
	@NIC_LAB_CASES="$(NIC_LAB_CASES)" tests/nic-lab/run.sh $(NICS)

fuzz: setup ## look for inputs that break memif, 5 minutes each way (FUZZ_SECONDS=60: a minute)
	@CARGO="$(CARGO)" tests/fuzz.sh run $(FUZZ_SECONDS)

lint: setup ## formatting, clippy without a warning, documentation without a warning
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps --locked --document-private-items
	CARGO="$(CARGO)" tests/fuzz.sh lint

bench: build ## measurements, in figures that this machine gives
	target/release/peregrine-perf micro --quick
	target/release/peregrine-perf core --quick
	target/release/peregrine-perf pipeline --quick
	target/release/peregrine-perf skew --quick
	target/release/peregrine-perf placement-latency --quick
	$(SUDO) target/release/peregrine-perf priority --quick
	target/release/peregrine-perf fdb --quick
	target/release/peregrine-perf tenants --quick
	$(SUDO) target/release/peregrine-perf idle --quick
	$(SUDO) target/release/peregrine-perf memif --quick
	$(SUDO) target/release/peregrine-perf generator --quick
	$(SUDO) target/release/peregrine-perf kernel --quick

report: build ## every case measured and drawn as one page, target/report/report.html (an hour; REPORT_ARGS=--quick: minutes)
	$(SUDO) target/release/peregrine-perf report --out target/report $(REPORT_ARGS)

instructions-baseline: build ## write down what each piece of the packet path costs now, in instructions; `make test` compares
	target/release/peregrine-perf instructions --update perf/baseline/instructions.json

clean:
	$(CARGO) clean
