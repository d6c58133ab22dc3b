"""Rate of the loader alone at full size: ``python -m benchmarks.loader``, about a minute on 16
cores, after the pictures are made.

The pictures are those of `tests.scenes.head_pictures`: a textured blob of head size on a textured
background, with the noise of a good camera, as JPEGs of quality 95, and masks as PNGs. A step asks
for one timestep in four cameras, as training does. Images per second are medians over windows of a
second after a warm-up in which all files come into memory; on CUDA the GPU has the batch when it
counts. A core's share is the rate divided by the number of threads.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch

from eavatar.data.frames import FrameSet
from eavatar.data.images import place_on_white
from eavatar.data.loader import Loader
from eavatar.threads import count_threads
from tests.scenes.head_pictures import write_pictures

VIEWS = 4
WINDOW = 1.0  # seconds
WARM_UP = 3.0  # seconds after the first round
SEED = 0


def read_frames(root: Path, size: int, device: torch.device) -> FrameSet:
    """The pictures with room in memory for the files but not for the pixels."""
    files = sum(path.stat().st_size for path in root.rglob("*.*")) / 2**30
    frames = FrameSet.read(root / "capture", root / "face", "train", size, memory_gb=files)
    if not frames.store.keeps_files:
        raise SystemExit("the pixels fit in the room of the files: ask for more timesteps.")
    return frames.to(device)


def rate(frames: FrameSet, gpu_decoding: bool, seconds: float) -> tuple[float, bool]:
    """Images per second, and whether the GPU decoded them."""

    def run(loader: Loader, step: int, duration: float) -> tuple[int, float]:
        start, first = time.perf_counter(), step
        while time.perf_counter() - start < duration:
            loader.batch(step)
            step += 1
        if frames.expression.is_cuda:
            torch.cuda.synchronize()
        return step, VIEWS * (step - first) / (time.perf_counter() - start)

    with Loader(frames, SEED, 1, VIEWS, gpu_decoding) as loader:
        step = 0
        while len(frames.store.kept) < len(frames) * len(frames.serials):
            loader.batch(step)
            step += 1
        step, _ = run(loader, step, WARM_UP)
        rates = []
        for _ in range(max(1, round(seconds / WINDOW))):
            step, images_per_second = run(loader, step, WINDOW)
            rates.append(images_per_second)
        return statistics.median(rates), loader.gpu_decoding


def milliseconds(work: Callable[[], object]) -> float:
    """Median time of one call on one core."""
    times = []
    for _ in range(21):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def report_parts(root: Path) -> None:
    """Sizes of the files, and what one image costs one core."""
    cv2.setNumThreads(1)
    jpeg = np.fromfile(next(root.rglob("EXP-1/*/00000.jpg")), np.uint8)
    png = np.fromfile(next(root.rglob("masks/EXP-1/*/00000.png")), np.uint8)
    colour = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)
    alpha = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
    image = np.empty((*alpha.shape, 4), np.uint8)
    parts = {
        "JPEG": milliseconds(lambda: cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)),
        "PNG": milliseconds(lambda: cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)),
        "place on white": milliseconds(lambda: place_on_white(colour, alpha, colour, image)),
    }
    print(f"JPEG {jpeg.nbytes / 1e6:.2f} MB, mask {png.nbytes / 1e6:.2f} MB per image")
    print("one core: " + ", ".join(f"{name} {time:.1f} ms" for name, time in parts.items()))


def main() -> None:
    """Print the times of the loader."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--size", type=int, default=2048, help="side of the pictures, pixels")
    parser.add_argument("--timesteps", type=int, default=4)
    parser.add_argument("--cameras", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=10, help="measured for each way")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    options = parser.parse_args()
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(automatic if options.device == "auto" else options.device)
    threads = count_threads()
    print(f"{options.size}², to {device}, {threads} threads, 1 timestep × {VIEWS} cameras a step")
    with tempfile.TemporaryDirectory() as folder:
        root = write_pictures(Path(folder), options.size, options.timesteps, options.cameras)
        report_parts(root)
        whole = read_frames(root, options.size, device)
        for name, frames in (("whole", whole), ("boxed", whole.boxed(64))):
            for wanted in (False, True) if device.type == "cuda" else (False,):
                images, on_gpu = rate(frames, wanted, options.seconds)
                where = "GPU" if on_gpu else "CPU"
                print(
                    f"{name} {frames.height}×{frames.width}, JPEGs decoded on the {where}: "
                    f"{images:.0f} images/s, {images / threads:.1f} per core"
                )


if __name__ == "__main__":
    main()
