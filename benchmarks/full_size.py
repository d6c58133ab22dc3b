"""A full-size capture to measure with: ``python -m benchmarks.full_size --output FOLDER``.

The frames of a capture in the NeRSemble v2 layout (``--capture``, or the demo's generator with the
settings of config/config.yaml) are enlarged to 2200×3208 and played to and fro until each sequence
has ``--frames`` of them: 7,500 are 2,500 timesteps with `capture.ingest.every` at 3. Calibration,
morphable model and colours are those of the source, as is the number of cameras; plates and
provided landmarks come along. The videos are H.264 with sensor noise on top, at 28 kB a frame as
NeRSemble's, of which no sequence needs longer than two turns of its source to encode: the rest is
the same packets again, which costs a decoder what others would.

A core encodes about four frames in a second; the disk needs 28 kB for each frame.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from tqdm import tqdm

from benchmarks.ingest import NOISE
from eavatar.arrays import Image, Int64
from eavatar.capture.layouts import BACKGROUND
from eavatar.capture.nersemble import FULL_SIZE, read_v2
from eavatar.capture.video import CameraFrames
from eavatar.demo.capture import demo_capture
from eavatar.face.backends.provided import read_provided
from eavatar.io import Landmarks, atomic, write_arrays
from eavatar.settings import DemoSettings, read_yaml
from eavatar.threads import make_pool

CONFIG = Path(__file__).parents[1] / "config" / "config.yaml"
RATE = 73  # frames per second
BYTES = 28_000  # per frame
SHIFT = 64  # pixels by which the noise is moved from frame to frame, at most
CALIBRATION = "calibration"
PLAIN = ("morphable_model.h5",)  # files beside the calibration that are taken over as they are


def play_to_and_fro(count: int, length: int) -> Int64:
    """Indices (length,) of frames played forwards, backwards, forwards, …; none twice in a row.

    Args:
        count: of different frames.
        length: of frames wanted.
    """
    turn = np.arange(count) if count == 1 else np.r_[0 : count - 1, count - 1 : 0 : -1]
    return np.resize(turn, length)


def enlarge_capture(
    source: Path, output: Path, frames: int, size: tuple[int, int] = FULL_SIZE
) -> None:
    """Write a capture whose sequences all have so many frames, see the module.

    Args:
        source: a capture in the NeRSemble v2 layout.
        output: folder of the new one; files in it are replaced.
        frames: of each sequence.
        size: width and height of the images.
    """
    capture = read_v2(source)
    shutil.copytree(source / CALIBRATION, output / CALIBRATION, dirs_exist_ok=True)
    for name in filter(lambda name: (source / name).exists(), PLAIN):
        shutil.copy(source / name, output / name)
    for serial, path in capture.plates.items():
        plate = output / "sequences" / BACKGROUND / f"image_{serial}.jpg"
        plate.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(plate), _enlarge(cv2.imread(str(path)), size))
    for path in sorted((source / "landmarks").glob("*.npz")):
        _lengthen_landmarks(path, output / "landmarks" / path.name, frames)
    jobs = [
        (camera, output / "sequences" / sequence / "images" / f"cam_{serial}.mp4")
        for sequence, cameras in capture.frames.items()
        for serial, camera in cameras.items()
    ]
    with make_pool() as pool:
        done = pool.map(lambda job: write_video(*job, frames, size), jobs)
        for _ in tqdm(done, total=len(jobs), desc="videos", unit="video"):
            pass


def _lengthen_landmarks(source: Path, output: Path, frames: int) -> None:
    serials, points, confidence = read_provided(source)
    order = play_to_and_fro(len(points), frames)
    found = Landmarks(
        np.array(serials), points[order].astype(np.float32), confidence[order].astype(np.float32)
    )
    write_arrays(output, found)


def write_video(camera: CameraFrames, path: Path, frames: int, size: tuple[int, int]) -> None:
    """Write one camera's video of so many frames; arguments as of `enlarge_capture`."""
    count = camera.header().frames
    order = play_to_and_fro(count, min(frames, max(2 * count - 2, 1)))
    noise = _noise(size)
    with atomic(path) as temporary, av.open(str(temporary), "w") as container:
        # Without B-frames the packets are in the order of the frames and may end anywhere.
        options = {"preset": "fast", "bf": "0"}
        stream = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height = size
        stream.pix_fmt, stream.bit_rate = "yuv420p", 8 * BYTES * RATE
        stream.thread_count = 1  # the videos are written side by side
        packets = []
        for image in _ordered(camera, order):
            larger = np.clip(_enlarge(image, size) + next(noise), 0, 255).astype(np.uint8)
            packets += stream.encode(av.VideoFrame.from_ndarray(larger, format="bgr24"))
        packets += stream.encode()
        for index in range(frames):
            first = packets[index % len(packets)]
            packet = av.Packet(bytes(first))
            packet.stream, packet.is_keyframe = stream, first.is_keyframe
            packet.pts, packet.dts, packet.time_base = index, index, Fraction(1, RATE)
            container.mux(packet)


def _ordered(camera: CameraFrames, order: Sequence[int] | Int64) -> Iterator[Image]:
    """The images of a video in another order."""
    images = [image for _, image in camera.decode()]
    for index in order:
        yield images[index]


def _noise(size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Endlessly, noise (H, W, 3) of a sensor in levels."""
    (width, height), random = size, np.random.default_rng(0)
    table = random.normal(0, NOISE, (height + SHIFT, width + SHIFT, 3)).astype(np.float32)
    while True:
        y, x = random.integers(0, SHIFT, 2)
        yield table[y : y + height, x : x + width]


def _enlarge(image: Image, size: tuple[int, int]) -> Image:
    enlarged: Image = cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)
    return enlarged


def main() -> None:
    """Make the capture."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--capture", type=Path, help="a NeRSemble v2 capture, else the demo's")
    parser.add_argument("--output", type=Path, required=True, help="folder of the new capture")
    parser.add_argument("--frames", type=int, default=7500, help="of each sequence")
    a = parser.parse_args()
    if a.capture:
        enlarge_capture(a.capture, a.output, a.frames)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        settings = DemoSettings.model_validate(read_yaml(CONFIG)["capture"]["demo"])
        enlarge_capture(demo_capture(settings, 0, root / "raw", root / "truth"), a.output, a.frames)


if __name__ == "__main__":
    main()
