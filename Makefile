# make demo    train, compile and evaluate a small network; ends with a table and a report
# make test    lint, types, tests (those that take minutes: make test-slow)
# make zoo     compile 76 architectures, beside Torch-Pruning: docs/zoo.md (half an hour; resumes)
# make fuzz    random networks, damaged files, large graphs: docs/fuzzing.md (half an hour; resumes)
# make bench-quick  two minutes that show what became slower: ratios beside the recorded ones
# make docs    the site, in site/: strict, links checked, nothing fetched
# make clean   remove what these made
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT := demo-out
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install -c constraints.txt

.PHONY: demo test test-slow zoo fuzz bench-quick lint docs clean
.DELETE_ON_ERROR:

demo: $(VENV)/.demo $(OUT)/weights.npz
	$(BIN)/graphprune compile examples.digits:factory --macs 0.5x --data $(OUT)/calibration.npz \
	  --eval examples.digits:accuracy --target onnx --target tvm -o $(OUT)/compiled --force

$(OUT)/weights.npz: examples/digits.py | $(VENV)/.demo
	$(BIN)/python -m examples.digits train

test: lint
	$(BIN)/pytest -q -n 2 -m "not slow" --durations=10

test-slow: $(VENV)/.test
	$(BIN)/pytest -q -m slow

zoo: $(VENV)/.test
	$(BIN)/python -m tests.zoo.run --jobs 2 --out docs/zoo.md

fuzz: $(VENV)/.test
	$(BIN)/python -m tests.fuzz.run --draws 2500 --seed 0
	$(BIN)/python -m tests.fuzz.mutate --cases 1500
	$(BIN)/python -m tests.fuzz.big

bench-quick: $(VENV)/.test
	$(BIN)/python -m benchmarks.quick

docs: $(VENV)/.test
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# The picture of README.md and docs/index.md: the head of the demo's report, without times, which no two runs share; by a
# browser that is not installed here.
docs/report.png: $(VENV)/.demo $(OUT)/weights.npz
	$(BIN)/python -c "import graphprune as gp; gp.compile('examples.digits:factory', macs='0.5x', targets=['onnx'], \
	  data='$(OUT)/calibration.npz', evaluate='examples.digits:accuracy', measure=False, out='$(OUT)/picture', force=True)"
	chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1000,1300 --screenshot=$@ \
	  $(abspath $(OUT)/picture/report.html)
	$(BIN)/python -c "from PIL import Image; Image.open('$@').convert('RGB').crop((0, 0, 1000, 965)).quantize(64).save('$@', optimize=True)"

lint: $(VENV)/.test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# One stamp per set of extras; --editable, so that only new requirements make an environment stale.
$(VENV)/.demo: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[demo,tvm]'
	touch $@

$(VENV)/.test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) --editable '.[test]'
	touch $@ $(VENV)/.demo

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "graphprune needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

clean:
	rm -rf $(VENV) $(OUT) site build dist *.egg-info .pytest_cache .mypy_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} + -o -name .ruff_cache -prune -exec rm -rf {} +
