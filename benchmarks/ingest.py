"""Rate of `ingest` and its share of the codecs' own: ``python -m benchmarks.ingest``, about two
minutes on 2 cores.

The capture is a NeRSemble v2 one that is made first: moving noise on a smooth picture, 2200×3208,
H.264, or one that is given (``--capture``). `ingest` runs with the settings of config/config.yaml.
Its measure is the least that such a job must do, on the same files with as many threads, one per
camera: PyAV decodes all frames and turns those that are kept to BGR; OpenCV encodes pictures as
`ingest` wrote them and writes them to files. Both are timed in turn, several times; the median of
each counts, and the share is the rates' quotient. Compilation is left out: a round comes before.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np

from eavatar.capture.captures import open_capture
from eavatar.capture.ingest import ingest
from eavatar.capture.nersemble import FULL_SIZE
from eavatar.settings import IngestSettings, read_config
from eavatar.threads import count_threads, make_pool

CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
SEQUENCE = "EXP-1-head"
SERIALS = ("222200036", "222200037", "222200038", "222200039")
NOISE = 2.0  # levels of the sensor, as in a good camera
CRF = "26"  # 28 kB a frame; a NeRSemble video of 8.7 MB has less


def write_capture(root: Path, frames: int, cameras: int) -> Path:
    """A capture of full-size videos, all of the same frames."""
    serials = SERIALS[:cameras]
    pose = np.diag([1.0, -1.0, -1.0, 1.0])
    pose[2, 3] = 1.0
    focal, (width, height) = 8200.0, FULL_SIZE
    content = {
        "world_2_cam": {serial: pose.tolist() for serial in serials},
        "intrinsics": [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]],
    }
    calibration = root / "calibration"
    calibration.mkdir(parents=True)
    (calibration / "camera_params.json").write_text(json.dumps(content))
    gains = {serial: np.diag([1.05, 1.0, 0.93]).tolist() for serial in serials}
    (calibration / "color_calibration.json").write_text(json.dumps(gains))
    folder = root / "sequences" / SEQUENCE / "images"
    folder.mkdir(parents=True)
    write_video(folder / f"cam_{serials[0]}.mp4", frames)
    for serial in serials[1:]:
        (folder / f"cam_{serial}.mp4").write_bytes((folder / f"cam_{serials[0]}.mp4").read_bytes())
    return root


def write_video(path: Path, frames: int) -> None:
    """A picture with soft edges, of the tints from a blue wall to skin, that moves, with noise."""
    rng = np.random.default_rng(0)
    width, height = FULL_SIZE
    tint, light = rng.uniform(size=(2, 24, 16, 1))
    coarse = (20 + 200 * light) * (tint * [1.0, 0.95, 0.9] + (1 - tint) * [0.6, 0.75, 1.0])
    picture = cv2.resize(coarse.astype(np.float32), FULL_SIZE, interpolation=cv2.INTER_LINEAR)
    noise = rng.normal(0, NOISE, (height + 64, width + 64, 3)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=73, options={"crf": CRF, "preset": "fast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            y, x = rng.integers(0, 64, 2)
            frame = np.roll(picture, 2 * index, axis=1) + noise[y : y + height, x : x + width]
            pixels = np.clip(frame, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="bgr24")))
        container.mux(stream.encode())


def seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decode(path: Path, every: int) -> int:
    """Decode a video with PyAV; the number of frames that were turned to BGR."""
    kept = 0
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index % every == 0:
                frame.to_ndarray(format="bgr24")
                kept += 1
    return kept


def main() -> None:
    """Measure the capture of the command line, or one that is made."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--capture", type=Path, help="a NeRSemble capture; else one is made")
    parser.add_argument("--sequence", default=SEQUENCE)
    parser.add_argument("--frames", type=int, default=48, help="of the capture that is made")
    parser.add_argument("--image-size", type=int, help="in place of the configuration's")
    parser.add_argument("--every", type=int, help="in place of the configuration's")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    logging.disable()
    given = {"image_size": options.image_size, "every": options.every}
    settings = read_config(CONFIG).capture.ingest.model_copy(
        update={key: value for key, value in given.items() if value}
    )
    with tempfile.TemporaryDirectory() as folder:
        root = options.capture or write_capture(Path(folder) / "raw", options.frames, len(SERIALS))
        report(settings, root, options.sequence, Path(folder) / "capture", options.rounds)


def report(settings: IngestSettings, root: Path, sequence: str, output: Path, rounds: int) -> None:
    """Time ingest, decoding and encoding in turn and print the rates."""
    threads = count_threads()
    paths = [clip.paths[0] for clip in open_capture(root).frames[sequence].values()]
    quality = [cv2.IMWRITE_JPEG_QUALITY, settings.jpeg_quality]
    ingest(settings, root, sequence, output)
    pictures = {
        path.stem.removeprefix("cam_"): cv2.imread(
            str(output / sequence / path.stem.removeprefix("cam_") / "00000.jpg")
        )
        for path in paths
    }
    images = len(list((output / sequence).rglob("*.jpg")))

    def decode_kept(path: Path) -> int:
        return decode(path, settings.every)

    def encode(serial: str) -> None:
        for index in range(images // len(paths)):
            path = output / f"{serial}_{index}.jpg"
            cv2.imwrite(str(path), pictures[serial], quality)

    times: dict[str, list[float]] = {"ingest": [], "PyAV": [], "OpenCV": []}
    with make_pool() as pool:
        for _ in range(rounds):
            times["ingest"].append(seconds(lambda: ingest(settings, root, sequence, output)))
            times["PyAV"].append(seconds(lambda: list(pool.map(decode_kept, paths))))
            times["OpenCV"].append(seconds(lambda: list(pool.map(encode, pictures))))
    median = {name: statistics.median(values) for name, values in times.items()}
    least = median["PyAV"] + median["OpenCV"]
    print(
        f"{images} images of {settings.image_size}², every {settings.every}, {len(paths)} cameras, "
        f"{threads} threads"
    )
    for name, value in median.items():
        print(f"{name}: {images / value:.1f} images/s")
    print(
        f"PyAV and OpenCV one after the other: {images / least:.1f} images/s; "
        f"ingest reaches {least / median['ingest']:.0%} of it"
    )


if __name__ == "__main__":
    main()
