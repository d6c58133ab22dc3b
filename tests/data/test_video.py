"""Videos: what is written is read again, and a failure leaves nothing behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from eavatar.data.video import write_video

SMOOTH = np.add.outer(np.arange(48), np.arange(64)) * 2
IMAGES = [np.clip(SMOOTH - 20 * step, 0, 255).astype(np.uint8) for step in range(5)]


def read(path: Path, pixel_format: str) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format=pixel_format) for frame in container.decode(video=0)]


def test_masks_of_quality_zero_come_back_unchanged(tmp_path: Path) -> None:
    masks = [np.where(image > 90, 255, 0).astype(np.uint8) for image in IMAGES]
    write_video(tmp_path / "masks.mp4", masks, 24, "gray", "0")
    np.testing.assert_array_equal(read(tmp_path / "masks.mp4", "gray"), masks)


def test_colours_come_back_and_the_rate_is_kept(tmp_path: Path) -> None:
    images = [np.stack([image, image[::-1], 255 - image], axis=-1) for image in IMAGES]
    write_video(tmp_path / "film.mp4", iter(images), 73, "yuv420p", "10")
    found = read(tmp_path / "film.mp4", "rgb24")
    assert len(found) == len(images)
    # Halved chroma and little quantisation; a swap of channels would differ by about a hundred.
    assert np.abs(np.subtract(found, images, dtype=float)).mean() < 4
    with av.open(str(tmp_path / "film.mp4")) as container:
        assert float(container.streams.video[0].average_rate) == pytest.approx(73, abs=0.1)


def test_images_that_fail_halfway_leave_no_file(tmp_path: Path) -> None:
    def images():
        yield IMAGES[0]
        raise RuntimeError("the renderer failed")

    with pytest.raises(RuntimeError, match="the renderer failed"):
        write_video(tmp_path / "film.mp4", images(), 24, "gray", "0")
    assert list(tmp_path.iterdir()) == []


# Noise over a moving wave: the encoder spreads its bits over blocks that predict one another.
WRITE_NOISE = """
import sys
import numpy as np
from pathlib import Path
from eavatar.data.video import write_video
noise = np.random.default_rng(0)
y, x = np.mgrid[:208, :208]
images = [
    (128 + 90 * np.sin((x + 3 * t) / 17) + 6 * noise.uniform(-1, 1, x.shape)).astype(np.uint8)
    for t in range(6)
]
write_video(Path(sys.argv[1]), images, 25, "gray", "14", threads=1)
"""


def test_a_video_does_not_depend_on_what_was_in_memory(tmp_path: Path) -> None:
    for fill in ("85", "170"):  # glibc fills new memory with it
        command = (sys.executable, "-c", WRITE_NOISE, tmp_path / f"{fill}.mp4")
        subprocess.run(command, check=True, env={**os.environ, "MALLOC_PERTURB_": fill})
    assert (tmp_path / "85.mp4").read_bytes() == (tmp_path / "170.mp4").read_bytes()
