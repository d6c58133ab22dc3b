# make demo   set up, then run the embedded subject from raw video to metrics and report
# make test   set up, then run the tests
# make test-oldest  the tests with the oldest versions that pyproject.toml allows, in .venv-oldest
# make test-trellis, test-hunyuan3d  a generator's own code with random weights, on the CPU, in an
#             environment of its own
# make test-environments  each rule in a fresh environment that holds what its file in envs/ pins
# make test-slurm  four tiny subjects on a Slurm of their own, a quarter of an hour on two cores; as
#             root, after apt-get install slurmctld slurmd slurm-client munge rsync
# make lint   set up, then run the linters and the type checker
# make wheel  set up, then build the package into dist/
# make benchmark  time of a training step, of a frame and of the loader, on the GPU if there is one
# make weights  MediaPipe's networks for the tests that need them, from its wheel (35 MB)
# make clean  remove the environment (results stay)

FITS := -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))'
PYTHON ?= $(shell for name in python3 python3.12 python3.11; do \
	"$$name" $(FITS) 2>/dev/null && echo "$$name" && break; done)
CORES ?= all
VENV := .venv
RUN := PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
PIP := $(VENV)/bin/python -m pip install --quiet --constraint constraints.txt
# rembg stands apart: it needs a newer numpy than the rest.
EXTRAS := capture,face,prior,train,tables,view,workflow,cluster,develop

.PHONY: demo test test-oldest test-trellis test-hunyuan3d test-environments test-slurm lint wheel \
	benchmark install weights clean

demo: install
	$(RUN) snakemake --cores $(CORES) results/demo/metrics.csv results/demo/report.html
	@echo; cat results/demo/metrics.csv; echo
	@echo "The pictures, curves and numbers on one page: results/demo/report.html"

test: install weights
	$(RUN) python -m pytest -q

# uv finds the oldest versions; the override leaves out opencv-python, see below.
test-oldest:
	$(PYTHON) -m venv $(VENV)-oldest
	$(VENV)-oldest/bin/python -m pip install --quiet uv
	echo 'opencv-python; python_version < "3"' | $(VENV)-oldest/bin/uv pip install --quiet \
		--python $(VENV)-oldest/bin/python --resolution lowest-direct --override - \
		--editable '.[$(EXTRAS)]'
	$(VENV)-oldest/bin/python -m pytest -q

# The environment borrows PyTorch and what else it can from .venv, by a file of paths.
test-trellis test-hunyuan3d: test-%: install
	$(VENV)/bin/python -m venv $(VENV)-$*
	$(VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(VENV)-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/venv.pth"
	$(VENV)-$*/bin/python -m pip install --quiet --no-deps \
		--requirement tests/prior/$*_on_cpu/requirements.txt
	$(RUN) EAVATAR_GENERATOR_PYTHON="$(CURDIR)/$(VENV)-$*/bin/python" \
		python -m pytest -q tests/prior/test_$*_contract.py

# 8 GB: uv links what several environments have.
test-environments: install
	mkdir -p $(VENV)-environments
	$(RUN) EAVATAR_ENVIRONMENTS="$(CURDIR)/$(VENV)-environments" \
		python -m pytest -q tests/test_fresh_environments.py

test-slurm: install
	$(RUN) EAVATAR_SLURM=1 python -m pytest -q tests/cluster

lint: install
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(RUN) snakefmt --check Snakefile workflow
	$(RUN) snakemake --lint

wheel: install
	$(RUN) python -m pip wheel --quiet --no-deps --wheel-dir dist .

benchmark: install
	$(RUN) python -m benchmarks.step
	$(RUN) python -m benchmarks.frame
	$(RUN) python -m benchmarks.loader

install: $(VENV)/installed

# Offline the tests that need the networks are skipped.
NETWORKS := models/mediapipe
weights: $(NETWORKS)/selfie_segmentation.tflite

$(NETWORKS)/selfie_segmentation.tflite: | $(VENV)/installed
	-$(RUN) python -m pip download --quiet --no-deps --dest models mediapipe==0.10.21
	-$(RUN) python -m eavatar unpack-weights models/mediapipe-0.10.21-*.whl --output $(NETWORKS)
	rm -f models/mediapipe-0.10.21-*.whl

# face-alignment asks for opencv-python, whose files would replace those of the headless build and
# need a system OpenGL; the headless build is put back on top.
$(VENV)/installed: pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" $(FITS) || \
		{ echo "Python 3.11 or 3.12 is needed; name it with: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[$(EXTRAS),rembg]'
	$(PIP) --no-deps --force-reinstall opencv-python-headless
	@touch $@

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-trellis $(VENV)-hunyuan3d $(VENV)-environments
