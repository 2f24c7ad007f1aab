# Every target sets up .venv first where it is missing; nothing is done twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo families test check format bench kernels gpu coverage report clean

demo: $(READY)
	$(BIN)/scalebench demo --output reports/demo/index.html

test: $(READY)
	$(BIN)/pytest -n 2
	TRITON_INTERPRET=1 $(BIN)/pytest -n 2

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/pytest tests/bench_*.py --benchmark-enable --benchmark-only

# Every shipped kernel compiled for sm_80, sm_90 and sm_100, without a GPU; unchanged ones come from results/compiled.
kernels: $(READY)
	PYTHONPATH=kernels $(BIN)/python kernels/compile_ahead.py

# On a machine with a GPU and no network: from source, with the torch and triton of PYTHON. See kernels/gpu.py.
STAGES ?= check,compare,sweep,report
OUT ?= results/gpu
gpu:
	$(PYTHON) kernels/gpu.py --out $(OUT) --stages $(STAGES) $(if $(WHEELS),--wheels $(WHEELS))

# Simulated studies against their intervals; what is already in results/coverage is not run again.
coverage: $(READY)
	$(BIN)/python tests/coverage_laws.py

report: $(READY)
	$(BIN)/scalebench report results --output report.html

# Every family's CPU study, and what optimizers and residual connections change: one page with an overview first.
FAMILIES := linear mlp attention cnn resnet rnn transformer bert gpt vit moe optimizers depth-residual
families: $(READY)
	for study in $(FAMILIES); do $(BIN)/scalebench run $$study --results results/families || exit; done
	$(BIN)/scalebench report results/families --output reports/families/index.html

# The environment is remade when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scalebench needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) results
