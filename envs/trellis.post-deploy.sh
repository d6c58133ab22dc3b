#!/usr/bin/env bash
# Adds TRELLIS' code, which is no package, to the environment of trellis.yaml. Snakemake runs this
# when it has made the environment; by hand it is run in the activated environment.
set -euo pipefail

commit=6b0d64751ad54d9c32d7b05fec482eb29178f56f
code="${CONDA_PREFIX:-$VIRTUAL_ENV}/share/TRELLIS"

rm -rf "$code"
git clone --quiet https://github.com/microsoft/TRELLIS.git "$code"
git -C "$code" checkout --quiet "$commit"
git -C "$code" submodule --quiet update --init trellis/representations/mesh/flexicubes
packages=$(python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$code" > "$packages/trellis.pth"
