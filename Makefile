# godwit: the targets that README and CONTRIBUTING name. Each one installs or
# fetches what it needs by scripts/setup, which says what it does; caches are
# outside the tree.

SHELL := /bin/bash
export PATH := $(shell scripts/setup path)
export CGO_ENABLED ?= 0

VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
GOFLAGS_BUILD := -trimpath -ldflags '-s -w -X github.com/godwit-vmm/godwit/internal/version.Version=$(VERSION)'

.PHONY: all build guest run test test-faults bench lint fuzz clean
all: build

build:
	@scripts/setup build
	go build $(GOFLAGS_BUILD) -o bin/ ./cmd/...
	@scripts/settle bin/*

# guest fills the cache with a kernel and an initramfs.
guest: build
	@scripts/setup guest
	bin/godwit guest kernel
	bin/godwit guest initramfs

# run boots the guest, on hardware KVM where there is one, else in the lab.
# make run ARGS='--cpus 2 -- uname -a'
run: guest
	@scripts/setup run
	@bin/godwit-lab auto -- boot $(ARGS)

# A program with the race detector sleeps for a second before it ends, unless told not to:
# tests run hundreds.
test: guest
	@scripts/setup test
	GORACE=atexit_sleep_ms=0 GODWIT_TEST_KERNEL="$$(bin/godwit guest kernel)" CGO_ENABLED=1 go test -race -timeout 40m ./...

# test-faults runs all cells of the fault matrix of live migration, of which make test runs
# a sample.
test-faults:
	@scripts/setup test
	GODWIT_TEST_FAULTS=all go test -count=1 -timeout 40m -run '^TestFaults$$' -v ./internal/vmm

# bench prints tables, the second from where Linux guests boot: this machine, or
# an emulated host. make bench ARGS='--quick'; ARGS='--only pio --json out.json'
# runs just that, on this machine.
bench: guest
	@scripts/setup bench
	bin/godwit bench $(ARGS)
	$(if $(findstring --only,$(ARGS)),,bin/godwit-lab auto --with-qemu -- bench --only linux-boot $(filter --quick,$(ARGS)))

lint:
	@scripts/setup build
	@unformatted=$$(gofmt -l .); if [ -n "$$unformatted" ]; then echo "not gofmt-ed: $$unformatted"; exit 1; fi
	go vet ./...
	go tool staticcheck ./...

# fuzz runs every fuzz target for FUZZTIME.
FUZZTIME ?= 60s
fuzz:
	@scripts/setup build
	@scripts/fuzz $(FUZZTIME)

clean:
	rm -rf bin
