# make up     install what is missing, build, start a cluster on this machine, run examples/two-services
# make test   install what is missing, run the whole test suite
# make demo   reach the example every way a user would
# make bench  print the figures of docs/performance.md
# make down   end the cluster and leave nothing behind (make purge also deletes its state)

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo)
ISOPOD := target/release/isopod
KUBECONFIG ?= /etc/isopod/kubeconfig.yaml
export KUBECONFIG

.PHONY: up test demo bench down purge deps build example lint

up: deps build
	$(ROOT) $(ISOPOD) up
	$(MAKE) --no-print-directory example

deps:
	$(ROOT) scripts/install-dependencies

build:
	cargo build --release --locked -p isopod -p testkit

example:
	scripts/example

demo:
	scripts/demo

test: deps
	scripts/test

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

bench: deps
	scripts/bench

down:
	$(ROOT) $(ISOPOD) down

purge:
	$(ROOT) $(ISOPOD) down --purge
