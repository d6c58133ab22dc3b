"""Render the held-out frames and measure every image.

Self-reenactment: the avatar of a subject, driven by the tracked expression and pose of sequences
it was not trained on, against what the cameras recorded, for all cameras. A second protocol
renders the same poses with the expression frozen at neutral: the difference is what the
expression adds.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from eavatar.avatar.model import Avatar, read_avatar
from eavatar.data.frames import FrameSet
from eavatar.device import choose_device
from eavatar.io import atomic
from eavatar.settings import EvaluateSettings
from eavatar.tables.drawing import compare, order_along_arc, write_picture
from eavatar.tables.metrics import psnr, ssim, whiten_padding
from eavatar.training.perceptual import Perceptual, load_perceptual

EXPRESSION_FACTORS = {"self_reenactment": 1.0, "neutral_expression": 0.0}
PICTURED = "self_reenactment"


def evaluate(
    settings: EvaluateSettings, capture: Path, face: Path, avatar: Path, output: Path
) -> Path:
    """Measure an avatar on the test split: the whole head with shoulders, on white, all cameras.

    Writes ``output/images.csv``, a row per protocol, timestep and camera in that order: protocol,
    sequence, timestep, camera, psnr_db, ssim, lpips (empty without LPIPS' weights); and
    ``output/pictures/<sequence>_<timestep>_<camera>.png``: truth, render and error side by side.
    Images have the size that the avatar was trained for. The render is never masked by the
    truth's matte, which would hide what is drawn outside it. Views whose mask has failed are left
    out.

    Args:
        capture: ``results/<subject>/capture``; face: ``results/<subject>/face``.
        avatar: the folder of a trained avatar, ``results/<subject>/splat/<variant>``.
    """
    device = choose_device()
    perceptual = load_perceptual(settings.lpips_net, device, settings.lpips_required)
    model = read_avatar(avatar).to(device)
    frames = FrameSet.read(capture, face, "test", model.settings.image_size).to(device)
    pictures = choose_pictures(frames, settings.pictures)
    folder = output / "pictures"
    for stale in folder.glob("*.png"):
        stale.unlink()
    rows: dict[str, list[pd.DataFrame]] = {protocol: [] for protocol in EXPRESSION_FACTORS}
    for frame in tqdm(range(len(frames)), desc="evaluate", unit="timestep"):
        cameras = frames.usable_cameras(frame)
        views = frames.views(frame, cameras)
        truths = whiten_padding(views.images, views.visible)
        for protocol, factor in EXPRESSION_FACTORS.items():
            renders = whiten_padding(_render(model, frames, frame, cameras, factor), views.visible)
            figures = _measure(perceptual, renders, truths, views.visible)
            figures.insert(0, "camera", [frames.serials[camera] for camera in cameras])
            figures.insert(0, "timestep", frames.timesteps[frame])
            figures.insert(0, "sequence", frames.sequences[frame])
            figures.insert(0, "protocol", protocol)
            rows[protocol].append(figures)
            if protocol == PICTURED:
                for camera in pictures.get(frame, []):
                    name = f"{frames.sequences[frame]}_{frames.timesteps[frame]:05d}"
                    place = cameras.index(camera)
                    strip = compare(truths[place].cpu().numpy(), renders[place].cpu().numpy())
                    write_picture(folder / f"{name}_{frames.serials[camera]}.png", strip)
    table = pd.concat([part for parts in rows.values() for part in parts])
    with atomic(output / "images.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6f")
    return output


def choose_pictures(frames: FrameSet, count: int) -> dict[int, list[int]]:
    """Which cameras to keep a picture of, per frame: strong expressions, spread over time and view.

    The frames are cut into as many runs as there are pictures, and each run gives the frame whose
    expression coefficients have the largest norm. The strongest of them is seen from the middle of
    the arc around the head, the next from half-way to its sides, and so on.
    """
    centres = np.linalg.inv(frames.world_to_camera.cpu().numpy())[:, :3, 3]
    strength = frames.expression.norm(dim=1).cpu().numpy()
    runs = np.array_split(np.arange(len(frames)), min(count, len(frames)))
    strongest = [int(run[strength[run].argmax()]) for run in runs]
    strongest.sort(key=lambda frame: -strength[frame])
    chosen: dict[int, list[int]] = {}
    for picture in range(count):
        frame = strongest[picture % len(strongest)]
        rotation, translation = frames.rotation[frame].cpu(), frames.translation[frame].cpu()
        order = order_along_arc(centres, rotation.numpy(), translation.numpy())
        arc = [camera for camera in order if frames.usable[frame, camera]]
        camera = arc[int(_radical_inverse(picture + 1) * len(arc))]
        if camera not in chosen.setdefault(frame, []):
            chosen[frame].append(camera)
    return chosen


def _render(
    model: Avatar, frames: FrameSet, frame: int, cameras: list[int], factor: float
) -> Tensor:
    return model.render(
        factor * frames.expression[frame],
        frames.rotation[frame],
        frames.translation[frame],
        frames.intrinsics[cameras],
        frames.world_to_camera[cameras],
    )


def _measure(
    perceptual: Perceptual | None, renders: Tensor, truths: Tensor, visible: Tensor
) -> pd.DataFrame:
    with torch.no_grad():
        lpips = perceptual(renders, truths).cpu().numpy() if perceptual else np.nan
    arrays = [tensor.cpu().numpy() for tensor in (renders, truths, visible)]
    return pd.DataFrame({"psnr_db": psnr(*arrays), "ssim": ssim(*arrays), "lpips": lpips})


def _radical_inverse(number: int) -> float:
    """The binary digits behind the point, mirrored: 1/2, 1/4, 3/4, 1/8, … fill (0, 1) evenly."""
    value, weight = 0.0, 0.5
    while number:
        value += weight * (number & 1)
        number, weight = number >> 1, weight / 2
    return value
