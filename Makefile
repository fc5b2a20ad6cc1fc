# The habits of this project. The first target makes .venv (once, and again when a requirement changes).
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
# The smallest machine that runs the tests has two cores: two workers of one thread each, or one command of two threads.
WORKERS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile
THREADS := OMP_NUM_THREADS=2

.PHONY: run test check format bench docs torture clean

run: $(STAMP)
	$(BIN)/chinchilla run --budget 5m

test: $(STAMP)
	$(WORKERS) --durations=10

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)
	@for name in backtest calibration forms fit_speed coverage planning design multiplier model_step train_speed decode_speed equal_time; do echo "== bench/$$name.py"; $(BIN)/python bench/$$name.py || exit 1; done

docs: $(STAMP)
	$(BIN)/python docs/make_pages.py
	$(BIN)/python docs/make_laws_page.py
	$(BIN)/python docs/make_fit_page.py
	$(BIN)/python docs/make_prompts_page.py

torture: $(STAMP)
	$(THREADS) $(BIN)/python -m pytest -m torture

clean:
	rm -rf .venv dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache

# A virtual environment on a path that moved or whose making was interrupted has no stamp and is made anew.
$(STAMP): pyproject.toml constraints.txt
	@[ -f $@ ] || rm -rf .venv
	[ -d .venv ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e ".[dev]" -c constraints.txt
	@touch $@
