#!/usr/bin/env bash
# Snakemake runs this once in the environment of face.yaml: face-alignment asks for opencv-python,
# whose files replace those of the headless build and need a system OpenGL; these go on top again.
set -euo pipefail
python -m pip install --no-deps --force-reinstall opencv-python-headless==5.0.0.93
