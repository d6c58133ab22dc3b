"""Rate of `ingest` and `matte`, one after the other, on the GPU where there is one:
``python -m benchmarks.matte --capture FOLDER --sequence NAME``.

The capture is one in a layout that the pipeline reads, such as `benchmarks.full_size` makes;
settings are those of config/config.yaml, threads as many as ``OMP_NUM_THREADS`` says. Start-up and
compilation are left out: a round comes before.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from pathlib import Path

from benchmarks.ingest import CONFIG, seconds
from eavatar.capture.ingest import calibrate, ingest
from eavatar.capture.matting import matte
from eavatar.device import choose_device, describe_device
from eavatar.settings import read_config
from eavatar.threads import count_threads


def main() -> None:
    """Print the rates of the second round."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--capture", type=Path, required=True)
    parser.add_argument("--sequence", default="FREE")
    parser.add_argument("--cameras", nargs="+", default=["*"])
    parser.add_argument("--image-size", type=int, help="in place of the configuration's")
    options = parser.parse_args()
    logging.disable()
    config = read_config(CONFIG).capture
    changes = {"sequences": [options.sequence], "cameras": options.cameras}
    if options.image_size:
        changes["image_size"] = options.image_size
    settings = config.ingest.model_copy(update=changes)
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder)
        calibrate(settings, options.capture, frames)

        def run_ingest() -> None:
            ingest(settings, options.capture, options.sequence, frames)

        def run_matte() -> None:
            matte(config.matte, settings, frames, options.sequence, None, frames / "masks")

        run_ingest()
        run_matte()
        times = {"ingest": seconds(run_ingest), "matte": seconds(run_matte)}
        images = len(list((frames / options.sequence).rglob("*.jpg")))
    print(
        f"{images} images of {settings.image_size}², every {settings.every}, "
        f"{describe_device(choose_device())}, {count_threads()} threads"
    )
    for name, value in times.items():
        print(f"{name}: {images / value:.1f} images/s")
    print(f"one after the other: {images / sum(times.values()):.1f} images/s")


if __name__ == "__main__":
    main()
