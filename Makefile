# Every target sets up what it needs; `make setup` only does it ahead of time.
PY := .venv/bin/python
STAMP := .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all test-older unit lint check format crds manifests lock lab lab-down bench bench-pull bench-judge clean

help: ## What can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(STAMP): requirements.lock pyproject.toml
	python3 -m venv .venv
	$(PY) -m pip install --quiet --require-hashes -r requirements.lock
	$(PY) -m pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

setup: $(STAMP) ## Install everything, and build the control plane (about 7 minutes, once)
	$(PY) -m tests.lab build

demo: setup ## Roll a real signed model over a real fleet; ACTS=all plays every act, NODES=1 some on real nodes, KEEP=1 leaves it running
	$(PY) -m examples.digits.demo --acts $(or $(ACTS),$(if $(NODES),nodes,standard)) $(if $(KEEP),--keep)

test: setup ## All tests, on real servers
	$(PY) -m pytest $(ARGS)

test-all: setup ## The same with every crash point, every act of the demo, the one on nodes, Flux, KServe and Triton (hours)
	EDGEFLEET_ALL_POINTS=1 EDGEFLEET_DEMO_ACTS=all EDGEFLEET_FLUX=1 EDGEFLEET_DEMO_NODES=1 EDGEFLEET_SERVERS=1 EDGEFLEET_FUZZ=1 $(PY) -m pytest $(ARGS)
	$(MAKE) test-older

test-older: setup ## What depends on the API server, and the demo, on the oldest Kubernetes that is supported
	EDGEFLEET_KUBERNETES=1.34 $(PY) -m pytest tests/integration/test_lab.py tests/e2e/test_demo.py \
	  $(foreach name,kinds rights teams charts check join hub agent leadership life killed,tests/integration/test_$(name).py)

unit: $(STAMP) ## The tests that need no server
	$(PY) -m pytest tests/unit $(ARGS)

lint: $(STAMP) ## Format, lint, types, import rules
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy
	.venv/bin/lint-imports --no-logo

check: lint unit ## What can be checked without a server

format: $(STAMP) ## Format the code
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

crds: $(STAMP) ## Generate crds/ from operator/edgefleet/api, and what charts/ has of it
	$(PY) -m edgefleet crds -o crds
	$(PY) -m tests.lab.manifests
	$(PY) -m tests.lab.expected

manifests: $(STAMP) ## Generate charts/install.yaml and the charts' kinds
	$(PY) -m tests.lab.manifests
	$(PY) -m tests.lab.expected

lock: $(STAMP) ## Resolve the dependencies again
	$(PY) -m pip install --quiet uv
	.venv/bin/uv pip compile pyproject.toml --group dev --universal --upgrade --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet -o requirements.lock
	.venv/bin/uv pip compile pyproject.toml --extra gateway --universal --constraints requirements.lock --generate-hashes \
	  --no-header --no-annotate --no-emit-index-url --quiet -o operator/requirements.lock

lab: setup ## Start a hub and two site clusters, and print their KUBECONFIGs
	$(PY) -m tests.lab up

lab-down: $(STAMP) ## End the lab, whoever started it
	$(PY) -m tests.lab down

bench: setup ## Print what a pull, a verdict and a rollout cost on this machine
	$(PY) -m tests.bench.pull 256
	$(PY) -m tests.bench.verify
	$(PY) -m tests.bench.writes
	$(PY) -m tests.bench.reaction

bench-pull: $(STAMP) ## Print what a verified pull of 1 GiB costs beside curl and the oras CLI
	$(PY) -m tests.bench.pull 1024

bench-judge: $(STAMP) ## Compare the judge with the rules of other tools, in simulated fleets; writes docs/judge
	$(PY) -m tests.bench.canary --write $(ARGS)

clean: lab-down ## End the lab and remove the environment
	rm -rf .venv .lab
