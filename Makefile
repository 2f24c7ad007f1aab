# Every target sets up .venv first where it is missing; nothing is done twice.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo families lifecycle compare reports test test-fast check format bench kernels gpu gpu-carry coverage faults report clean

# Pages are written under results/, which is not tracked; `make reports` runs the same commands and writes the tracked
# pages under reports/ instead.
DEMO_PAGE := results/demo/report.html
FAMILIES_PAGE := results/families/report.html
LIFECYCLE_PAGE := results/lifecycle/report.html
COMPARE_PAGE := results/compare/report.html

demo: $(READY)
	$(BIN)/scalebench demo --output $(DEMO_PAGE)

reports: DEMO_PAGE := reports/demo/index.html
reports: FAMILIES_PAGE := reports/families/index.html
reports: LIFECYCLE_PAGE := reports/lifecycle/index.html
reports: COMPARE_PAGE := reports/compare-cpu/index.html
reports: demo families lifecycle compare

# All tests, each once: kernels (test_kernel_*.py) need a process with TRITON_INTERPRET=1, the others one without.
# Rewritten assertions and compiled modules are kept, also where the environment says otherwise: without them each of
# the worker processes rewrites every test file anew, which takes longer than the import of torch.
export PYTHONDONTWRITEBYTECODE :=
# Three for two cores, as some tests wait for processes that they started; none under the interpreter does, nor a quick
# one for long, and each has its imports to pay.
PYTEST := $(BIN)/pytest --dist worksteal
test: $(READY)
	$(PYTEST) -n 3
	TRITON_INTERPRET=1 $(PYTEST) -n 2

# Nine tenths of them in a fifth of the time: without those marked slow. Kernels run beside the others, in one process,
# and are printed after them: two cores have something to do until the end, and one process less has imports to pay.
test-fast: $(READY)
	@log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
	TRITON_INTERPRET=1 $(BIN)/pytest -m 'not slow' >"$$log" 2>&1 & kernels=$$!; \
	$(PYTEST) -n 2 -m 'not slow'; others=$$?; \
	wait $$kernels; kernels=$$?; cat "$$log"; exit $$((others | kernels))

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)
	$(BIN)/pytest experiments/bench_*.py --benchmark-enable --benchmark-only

# Every shipped kernel compiled for sm_80, sm_90 and sm_100, without a GPU; unchanged ones come from results/compiled.
kernels: $(READY)
	PYTHONPATH=kernels $(BIN)/python kernels/tools/compile_ahead.py $(addprefix --assembler ,$(wildcard $(CARRIED)/ptxas.xz))

# On a machine with a GPU and no network, with the torch and triton of PYTHON: prove (first) or measure (second).
PHASE ?= first
OUT ?= results/gpu-session
SECONDS_LEFT ?= 280
CARRIED ?= .gpu-session
gpu:
	PYTHONPATH=.:kernels $(PYTHON) kernels/tools/gpu_session.py $(PHASE) --out $(OUT) --seconds $(SECONDS_LEFT) --carried $(CARRIED)

# What such a machine lacks, for CARRIED: packages as wheels for Python 3.12, and an assembler without the wgmma fault.
WHEELS := pydantic pydantic_core annotated-types typing-inspection typing-extensions attrs cyclopts docstring-parser docutils \
	rich-rst lion-pytorch nvidia-ml-py torchao
FETCH := -m pip download --quiet --no-deps --only-binary=:all:
FOR_LINUX := --python-version 3.12 --implementation cp --platform manylinux_2_28_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64
gpu-carry:
	rm -rf $(CARRIED)/wheels $(CARRIED)/assembler && mkdir -p $(CARRIED)/wheels $(CARRIED)/assembler
	$(PYTHON) $(FETCH) $(FOR_LINUX) --constraint constraints.txt --dest $(CARRIED)/wheels $(WHEELS)
	$(PYTHON) $(FETCH) --dest $(CARRIED)/assembler 'nvidia-cuda-nvcc>=13.3'
	unzip -p $(CARRIED)/assembler/*.whl '*/bin/ptxas' | xz -9 > $(CARRIED)/ptxas.xz
	rm -r $(CARRIED)/assembler

# Faults injected into sweeps, against undisturbed runs; NAMES='"disk full"' injects one kind.
faults: $(READY)
	OMP_NUM_THREADS=1 PYTHONPATH=tests $(BIN)/python experiments/faults.py $(NAMES)

# Simulated studies against their intervals; what is already in results/coverage is not run again.
coverage: $(READY)
	$(BIN)/python experiments/coverage_laws.py

report: $(READY)
	$(BIN)/scalebench report results --output results/report.html

# Every study for a CPU but the demo, on one page with an overview first.
FAMILIES := linear mlp attention cnn resnet rnn transformer bert gpt vit moe optimizers depth-residual rnn-vs-transformer sampled \
	data-size inference serving
families: $(READY)
	for study in $(FAMILIES); do $(BIN)/scalebench run $$study --results results/families || exit; done
	$(BIN)/scalebench report results/families --output $(FAMILIES_PAGE) --pictures

# Every study for a CPU of what follows training, each after those that its trials start from; their outcomes come first.
AFTER_TRAINING := lifecycle decay finetune distill prune quantize
LIFECYCLE := $(filter-out %-gpu,$(basename $(notdir $(foreach name,$(AFTER_TRAINING),$(sort $(wildcard studies/$(name)*.toml))))))
lifecycle: $(READY)
	for study in $(LIFECYCLE); do $(BIN)/scalebench run $$study --results results/lifecycle --with-parents || exit; done
	$(BIN)/scalebench report results/lifecycle --output $(LIFECYCLE_PAGE) --pictures

# Every provider of every operation that runs on a CPU, over growing sizes.
COMPARE := $(BIN)/scalebench compare --results results/compare
layer = $(1)x$(1)+$(1)+$(1)x$(1)+$(1)
compare: $(READY)
	$(COMPARE) attention $(foreach t,128 256 512 1024,--shapes batch=1,query_heads=8,key_heads=8,query_length=$(t),key_length=$(t),head_dimension=64,causal=true)
	$(COMPARE) cross-entropy $(foreach v,2048 8192 32768,--shapes tokens=256,width=128,classes=$(v),dtype=float32)
	$(COMPARE) norm $(foreach w,256 1024 4096,--shapes kind=rms,rows=1024,width=$(w),residual=true,dtype=float32)
	$(COMPARE) optimizer $(foreach w,64 256 1024,--shapes name=$(w),shapes=$(call layer,$(w))+$(call layer,$(w)),algorithm=adamw)
	$(BIN)/scalebench report results/compare --output $(COMPARE_PAGE)

# The environment is remade when what it is made from changes.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scalebench needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) results
