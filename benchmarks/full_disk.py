"""A run whose disk is full in every rule, each time until space is made: ``python -m
benchmarks.full_disk``, as root, which the small tmpfs needs.

Each rule of the tiny embedded subject finds a disk without a free byte, must end with a sentence,
and is run again with space. In the end the metrics are those of a run that never stopped.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from pathlib import Path

from eavatar.preflight.subjects import COLUMNS
from tests.scenes import ROOT
from tests.scenes.small_disk import PLENTY, leave_free, small_disk
from tests.scenes.workflow import run

TARGETS = {  # in the order of the data
    "demo_capture": "raw/morphable_model.h5",
    "check": "check/1.txt",
    "choose_sequences": "capture/sequences.json",
    "calibrate": "capture/cameras.json",
    "ingest": "capture/FREE.csv",
    "matte": "capture/masks/FREE.csv",
    "detect_landmarks": "face/landmarks/FREE.npz",
    "fit_face": "face/fit/identity.npz",
    "refine_face": "face/refine/identity.npz",
    "measure_gaze": "face/gaze/identity.npz",
    "measure_appearance": "face/identity.npz",
    "generate_prior": "prior/raw.ply",
    "align_prior": "prior/aligned.ply",
    "train_sdf": "sdf/full/model.safetensors",
    "train_splat": "splat/full/model.safetensors",
    "evaluate": "tables/full/images.csv",
    "floors": "tables/floors.csv",
    "metrics": "metrics.csv",
    "report": "report.html",
}


def make_project(folder: Path, results: Path) -> Path:
    """A working folder of one tiny subject, whose results are elsewhere."""
    folder.mkdir()
    (folder / "config").symlink_to(ROOT / "config")
    (folder / "results").symlink_to(results)
    row = f"demo,generated,,,,,{ROOT / 'tests/tiny.yaml'}"
    (folder / "subjects.csv").write_text(f"{','.join(COLUMNS)}\n{row}\n")
    return folder


def main() -> None:
    """Print what each rule said, and whether the metrics are the same."""
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        disk, plain = Path(name, "disk"), Path(name, "plain")
        disk.mkdir()
        plain.mkdir()
        with small_disk(disk):
            project = make_project(Path(name, "project"), disk)
            for rule, path in TARGETS.items():
                target = f"results/demo/{path}"
                run(project, target, "--omit-from", rule)
                leave_free(disk, 0)
                status, printed = run(project, target)
                told = re.findall(r"eavatar [a-z-]+: .*", printed)
                print(f"{rule:20}{status}  {told[-1] if told else printed[-600:]}")
                leave_free(disk, PLENTY)
                status, printed = run(project, target)
                if status:
                    raise SystemExit(f"{rule} did not go on: {printed}")
            wanted = ("metrics.csv", "regions.csv")
            run(make_project(Path(name, "other"), plain), "results/demo/metrics.csv")
            for table in wanted:
                same = (disk / "demo" / table).read_bytes() == (plain / "demo" / table).read_bytes()
                print(f"{table:20}{'the same' if same else 'another'}")


if __name__ == "__main__":
    main()
