# make train         trains, after setting up .venv; goes on with the run in out/
# make merge         out/best and its base as one plain checkpoint, in merged/
# make test          lint, types and tests; ARGS="-m slow": the tests that it leaves out
# make examples      sets up examples/ and tests it
# make test-cluster  sets up Ray and Spark, and tests the examples for them
# make bench         speed against transformers + peft
# make gpu           what one GPU does, in eight minutes at most; ARGS=--quick: on a CPU, to try it
# make fuzz          10,000 broken files for every reader
# make faults        kills, full disks, races, for real
# make experiments   a table of ranks, targets, rates: hours; ARGS=--dry-run says how many
# make figures       the pictures of docs/guide.md, from runs of a quarter of an hour
# make clean         removes what the others set up: .venv, offline/, .older*/, node_modules/
#
# make train ARGS="--epochs 1" passes options on. make train PYTHON=/path/to/python uses that
# environment as it is and installs nothing.

ifdef PYTHON
ready :=
ready-dev :=
ready-examples :=
ready-cluster :=
else
PYTHON := .venv/bin/python
ready := .venv/ready
ready-dev := .venv/ready-dev
ready-examples := .venv/ready-examples
ready-cluster := .venv/ready-cluster
endif

ty = $(PYTHON) -m ty check --python "$$($(PYTHON) -c 'import sys; print(sys.prefix)')"
pytest = $(PYTHON) -m pytest -q
in-parallel = -n 3 --dist loadfile --no-loadscope-reorder

train: $(ready)
	$(PYTHON) train.py --offline-fallback --resume $(ARGS)

merge: $(ready)
	$(PYTHON) -m runtime.adapters merge out/best merged $(ARGS)

test: $(ready-dev)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(ty)
	$(ty) --python-platform win32
	$(pytest) $(in-parallel) $(ARGS)

examples: $(ready-examples)
	$(pytest) examples --ignore-glob="*_on_ray.py" --ignore-glob="*_on_spark.py" $(ARGS)

test-cluster: $(ready-cluster)
	$(pytest) examples/test_label_on_ray.py examples/test_label_on_spark.py $(ARGS)

bench: $(ready-dev)
	$(PYTHON) benchmarks/compare_hf.py $(ARGS)

gpu: $(ready-dev)
	$(PYTHON) benchmarks/gpu.py $(ARGS)

fuzz: $(ready-dev)
	$(PYTHON) tests/fuzz.py --cases 10000 $(ARGS)

faults: $(ready-dev)
	$(PYTHON) tests/faults.py $(ARGS)

experiments: $(ready)
	$(PYTHON) experiments/run.py $(ARGS)

figures: $(ready)
	$(PYTHON) docs/figures/make.py $(ARGS)

clean:
	rm -rf .venv offline .older* .node-transformers examples/browser/node_modules

.venv/bin/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: python3 must be 3.11 or newer'; exit 2; }
	python3 -m venv .venv

.venv/ready: requirements.txt | .venv/bin/python
	$(PYTHON) -m pip install -q -r $<
	@touch $@

.venv/ready-dev: requirements-dev.txt .venv/ready
	$(PYTHON) -m pip install -q -r $<
	@touch $@

.venv/ready-examples: examples/requirements.txt .venv/ready-dev
	$(PYTHON) -m pip install -q -r $<
	@touch $@

.venv/ready-cluster: examples/requirements-cluster.txt .venv/ready-dev
	$(PYTHON) -m pip install -q -r $<
	@touch $@

.PHONY: train merge test examples test-cluster bench gpu fuzz faults experiments figures clean
