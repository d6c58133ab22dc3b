"""Training of stage II beside busy processes: ``python -m benchmarks.busy``, a few minutes.

The verb `train-splat` trains at the size of the demo, first on a machine that should be quiet, then
beside one single-threaded busy process for each core. Printed are the steps per second of both and
their ratio. With fair shares of the cores the ratio would be a half; a training whose threads spin
while they wait for one another falls far below.

``--checkout FOLDER`` measures the code of another checkout, with the same scene and the settings
that it has. OMP_NUM_THREADS and its like are taken away, so that the training takes all cores.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

HERE = Path(__file__).parents[1]
WARM_UP = 20  # steps, which compile
SETTLING = 10  # steps after the busy processes have started
BUSY = "while True: pass"


def write_task(root: Path) -> None:
    """Write a subject below a folder and its training's settings, with the packages in reach."""
    from eavatar.settings import merge, read_yaml
    from tests.scenes.splat_scene import write_subject

    profile = merge(*(read_yaml(Path("config", f"{name}.yaml")) for name in ("config", "demo")))
    sdf = profile["sdf"]
    write_subject(
        root, timesteps=8, views=4, size=256, vertices=20_000,
        width=sdf["width"], features=sdf["feature_size"], colours=sdf["colour_size"],
    )  # fmt: skip
    (root / "settings.json").write_text(json.dumps(profile["splat"]))


def environment(checkout: Path) -> dict[str, str]:
    """The environment of a checkout's processes, without what this one says of threads."""
    of_threads = re.compile("OMP_|KMP_|NUMBA_|.*_THREADS")
    kept = {name: value for name, value in os.environ.items() if not of_threads.match(name)}
    return {**kept, "PYTHONPATH": str(checkout)}


@contextmanager
def started(command: list[str], checkout: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a checkout that ends with the block."""
    process = subprocess.Popen(
        command, cwd=checkout, env=environment(checkout), stderr=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def read_steps(process: subprocess.Popen[bytes]) -> Iterator[tuple[int, float]]:
    """The steps done and the time, whenever the progress bar of a training moves."""
    assert process.stderr is not None
    seen, text = 0, ""
    while part := os.read(process.stderr.fileno(), 2**16):
        text = (text + part.decode(errors="replace"))[-(2**16) :]
        for found in re.findall(r"(\d+)/\d+ \[", text):
            if int(found) > seen:
                seen = int(found)
                yield seen, time.perf_counter()
    raise SystemExit(f"the training ended:\n{text}")


def measure(progress: Iterator[tuple[int, float]], skipped: int, seconds: float) -> float:
    """Steps per second over a time at least, after some steps are skipped."""
    first, _ = next(progress)
    start, begin = next(point for point in progress if point[0] >= first + skipped)
    step, now = next(point for point in progress if point[1] >= begin + seconds)
    return (step - start) / (now - begin)


def train(checkout: Path, root: Path) -> list[str]:
    """The command that trains on what `write_task` wrote."""
    command = [sys.executable, "-m", "eavatar", "train-splat", "--seed", "0"]
    for name in ("capture", "face", "sdf", "output"):
        command += [f"--{name}", str(root / name)]
    return [*command, "--settings", (root / "settings.json").read_text()]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkout", type=Path, default=HERE, help="whose code; this one")
    parser.add_argument("--seconds", type=float, default=60, help="of each of the two measurements")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write_task(options.write)
        return
    checkout, cores = options.checkout.resolve(), len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        root = Path(folder)
        write = [sys.executable, str(Path(__file__).resolve()), "--write", str(root)]
        subprocess.run(write, cwd=checkout, env=environment(checkout), check=True)
        progress = read_steps(stack.enter_context(started(train(checkout, root), checkout)))
        quiet = measure(progress, WARM_UP, options.seconds)
        print(f"{cores} cores, quiet: {quiet:.2f} steps/s", flush=True)
        for _ in range(cores):
            stack.enter_context(started([sys.executable, "-c", BUSY], checkout))
        busy = measure(progress, SETTLING, options.seconds)
    print(
        f"beside {cores} busy processes: {busy:.2f} steps/s, {busy / quiet:.0%} of it", flush=True
    )


if __name__ == "__main__":
    main()
