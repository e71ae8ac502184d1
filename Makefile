# Everything happens in this checkout: .venv (what runs), .build (what it was built with), models, var (what it keeps).
# The system's python3 where it can make environments: distributions build theirs with optimisation, which version
# managers by default do not, and an unoptimised one costs some 10 % more CPU per request. PYTHON=python3 takes yours.
PYTHON ?= $(shell /usr/bin/python3 -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo /usr/bin/python3 || echo python3)
VENV_PYTHON := .venv/bin/python
INSTALL := $(PYTHON) -m deploy.bootstrap.install

.PHONY: soak run python install install-test install-deploy test test-engines test-deploy fmt lint type bench bench-engines clean

run: install
	@exec $(VENV_PYTHON) -m gateway serve

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo 'Switchyard needs Python 3.11 or later as python3: apt-get install -y python3 python3-venv, or make PYTHON=python3.12' >&2; exit 1; }

install: python
	@$(INSTALL) run

install-test: python
	@$(INSTALL) test

install-deploy: python
	@$(INSTALL) deploy

test: install-test
	@$(VENV_PYTHON) -m deploy.bootstrap.check

# vLLM, transformers and Triton as servers and in engine hosts: 4 GB in .build/engines, a quarter of an hour the first time.
test-engines: install-test
	@$(VENV_PYTHON) -m deploy.bootstrap.engines

# Compose files, a real Prometheus, the image: built without Docker, which takes the root user and about ten minutes.
test-deploy: install-deploy
	@$(VENV_PYTHON) -m deploy.bootstrap.check deploy image

fmt: install-test
	@$(VENV_PYTHON) -m ruff format .
	@$(VENV_PYTHON) -m ruff check --fix .

lint: install-test
	@$(VENV_PYTHON) -m deploy.bootstrap.check lint

type: install-test
	@$(VENV_PYTHON) -m deploy.bootstrap.check type

bench: install-test
	@$(VENV_PYTHON) -m tests.bench

# Ten minutes of mixed load with reloads, Redis restarts and clients that leave; SECONDS=60 for a short one.
SECONDS ?= 600
soak: install-test
	@$(VENV_PYTHON) -m tests.soak --seconds $(SECONDS) --out .build/soak

# llama.cpp's own server is a binary that you name: make bench-engines LLAMA_SERVER=/path/to/llama-server
bench-engines: install-test
	@$(VENV_PYTHON) -m tests.bench.engines $(if $(LLAMA_SERVER),--server $(LLAMA_SERVER))
	@$(VENV_PYTHON) -m tests.bench.vllm_row

clean:
	rm -rf .venv .build
