# make demo   set up, then run the embedded subject from raw video to metrics and report
# make test   set up, then run the tests
# make lint   set up, then run the linters and the type checker
# make benchmark  time of a training step, of a frame and of the loader, on the GPU if there is one
# make clean  remove the environment (results stay)

FITS := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	"$$name" $(FITS) 2>/dev/null && echo "$$name" && break; done)
CORES ?= all
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
EXTRAS := capture,face,prior,train,tables,workflow,develop
OPENCV := $(shell grep -o 'opencv-python-headless==[0-9.]*' pyproject.toml | head -n 1)

.PHONY: demo test lint benchmark install clean

demo: install
	$(RUN) snakemake --cores $(CORES) results/demo/metrics.csv results/demo/report.html
	@echo; cat results/demo/metrics.csv; echo
	@echo "The pictures, curves and numbers on one page: results/demo/report.html"

test: install
	$(RUN) python -m pytest -q

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint

benchmark: install
	$(RUN) python -m benchmarks.step
	$(RUN) python -m benchmarks.frame
	$(RUN) python -m benchmarks.loader

install: $(VENV)/installed

# face-alignment asks for opencv-python, whose files would replace those of the headless build and
# need a system OpenGL; the headless build is put back on top.
$(VENV)/installed: pyproject.toml
	@test -n "$(PYTHON)" && "$(PYTHON)" $(FITS) || \
		{ echo "Python 3.11 or 3.12 is needed; name it with: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	$(VENV)/bin/python -m pip install --quiet --no-deps --force-reinstall $(OPENCV)
	@touch $@

clean:
	rm -rf $(VENV)
