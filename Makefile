# `make` shows the commands. Every target that needs the environment makes it first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.made-from-lock

# make test: most tests wait more than they compute, so there are more workers than cores
WORKERS ?= 4
# make demo
ROWS ?= 1000000
INVALID ?= 0
STORE ?= seaweedfs
# make chaos, make fuzz, make judge
RUNS ?=
SEED ?=
VALUES ?= 100000
# make bench, make bench-full: some of the parts, as ONLY=load,memory
ONLY ?=
# make oom-test: STAND_INS with any value where no image can be pulled; MEMORY in MB
STAND_INS ?=
MEMORY ?= 512
# README's picture is that of the whole test.
PICTURE ?= $(if $(filter 5000000-512,$(ROWS)-$(MEMORY)),docs/oom-test.png,/tmp/oom-test.png)
# make dev
PORT ?= 3002

# The last release before MinIO's sources were archived: RELEASE.2025-09-07T16-13-09Z.
MINIO_VERSION := v0.0.0-20250907161309-07c3a429bfed
MINIO_DIR := $(HOME)/.cache/stream-api/bin

COMPILE := uv pip compile --upgrade --universal --python-version 3.11 --generate-hashes --quiet

.DEFAULT_GOAL := help
.PHONY: help setup test chaos fuzz judge lint format dev demo bench bench-full oom-test kubernetes minio lock

help:  ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  make \1\t/' | expand -t 18

setup: $(STAMP)  ## make .venv from requirements.lock (nothing, when nothing changed)

$(STAMP): requirements.lock setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "stream-api needs Python 3.11 or later; choose one by: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' \
	  || { echo "this Python has no venv module; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

test: lint  ## all checks, then all tests, by WORKERS (4) at once
	$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxschedchunk 1

chaos: setup  ## RUNS (200) loads of 200,000 rows with random faults; SEED repeats them
	$(BIN)/python -m tests.faults.chaos --runs $(or $(RUNS),200) $(if $(SEED),--seed $(SEED))

fuzz: setup  ## RUNS (10000) loads of damaged files; SEED repeats them
	$(BIN)/python -m tests.nasty.fuzz --runs $(or $(RUNS),10000) $(if $(SEED),--seed $(SEED))

judge: setup  ## VALUES (100000) of every type, loaded and by COPY; SEED repeats them
	$(BIN)/python -m tests.nasty.judge --values $(VALUES) $(if $(SEED),--seed $(SEED))

lint: setup  ## ruff, mypy, the direction of imports, the README's tables
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python docs/tables.py --check

format: setup  ## let ruff format and mend what it can, write the README's tables
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/python docs/tables.py

dev: setup  ## the whole service on this machine, at PORT (3002), until Ctrl-C
	$(BIN)/stream-api dev --port $(PORT) --store $(STORE)

demo: setup  ## ROWS (1000000) rows through the service, INVALID (0) of them bad, on STORE (seaweedfs or minio)
	@$(BIN)/python -m bench.demo --rows $(ROWS) --invalid $(INVALID) --store $(STORE)

bench: setup  ## ten minutes: figures beside their references into bench/results; ONLY=load,upload,… for some parts
	@$(BIN)/python -m bench --size quick --store $(STORE) $(if $(ONLY),--only $(ONLY))

bench-full: setup  ## the same with large files, five times each: about an hour and 40 GB of disk
	@$(BIN)/python -m bench --size full --store $(STORE) $(if $(ONLY),--only $(ONLY))

oom-test: ROWS := $(if $(filter file,$(origin ROWS)),5000000,$(ROWS))
oom-test: setup  ## the spec's acceptance test under Docker, ROWS (5000000), MEMORY (512); STAND_INS=1 makes the images
	@$(if $(STAND_INS),deploy/stand_ins/run )$(BIN)/python -m bench.oom --rows $(ROWS) --memory $(MEMORY) \
	  --picture $(PICTURE)

kubernetes:  ## check deploy/kubernetes against the published schemas, by tools built with Go
	@deploy/kubernetes/check

minio: $(MINIO_DIR)/minio  ## build the MinIO server from source with Go (about 4 minutes, once)

$(MINIO_DIR)/minio:
	@command -v go >/dev/null || { echo "Go is needed to build MinIO: https://go.dev/doc/install" >&2; exit 1; }
	GOBIN=$(MINIO_DIR) GOTOOLCHAIN=local go install github.com/minio/minio@$(MINIO_VERSION)

lock:  ## write both lock files anew from setup.cfg (needs uv)
	$(COMPILE) --extra test setup.cfg -o requirements.lock
	$(COMPILE) --extra build setup.cfg -o deploy/requirements.lock
