# Each target sets up what it needs, in .venv and .cache; only Debian packages are installed outside of here.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test test-windows test-vm demo-vm lint types fuzz asan wheels bench coverage clean

help:
	@echo "make demo     a host agent and a guest agent talk over a VM socket, on this machine"
	@echo "make test     the tests, on hybrid vsock here and on AF_VSOCK in User Mode Linux"
	@echo "make test-windows  the tests on AF_HYPERV: Windows' own Python, under Wine"
	@echo "make test-vm  the tests between a host and a guest: two kernels in QEMU"
	@echo "make demo-vm  the demo between these two kernels"
	@echo "make fuzz     bytes that nobody would send, to all that reads them: FUZZ_SECONDS=60 for each target"
	@echo "make wheels   the source and both kinds of wheels, in dist"
	@echo "make lint types bench coverage asan clean"

demo: .venv/.have-demo
	$(BIN)/aiohvsock demo

# OpenSSH's server in CI alone: Debian starts it, and it would stay.
test: .venv/.have-test
	@sh scripts/packages.sh user-mode-linux busybox-static socat ncat $${CI:+openssh-server}
	AIOHVSOCK_KIND=hybrid $(BIN)/python -m pytest
	sh scripts/test-uml.sh

test-windows: .venv/.have-test
	@sh scripts/packages.sh wine wine64
	sh scripts/test-windows.sh

test-vm: .venv/.have-test
	@sh scripts/packages.sh qemu-system-x86 busybox-static
	$(BIN)/python -m tests.testbeds.qemu -- $(BIN)/python -m pytest -p no:cacheprovider tests/testbeds/two_kernels

demo-vm: .venv/.have-demo
	@sh scripts/packages.sh qemu-system-x86 busybox-static
	$(BIN)/python -m tests.testbeds.qemu -- $(BIN)/python -m tests.testbeds.demo_vm

lint: .venv/.have-lint
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell README.md CHANGELOG.md docs aiohvsock tests examples benchmarks scripts

types: .venv/.have-types
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --python-version 3.12 --follow-imports silent --cache-dir .mypy_cache/windows \
		aiohvsock/platforms/windows.py aiohvsock/platforms/registry.py aiohvsock/hyperv aiohvsock/cli/doctor \
		aiohvsock/transports/proactor.py aiohvsock/transports/watching.py tests/testbeds/provider

FUZZ_SECONDS ?= 60

# What it finds stays in .cache/fuzz/findings, and fails the next run too, until it is mended.
fuzz: .venv/.have-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS)

# The compiled inner loops under AddressSanitizer and its leak checker.
asan: .venv/.have-build .venv/.have-test
	sh scripts/test-asan.sh

# The source, a wheel in pure Python and one for this Python and machine, each tried as installed.
wheels: .venv/.have-build
	sh scripts/wheels.sh

bench: .venv/.have-bench
	$(BIN)/python -m benchmarks

# Of the run on hybrid vsock; what only AF_VSOCK reaches is tested in User Mode Linux, and not counted here.
coverage: .venv/.have-test
	rm -rf .cache/coverage && mkdir -p .cache/coverage
	COVERAGE_FILE=.cache/coverage/data AIOHVSOCK_KIND=hybrid $(BIN)/coverage run -m pytest -q
	$(BIN)/coverage combine --data-file=.cache/coverage/data .cache/coverage
	$(BIN)/coverage report --data-file=.cache/coverage/data

.venv/bin/python:
	sh scripts/venv.sh $(PYTHON)

.venv/.have-demo: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e '.[uvloop,aiohttp]'
	@touch $@

.venv/.have-%: pyproject.toml | .venv/bin/python
	$(BIN)/pip install -q -e . --group $*
	@touch $@

clean:
	rm -rf .venv .cache dist
