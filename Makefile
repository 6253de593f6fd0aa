# `make demo` and `make test` work from a fresh clone: each sets up .venv first, and is quick the second time.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
PYTHONS ?= 3.12 3.13
CLIENT_ALONE := --ignore tests/client/with_server --ignore tests/client/test_torch.py

.PHONY: setup demo bench test check format lint types nightly proto clean docs docs-serve flower nvflare dist examples pythons robustness privacy-evidence lock image-steps operations screenshot fuzz

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt deploy/helm/install_tools.py
	test -x $(BIN)/python || $$(command -v $(PYTHON) || command -v python3) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --upgrade pip setuptools
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[server,models,otel,demo,docs,dev]'
	$(BIN)/pip install --quiet --no-deps crypten==0.4.1
	$(BIN)/pip install --quiet --no-deps byzfl==0.0.11 byzpy==0.1.4
	$(BIN)/python deploy/helm/install_tools.py $(BIN)
	touch $@

demo: setup
	$(BIN)/triskele demo $(ARGS)

# A secure round beside a plaintext one: make bench ARGS="--participants 100 --dimension 1000000 --rule flame --json out.json"
bench: setup
	$(BIN)/triskele bench $(ARGS)

# Files side by side on two cores; one test of a file after the other. WORKERS=0 for one process, as a debugger wants it.
# The examples for Flower and NVFLARE run too, so their environments are made first.
WORKERS ?= 2
test: setup .venv-flower/installed .venv-nvflare/installed
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

check: setup lint types test

lint: setup
	$(BIN)/ruff format --check
	$(BIN)/ruff check

format: setup
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

types: setup
	$(BIN)/mypy

# What takes too long for every change: the sizes of the performance targets.
nightly: setup
	$(BIN)/triskele bench --sweep --participants 24 --dimension 40000
	$(BIN)/python -m bench.filter
	$(BIN)/python -m tests.oracle.sweep
	TRISKELE_SIMULATION_EXAMPLES=2000 $(BIN)/python -m pytest --timeout 0 tests/simulation/test_fault_simulation.py
	$(BIN)/python -m pytest -m own_environment tests/deploy
	$(MAKE) flower nvflare pythons

# Every decoder under atheris, 30 s each (ARGS="--seconds 300 task" for longer, or for some): inputs stay in build/fuzz.
fuzz: setup
	$(BIN)/pip install --quiet --constraint constraints.txt atheris
	$(BIN)/python -m tests.fuzz.atheris_run $(ARGS)

# Federated training under every attack with every rule, as docs/robustness.md was measured: hours of one core.
robustness: setup
	$(BIN)/python -m bench.robustness $(ARGS)

# Gradient inversion on faces, as docs/privacy-evidence.md was measured: a minute; the picture stays in build/privacy.
privacy-evidence: setup
	$(BIN)/python -m bench.privacy.inversion $(ARGS)

# Flower's simulation runtime, then a SuperLink and SuperNodes, against a federation on this machine, in an environment of its own.
flower: setup .venv-flower/installed
	$(BIN)/python -m pytest -m own_environment tests/ecosystem/test_flower.py \
	  tests/ecosystem/test_flower_quickstart.py tests/ecosystem/test_flower_deployment.py $(ARGS)

.venv-flower/installed: pyproject.toml constraints-flower.txt $(STAMP)
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-flower
	$(BIN)/uv pip install --quiet --python .venv-flower --constraint constraints-flower.txt --editable '.[flower]' scikit-learn
	touch $@

# NVFLARE's simulator and its POC mode against a federation on this machine, in an environment of its own.
nvflare: setup .venv-nvflare/installed
	$(BIN)/python -m pytest -m own_environment tests/ecosystem/test_nvflare.py $(ARGS)

.venv-nvflare/installed: pyproject.toml constraints.txt $(STAMP)
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python .venv-nvflare
	$(BIN)/uv pip install --quiet --python .venv-nvflare --constraint constraints.txt --editable '.[nvflare]'
	touch $@

# The documentation site, into build/site; nothing is fetched when it is built or read. docs-serve shows it while you write.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --clean

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs serve --dev-addr 127.0.0.1:8000

# Wheel and source archive, the wheel built from the archive.
dist: setup
	rm -rf dist
	$(BIN)/python -m build --outdir dist

# The examples as their READMEs state them, from a wheel built for the purpose.
examples: setup .venv-flower/installed .venv-nvflare/installed
	$(BIN)/python -m pytest tests/examples $(ARGS)

# The client's own tests, without server and frameworks, from the wheel on every other Python that is declared and installed.
pythons: dist
	for version in $(PYTHONS); do \
	  venv=build/pythons/$$version; \
	  test -x $$venv/bin/python || PYENV_VERSION=$$version python$$version -m venv $$venv || exit 1; \
	  $$venv/bin/pip install --quiet --constraint constraints.txt hypothesis pytest pytest-timeout scipy tuf || exit 1; \
	  $$venv/bin/pip install --quiet --constraint constraints.txt --force-reinstall --no-deps dist/*.whl || exit 1; \
	  $$venv/bin/pip install --quiet --constraint constraints.txt dist/*.whl || exit 1; \
	  $$venv/bin/python -m pytest tests/client $(CLIENT_ALONE) -p no:cacheprovider $(ARGS) || exit 1; \
	done

proto: setup
	$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto proto/triskele_proto/v1/*.proto

# The image's packages with their hashes, after a change of pyproject.toml or constraints.txt. TORCH: where CPU wheels come from.
TORCH ?= --torch-backend cpu
LOCK := $(BIN)/uv pip compile --quiet --generate-hashes --no-header --no-annotate --no-emit-find-links \
	--only-binary :all: --python-version 3.11 --python-platform x86_64-manylinux_2_28 --constraint constraints.txt
lock: setup
	$(LOCK) $(TORCH) --extra server --extra otel --output-file deploy/docker/requirements.lock pyproject.toml
	$(LOCK) --no-deps --output-file deploy/docker/crypten.lock deploy/docker/crypten.in
	$(LOCK) --output-file deploy/docker/requirements-build.lock deploy/docker/requirements-build.in

# What the Dockerfile runs, in folders of this machine instead of an image: some minutes, most of them downloads.
image-steps: setup
	$(BIN)/python -m pytest -m own_environment tests/deploy/test_image_steps.py $(ARGS)

# Every command of docs/operations.md in a fresh clone, which installs everything itself: some minutes.
operations: setup
	$(BIN)/python -m pytest -m own_environment tests/deploy/test_operations_page.py $(ARGS)

# docs/images/console.png: the console page of a live federation and a real Prometheus in Chromium. Look at it before you commit.
screenshot: setup
	$(BIN)/python -m pytest -m "own_environment or not own_environment" tests/deploy/test_prometheus.py
	cp build/console.png docs/images/console.png

clean:
	rm -rf $(VENV) .venv-* build dist
