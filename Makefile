# make demo: a model of your own in minutes.  make test: everything that CI runs.  make help: the rest.

VENV := .venv
OLDEST := .venv-1.5.5
# Stamps carry where they were made: a virtual environment that was copied along does not count.
HERE := $(shell pwd -P | cksum | cut -d' ' -f1)
# Only what is imported gets compiled, at its first import: that saves half a minute of an installation.
INSTALL := bin/python -m pip install --no-compile
PYTEST ?= -n 2 --dist loadfile
COMMA := ,
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_NO_INPUT := 1
# Each process that trains would compile all it imports: 7 of its 11 seconds.  Images for containers often set it.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo compare venv test test-1.5.5 test-architectures lint bench docs clean

help:
	@echo 'make demo         fine-tune a small model from SQL and see what it learnt: a few minutes'
	@echo 'make compare      prompts, examples and fine-tuning side by side: half an hour; SIZE=small: minutes'
	@echo 'make venv         .venv with sqlft and its handlers'
	@echo 'make test         formatting, lint, types, floors and all tests'
	@echo 'make test-1.5.5   tests without PyTorch, on the oldest versions that pyproject.toml allows'
	@echo 'make test-architectures  every type of base that transformers has: five minutes'
	@echo 'make lint         make test without the tests'
	@echo 'make bench        calls, rows a second, memory and start-up, beside plain DuckDB'
	@echo 'make docs         write into docs/ what is generated from the code'
	@echo 'make clean        remove what these made'
	@echo 'PYTHON=python3.12 chooses the interpreter, PYTEST="-k shapes" is what pytest gets.'

# -- a model of your own ---------------------------------------------------------------------------------------

demo: venv
	@rm -rf .demo && mkdir .demo
	@echo 'The base model: SmolLM2-135M-Instruct'
	@$(VENV)/bin/sqlft pull smollm2-135m
	$(VENV)/bin/sqlft shell .demo/demo.duckdb -f examples/text_to_sql.sql
	@echo 'Its report: text_to_sql_report.html.  Go on with your model: $(VENV)/bin/sqlft shell .demo/demo.duckdb'

# SIZE=small compares a few rows.  COMPARE_MODEL=gpt-6-luna adds a hosted model, of OpenAI or at COMPARE_BASE_URL, with the
# key in COMPARE_API_KEY; COMPARE_TUNE=1 fine-tunes it there as well, where the provider trains it.  Both cost money.
COMPARE := .compare
compare: venv
	@rm -rf $(COMPARE) && mkdir $(COMPARE)
	@$(VENV)/bin/sqlft pull smollm2-135m
	@for f in compare_hosted compare_hosted_tuned; do \
	  sed "s|'gpt-6-luna'|'$(COMPARE_MODEL)'|" examples/$$f.sql > $(COMPARE)/$$f.sql; done
	$(VENV)/bin/sqlft shell $(COMPARE)/compare.duckdb -c "SET VARIABLE size = '$(SIZE)'" -f examples/compare.sql \
	  $(if $(COMPARE_MODEL),-c "CREATE ML_ENGINE hosted FROM openai USING api_key = env('COMPARE_API_KEY')$(if \
	  $(COMPARE_BASE_URL),$(COMMA) base_url = '$(COMPARE_BASE_URL)')" -f $(COMPARE)/compare_hosted.sql) \
	  $(if $(COMPARE_TUNE),-f $(COMPARE)/compare_hosted_tuned.sql) -f examples/compare_tables.sql

# -- environments ----------------------------------------------------------------------------------------------

venv: $(VENV)/run.$(HERE)

$(VENV)/run.$(HERE): pyproject.toml constraints.txt
	@sh .ci/venv $(VENV)
	@echo 'Installing sqlft and its handlers into $(VENV): about a minute'
	$(VENV)/$(INSTALL) -c constraints.txt -e '.[local,openai,ray]'
	@touch $@

$(VENV)/dev.$(HERE): $(VENV)/run.$(HERE)
	@echo 'Installing what tests need into $(VENV)'
	@$(VENV)/bin/python .ci/requirements.py dev > $(VENV)/dev.txt
	$(VENV)/$(INSTALL) -c constraints.txt -r $(VENV)/dev.txt
	@touch $@

$(OLDEST)/test.$(HERE): pyproject.toml constraints.txt
	@sh .ci/venv $(OLDEST)
	@echo 'Installing sqlft with the oldest versions that it works with into $(OLDEST)'
	@$(OLDEST)/bin/python .ci/requirements.py test > $(OLDEST)/test.txt
	@$(OLDEST)/bin/python .ci/requirements.py oldest > $(OLDEST)/oldest.txt
	$(OLDEST)/$(INSTALL) -c $(OLDEST)/oldest.txt -r $(OLDEST)/test.txt -e .
	@touch $@

# -- checks ----------------------------------------------------------------------------------------------------

test: lint
	$(VENV)/bin/python -m pytest $(PYTEST)

test-1.5.5: $(OLDEST)/test.$(HERE)
	$(OLDEST)/bin/python -m pytest --ignore=tests/handlers --ignore=tests/provider $(PYTEST)

test-architectures: $(VENV)/dev.$(HERE)
	$(VENV)/bin/python tests/architectures.py

lint: $(VENV)/dev.$(HERE)
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy
	$(VENV)/bin/mypy benchmarks docs .ci
	$(VENV)/bin/lint-imports

bench: $(VENV)/dev.$(HERE)
	$(VENV)/bin/python benchmarks/startup.py
	$(VENV)/bin/python benchmarks/queries.py

docs: $(VENV)/dev.$(HERE)
	$(VENV)/bin/python docs/generate.py

clean:
	rm -rf $(VENV) $(OLDEST) .demo .compare text_to_sql_report.html .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
