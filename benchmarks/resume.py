"""Stage II at full size, killed and resumed: ``python -m benchmarks.resume``, minutes on a GPU.

Trains the `fast` profile on the pictures of `tests.scenes.head_pictures` by the command that users
run, kills it with SIGKILL as soon as the given resume point is there, runs it again to its end, and
looks at every tenth step's loss before and after. Without LPIPS unless its weights are there.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.profiles import read_profile
from eavatar.settings import merge
from tests.scenes.head_pictures import write_pictures
from tests.scenes.splat_scene import write_stage_one

ROOT = Path(__file__).parents[1]
SHOWN = 8  # rows of the log on either side of the kill


def make_command(root: Path, options: argparse.Namespace) -> list[str]:
    """Write all that training reads; returns the command that trains."""
    write_pictures(root, options.size, 2, 16)
    content = read_profile("fast")
    split = {"start": options.kill // 4, "every": options.kill // 4, "stop": options.steps}
    changes = {
        "steps": options.steps,
        "image_size": options.size,
        "surface_points": options.count,
        "lpips_required": False,
        "run": {"checkpoint_every": options.kill // 2},
        "split": split,
    }
    settings, sdf = merge(content["splat"], changes), content["sdf"]
    count = options.count - settings["mouth_points"]
    write_stage_one(root / "sdf", count, settings["width"], sdf["feature_size"], sdf["colour_size"])
    given = {"settings": json.dumps(settings), "seed": "0", "output": str(root / "splat")}
    given |= {name: str(root / name) for name in ("capture", "face", "sdf")}
    flags = [word for name, value in given.items() for word in (f"--{name}", value)]
    return [sys.executable, "-m", "eavatar", "train-splat", *flags]


def run_until(command: list[str], checkpoint: Path) -> float:
    """Run until the file is there, then kill; seconds until then."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, cwd=ROOT)
    while not checkpoint.exists():
        if process.poll() is not None:
            raise SystemExit(f"training ended with {process.returncode} before {checkpoint.name}")
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return time.perf_counter() - begin


def main() -> None:
    """Train, kill and resume, at the sizes of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="side of the pictures, pixels")
    parser.add_argument("--count", type=int, default=100_000, help="Gaussians")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--kill", type=int, default=1000, help="at the resume point of this step")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        command = make_command(root, options)
        killed = run_until(command, root / "splat" / "checkpoints" / f"{options.kill:08d}.pt")
        begin = time.perf_counter()
        subprocess.run(command, cwd=ROOT, check=True)
        print(
            f"killed after {killed:.0f} s, resumed and done in {time.perf_counter() - begin:.0f} s"
        )
        log = pd.read_csv(root / "splat" / "log.csv").set_index("step")
    steps = log.index.to_series()
    if not (steps.is_unique and steps.is_monotonic_increasing):
        raise SystemExit("the log has a step twice, or steps out of order")
    if not np.isfinite(log.to_numpy()).all():
        raise SystemExit("the log holds values that are not finite")
    near = log[(steps - options.kill).abs() <= 10 * SHOWN]
    print(near.to_string(float_format="{:.4f}".format))
    before, after = (near[near.index < options.kill], near[near.index >= options.kill])
    print(f"mean loss before {before['loss'].mean():.4f}, after {after['loss'].mean():.4f}")


if __name__ == "__main__":
    main()
