# Postgres-R. `make help` lists what there is to do; each target sets up what it needs.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test test-long history bench bench-apply bench-storms pg pg-check pg-stock lib lint clean pg-edit pg-refresh setup

JOBS ?= $(shell nproc)
CARGO ?= cargo
export JOBS CARGO

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

demo: pg ## three members under pgbench, verified to be identical
	build/pgsql/bin/pgr demo

test: pg-check ## every test: pure, simulation, PostgreSQL's suites, real groups
	scripts/test

test-long: pg-check pg-stock ## more seeds, Miri, loom, longer faults
	scripts/test --long

history: pg-check pg-stock ## transactions on all members under faults, judged for isolation anomalies
	scripts/history --long

bench: pg pg-stock ## throughput and cost against stock PostgreSQL, in one run
	scripts/bench

bench-apply: pg pg-stock ## what applying costs, beside logical replication and physical replay
	scripts/bench apply

bench-storms: pg ## conflicts of three members, for minutes: invariants, and how fast victims give way
	scripts/bench conflicts

pg: setup ## the patched PostgreSQL, in build/pgsql
	scripts/build-pg pgsql

pg-check: setup ## the same with assertions and injection points, in build/check
	scripts/build-pg check

pg-stock: setup ## unpatched PostgreSQL with the same flags, in build/stock
	scripts/build-pg stock

lib: setup ## the library alone, in the tree of build/pgsql
	scripts/build-pg pgsql library

lint: setup ## formatting, clippy for every feature set, the patch series' round trip
	scripts/lint

pg-edit: setup ## the patched tree as a git repository with a commit a patch, in build/edit
	scripts/patches edit

pg-refresh: ## writes the commits of build/edit back to pg-patches/
	scripts/patches refresh

setup:
	@scripts/setup

clean: ## removes all that was built
	@scripts/clean
