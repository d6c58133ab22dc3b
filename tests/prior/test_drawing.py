"""The image of an alignment shows where prior and head are apart."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from eavatar.prior.align import build_target
from eavatar.prior.drawing import SIDE, draw_alignment
from eavatar.prior.silhouettes import Silhouettes
from tests.scenes.heads import random_head


def test_what_is_apart_is_red_and_what_fits_is_green(tmp_path: Path) -> None:
    head = random_head(1)
    target = build_target(head.mesh, head.landmarks, Silhouettes((), 0.0), 8000, 0)
    bump = np.where(head.mesh.vertices[:, [1]] > 0.7, [0, 0.3, 0], 0)  # 3 cm of hair on top
    prior = replace(head.mesh, vertices=(head.mesh.vertices + bump).astype(np.float32))
    path = draw_alignment(tmp_path / "a.png", prior, head.mesh, target, 8000, 0)
    image = cv2.imread(str(path))[..., ::-1].astype(int)
    assert image.shape == (SIDE, 4 * SIDE + 12, 3)
    image = image[:, SIDE + 4 : 2 * SIDE + 4]  # the prior from the front
    reddish = image[..., 0] > image[..., 1] + 60
    drawn = (image < 250).any(axis=2)
    top = np.flatnonzero(drawn.any(axis=1))[0]
    assert reddish[top : top + SIDE // 20][drawn[top : top + SIDE // 20]].mean() > 0.8
    middle = slice(SIDE // 2, 3 * SIDE // 4)
    assert reddish[middle][drawn[middle]].mean() < 0.2
