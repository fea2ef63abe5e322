# make train   trains, after setting up .venv       make test    lint and tests
# make bench   speed against transformers + peft    make fuzz    10,000 broken files for every reader
# make merge   out/best as a plain checkpoint       make faults  kills, full disks, races, for real
# make clean   removes .venv and offline/           make examples  sets up and tests examples/
# make test ARGS="-m slow"  the tests that make test leaves to continuous integration
# make test-cluster  sets up Ray and Spark, and tests the examples for them
# make experiments  a table of ranks, targets, rates: hours; ARGS=--dry-run says how many
# make figures  the pictures of docs/guide.md, from runs of a quarter of an hour
#
# make merge replaces a merged/ that holds a model and nothing else, and refuses any other.
#
# make train ARGS="--epochs 1" passes options on; make train PYTHON=/path/to/python uses that
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

train: $(ready)
	$(PYTHON) train.py --offline-fallback --resume $(ARGS)

test: $(ready-dev)
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m pytest -q -n 3 --dist loadfile --no-loadscope-reorder $(ARGS)

examples: $(ready-examples)
	$(PYTHON) -m pytest -q examples --ignore-glob="*_on_ray.py" --ignore-glob="*_on_spark.py" $(ARGS)

test-cluster: $(ready-cluster)
	$(PYTHON) -m pytest -q examples/test_label_on_ray.py examples/test_label_on_spark.py $(ARGS)

experiments: $(ready)
	$(PYTHON) experiments/run.py $(ARGS)

figures: $(ready)
	$(PYTHON) docs/figures/make.py $(ARGS)

bench: $(ready-dev)
	$(PYTHON) benchmarks/compare_hf.py $(ARGS)

fuzz: $(ready-dev)
	$(PYTHON) tests/fuzz.py --cases 10000 $(ARGS)

faults: $(ready-dev)
	$(PYTHON) tests/faults.py $(ARGS)

merge: $(ready)
	$(PYTHON) lora.py merge --overwrite out/best merged $(ARGS)

clean:
	rm -rf .venv offline .older

.venv/bin/python:
	@python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'error: python3 must be 3.11 or newer'; exit 2; }
	python3 -m venv .venv

.venv/ready: .venv/bin/python requirements.txt
	$(PYTHON) -m pip install -q -r requirements.txt
	@touch $@

.venv/ready-dev: .venv/ready requirements-dev.txt
	$(PYTHON) -m pip install -q -r requirements-dev.txt
	@touch $@

.venv/ready-examples: .venv/ready-dev requirements-examples.txt
	$(PYTHON) -m pip install -q -r requirements-examples.txt
	@touch $@

.venv/ready-cluster: .venv/ready-dev requirements-cluster.txt
	$(PYTHON) -m pip install -q -r requirements-cluster.txt
	@touch $@

.PHONY: train test examples test-cluster experiments figures bench fuzz faults merge clean
