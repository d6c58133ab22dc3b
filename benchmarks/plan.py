"""Time and memory of planning a run of hundreds of subjects, ``snakemake -n``: ``python -m
benchmarks.plan --subjects 425 [--variants]``.

The sheet lists links to one small capture of a few sequences; jobs grow with these, too.
"""

from __future__ import annotations

import argparse
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.scenes import CONFIG, ROOT
from tests.scenes.small_setup import write_subject

HEADER = "subject,capture,morphable_model,landmarks,settings"


def write_sheet(folder: Path, count: int) -> None:
    """``subjects.csv`` in a folder, with one capture and a link to it for each subject."""
    write_subject(folder / "one")
    (folder / "links").mkdir()
    (folder / "overlay.yaml").write_text("capture: {ingest: {every: 1}}\n")
    rows = []
    for number in range(count):
        (folder / "links" / f"{number}").symlink_to(folder / "one" / "capture")
        rows.append(f"s{number},links/{number},one/model.h5,one/landmarks,overlay.yaml")
    (folder / "subjects.csv").write_text("\n".join([HEADER, *rows]) + "\n")


def plan(folder: Path, variants: bool) -> str:
    """What a dry run in the folder took."""
    command = [sys.executable, "-m", "snakemake", "--snakefile", str(ROOT / "Snakefile")]
    command += ["--cores", "1", "-n", "--config", "subjects=subjects.csv"]
    overlays = ["config.yaml", "variants.yaml"] if variants else []
    if overlays:
        command += ["--configfile", *(str(CONFIG / name) for name in overlays)]
    (folder / "config").symlink_to(CONFIG)
    started = time.perf_counter()
    printed = subprocess.run(command, cwd=folder, check=True, text=True, capture_output=True)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e9
    jobs = re.search(r"^total +(\d+)$", printed.stdout, re.MULTILINE)
    return f"{jobs[1] if jobs else 'no'} jobs, {seconds:.1f} s, {peak:.2f} GB"


def main() -> None:
    """Print jobs, seconds and memory."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--subjects", type=int, default=425, help="rows of the sheet")
    parser.add_argument("--variants", action="store_true", help="with those of the paper's tables")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        write_sheet(Path(name), a.subjects)
        print(f"{a.subjects} subjects: {plan(Path(name), a.variants)}")


if __name__ == "__main__":
    main()
