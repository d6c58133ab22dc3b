"""How good ``avatar.html`` is: ``python -m benchmarks.page results/demo``, a minute.

Writes the page and opens it in headless Chromium (on the path, or named by ``EAVATAR_CHROMIUM``),
with WebGL in software. Draws the neutral at the mean pose and the three timesteps of the first
held-out sequence that differ most in expression, in all cameras, at the size of the avatar's coarse
images. PSNR (dB) over the cameras:

page        the page's images against the networks' coarse images
networks    the networks' coarse images against the frames, reduced to their size
to frames   the page's images against these frames
eyes, …     of page, the mean of the cameras that see the region
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from eavatar.avatar.files import load_avatar
from eavatar.avatar.model import Avatar, CameraBatch
from eavatar.cameras import Camera
from eavatar.data.frames import FrameSet
from eavatar.io import read_cameras, read_sequences
from eavatar.splat.image_losses import shrink
from eavatar.tables.regions import PERSON, REGIONS, Head, find_regions, measure_regions
from eavatar.view.page import PageOptions, export_page, pick_distinct
from tests.scenes.chromium import open_page
from tests.scenes.pages import NEUTRAL, PageView, draw_page

EXPRESSIONS = 3


def distinct_timesteps(frames: FrameSet, sequence: str) -> list[int]:
    """The places in the frames of a sequence's timesteps that differ most in expression."""
    places = [i for i, name in enumerate(frames.sequences) if name == sequence]
    rows = frames.expression[places].numpy()
    return [places[number] for number in pick_distinct(rows, EXPRESSIONS)]


@torch.no_grad()
def draw_networks(avatar: Avatar, driving: Tensor, pose: Tensor, cameras: CameraBatch) -> Tensor:
    """The coarse images (C, h, w, 3) of a timestep."""
    return avatar.draw(driving, pose, cameras).features[..., :3].clamp(0, 1)


def psnr(images: Tensor, others: Tensor) -> float:
    """Decibels, of values in [0, 1]."""
    return -10 * float((images - others).square().mean().log10())


def measure(results: Path, page: Path) -> None:
    """Print a line on the neutral and on each expression."""
    avatar = load_avatar(results, device="cpu")
    factor, side = avatar.settings.upsampling, avatar.settings.image_size
    frames = FrameSet.read(results / "capture", results / "face", "test", side)
    every = read_cameras(results / "capture" / "cameras.json").values()
    batch = CameraBatch.of([camera.resize(side, side) for camera in every], avatar.device)
    sequence = read_sequences(results / "capture" / "sequences.json").test[0]
    places = distinct_timesteps(frames, sequence)
    coarse = [camera.resize(side // factor, side // factor) for camera in every]
    timesteps = [NEUTRAL, *(frames.timesteps[place] for place in places)]
    with open_page(page.as_uri()) as opened:
        images = draw_page(opened, avatar, [PageView(t, c) for t in timesteps for c in coarse])
    drawn = torch.from_numpy(np.stack(images)).unflatten(0, (len(timesteps), len(coarse)))

    rest = avatar.generator.torso.rest_pose
    neutral = torch.zeros(avatar.settings.head.expression_size)
    columns = "".join(f"{name:>10}" for name in ("page", "networks", "to frames", *REGIONS))
    print(f"{'':14}{columns}")
    print(f"{'neutral':14}{psnr(drawn[0], draw_networks(avatar, neutral, rest, batch)):10.2f}")
    for place, shown in zip(places, drawn[1:], strict=True):
        networks = draw_networks(avatar, frames.driving[place], frames.poses[place], batch)
        truth = shrink(frames.views(place, range(len(coarse))).images, factor)
        values = [psnr(shown, networks), psnr(networks, truth), psnr(shown, truth)]
        values += regional_psnr(shown, networks, frames, place, coarse)
        name = f"{sequence} {frames.timesteps[place]}"
        print(f"{name:14}{''.join(f'{value:10.2f}' for value in values)}")


def regional_psnr(
    shown: Tensor, networks: Tensor, frames: FrameSet, place: int, cameras: Sequence[Camera]
) -> list[float]:
    """Decibels of each region, the mean of the cameras that see it.

    Args:
        shown: (C, h, w, 3).
        networks: likewise.
        frames: of the final images.
        place: of the timestep in them.
        cameras: of the images.
    """
    rotation = Rotation.from_rotvec(frames.rotation[place].numpy()).as_matrix()
    head = Head(frames.landmarks[place].double().numpy(), rotation)
    views = frames.views(place, range(len(cameras)))
    factor = frames.width // cameras[0].width
    masks, visible = (
        (shrink(pixels[..., None], factor)[..., 0] >= PERSON).numpy()
        for pixels in (views.masks, views.visible)
    )
    errors = (shown - networks).square().mean(dim=-1).double()
    found = [
        measure_regions(error, find_regions(head, camera, mask, seen))
        for error, camera, mask, seen in zip(errors, cameras, masks, visible, strict=True)
    ]
    return pd.DataFrame(found).astype(float).mean()[list(REGIONS)].tolist()


def main() -> None:
    """Write the page and measure it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, help="results/<subject>")
    parser.add_argument("--components", type=int, help="blendshapes, 20 if not given")
    given = parser.parse_args()
    with TemporaryDirectory() as folder:
        page = Path(folder) / "avatar.html"
        export_page(given.results, PageOptions(components=given.components, output=page))
        measure(given.results, page)


if __name__ == "__main__":
    main()
