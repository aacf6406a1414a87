# make demo: a fresh machine to outputs/demo/index.html.   make test: environment, lint, types, tests.
# make serve: the Studio with nano in the browser.   make test-browser: Studio and site (if built), which need Chromium.
# make soak: the server under an hour of everything that clients do; benchmarks/results/ gets its report.
# make docs: the site, into outputs/site.   make coverage: which lines the tests run; 92 % of the core at least.
# make dist: sdist and wheel, checked.   make release VERSION=0.2.0: version and changelog, then the same.
# make nightly: what takes longer: all tests, those with Ray and many threads too; the wheel in an empty environment with
# every line of the README; examples; every benchmark in small.
PY ?= python3
VENV ?= .venv
VENV_FLAGS ?=
BIN := $(VENV)/bin
CORE := src/openlance/config/*,src/openlance/sequence/*,src/openlance/media/*,src/openlance/flow/*
UV := $(BIN)/uv pip install -q --python $(BIN)/python --compile-bytecode

.PHONY: setup demo serve test test-browser lint nightly soak docs coverage dist release
setup: $(VENV)/.stamp-dev

$(VENV)/.stamp-uv:
	$(PY) -m venv $(VENV_FLAGS) $(VENV)
	$(BIN)/python -m pip install -q uv
	touch $@

# uv does not read pip's settings, so pip's local wheels are handed over. With an NVIDIA GPU the newest torch is
# taken; without one the pinned CPU build is, from the local wheels or else from PyTorch's own CPU index.
$(VENV)/.stamp-%: pyproject.toml constraints.txt | $(VENV)/.stamp-uv
	links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-$$($(BIN)/python -m pip config get global.find-links 2>/dev/null)}}"; \
	  if [ -n "$$links" ]; then export UV_FIND_LINKS="$$links"; fi; \
	  if nvidia-smi -L >/dev/null 2>&1; then set --; \
	  elif [ -n "$$links" ]; then set -- -c constraints.txt; \
	  else set -- -c constraints.txt --torch-backend cpu; fi; \
	  $(UV) "$$@" -e '.$(if $(filter-out core,$*),[$*])'
	touch $@

demo: $(VENV)/.stamp-core
	$(BIN)/openlance demo -o outputs/demo

serve: $(VENV)/.stamp-studio
	$(BIN)/openlance studio

lint: $(VENV)/.stamp-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python tools/words.py

docs: $(VENV)/.stamp-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "outputs/site/index.html"

dist: $(VENV)/.stamp-release
	rm -rf dist
	$(BIN)/uv build -q --python $(BIN)/python -o dist .
	$(BIN)/twine check --strict dist/*

release: $(VENV)/.stamp-release
	$(BIN)/python tools/release.py $(VERSION)
	$(MAKE) dist

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

coverage: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder --cov --cov-report=
	$(BIN)/coverage report --skip-covered
	$(BIN)/coverage report --include='$(CORE)' --fail-under=92

soak: $(VENV)/.stamp-dev
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/soak.py

# Debian's Chromium comes along where it is missing and this is root; elsewhere the tests that need one are skipped.
test-browser: $(VENV)/.stamp-dev $(VENV)/.stamp-browser
	command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  apt-get update -qq && apt-get install -qqy --no-install-recommends chromium iproute2 >/dev/null; } || true
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/browser tests/serve/test_studio.py

# In a copy: what they write is none of the dated results.
nightly: test $(VENV)/.stamp-nightly
	OMP_NUM_THREADS=1 OPENLANCE_NIGHTLY=1 OPENLANCE_RAY=1 $(BIN)/python -m pytest tests/inference/test_threads.py \
	  tests/inference/test_distributed.py tests/data tests/serve/test_ray.py tests/serve/test_soak.py tests/eval/test_lmms.py \
	  tests/eval/test_vbench.py tests/docs/test_pages.py tests/training/test_interrupt.py tests/rl tests/test_gpu_day.py \
	  tests/parity/test_verify.py
	OMP_NUM_THREADS=1 OPENLANCE_NIGHTLY=1 OPENLANCE_FUZZ=5000 $(BIN)/python -m pytest tests/serve/test_media.py \
	  tests/serve/test_openapi.py
	$(BIN)/hadolint Dockerfile
	$(BIN)/openlance verify tests/golden --with compile,offload,tiling,prefix,batch
	PATH="$(abspath $(BIN)):$$PATH" python tests/install.py
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && python=$(abspath $(BIN))/python && \
	  cp -r examples benchmarks "$$scratch" && cd "$$scratch" && \
	  $$python examples/ask.py && $$python examples/generate.py && $$python examples/new_task.py && \
	  $$python examples/framed_pictures.py pictures && \
	  for name in denoise release_loop step startup memory packing photos serve; do $$python benchmarks/$$name.py --quick || exit 1; done
