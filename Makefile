# Two commands from a bare checkout: `make demo` and `make test`. Python 3.11 and a package index are all they need.

PYTHON ?= python3.11
BIN := .venv/bin
DEMO := outputs/demo
# Two processes of one thread each fill two cores; tests' small tensors lose more to threads than they gain.
FAST := OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not ray"

.PHONY: help install demo test test-fast check clips clean

help:
	@echo "make demo       train a little, generate held-out clips, write $(DEMO)/index.html (under 10 minutes on 2 cores)"
	@echo "make test       everything that CI runs (15 to 22 minutes on 2 cores)"
	@echo "make test-fast  the tests without Ray (2 to 4 minutes on 2 cores)"
	@echo "make check      ruff, ruff format, mypy"
	@echo "make clips      rebuild the shipped demo clips from motion capture"
	@echo "make clean      remove $(DEMO)"

install: .venv/installed

# The stamp comes last: an interrupted installation is taken up again.
.venv/installed: pyproject.toml constraints-cpu.txt requirements-no-deps.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -q -c constraints-cpu.txt -e ".[train,serve,mmpose,synth,dev]"
	$(BIN)/pip install --disable-pip-version-check --progress-bar off -q --no-deps -r requirements-no-deps.txt
	touch $@

demo: install
	$(BIN)/python jobs/train.py demo --stage joint --output $(DEMO)/training
	$(BIN)/python jobs/generate.py --pipeline $(DEMO)/training/pipeline --training $(DEMO)/training --reference first --num-inference-steps 10 --output $(DEMO) --report

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(FAST)
	$(BIN)/pytest -m ray

test-fast: install
	$(FAST)

clips: install
	$(BIN)/python jobs/build_demo.py --output finephys/assets/clips

clean:
	rm -rf $(DEMO)
