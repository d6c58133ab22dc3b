"""Files of made-up morphable models in the layouts of both Basel models."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from eavatar.errors import UserError
from eavatar.face.layout import AVERAGE_FACE
from eavatar.face.morphable import read_morphable_model

VERTICES, IDENTITY, EXPRESSION = 90, 4, 3


def random_parts() -> dict[str, np.ndarray]:
    """A made-up model in millimetres: orthonormal bases, variances, faces, landmarks."""
    random = np.random.default_rng(0)
    bases = [np.linalg.qr(random.normal(size=(3 * VERTICES, n)))[0] for n in (IDENTITY, EXPRESSION)]
    mean, landmarks = random.normal(0, 60, (VERTICES, 3)), random.permutation(VERTICES)[:68]
    mean[landmarks] = AVERAGE_FACE
    return {
        "mean": mean.ravel(),
        "expression_mean": random.normal(0, 1, 3 * VERTICES),
        "identity": bases[0],
        "expression": bases[1],
        "identity_variance": random.uniform(100, 1000, IDENTITY),
        "expression_variance": random.uniform(100, 1000, EXPRESSION),
        "faces": random.integers(0, VERTICES, (50, 3)),
        "landmarks": landmarks,
        "colours": random.uniform(0, 1, 3 * VERTICES),
    }


def write_2017(path: Path, parts: dict[str, np.ndarray], landmarks: bool = True) -> Path:
    """All that the published .h5 files hold, in float32 and millimetres; vertices from 0."""
    with h5py.File(path, "w") as file:
        for group, mean, name in (
            ("shape", "mean", "identity"),
            ("expression", "expression_mean", "expression"),
            ("color", "colours", "identity"),
        ):
            file[f"{group}/model/mean"] = parts[mean].astype(np.float32)
            file[f"{group}/model/pcaBasis"] = parts[name].astype(np.float32)
            file[f"{group}/model/pcaVariance"] = parts[f"{name}_variance"].astype(np.float32)
            file[f"{group}/model/noiseVariance"] = np.float32(0)
            file[f"{group}/representer/points"] = parts["mean"].reshape(-1, 3).T.astype(np.float32)
            file[f"{group}/representer/cells"] = parts["faces"].T.astype(np.int32)
        tip = {"id": "center.nose.tip", "coordinates": parts["mean"][:3].tolist()}
        file["metadata/landmarks/json"] = np.array([json.dumps([tip]).encode()], dtype=object)
        if landmarks:
            file["landmarks68/vertex_index"] = parts["landmarks"].astype(np.int32)
    return path


def contents_2009(parts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All that BFM09_model_info.mat holds: decimetres, deviations in the bases, vertices from 1."""

    def scaled(name: str) -> np.ndarray:
        return parts[name] * np.sqrt(parts[f"{name}_variance"]) / 100

    faces = parts["faces"] + 1
    return {
        "meanshape": (parts["mean"] + parts["expression_mean"])[None] / 100,
        "meantex": parts["colours"][None] * 255,
        "idBase": scaled("identity"),
        "exBase": scaled("expression"),
        "texBase": scaled("identity") * 1e3,
        "tri": faces,
        "point_buf": np.ones((VERTICES, 8), dtype=np.int64),
        "tri_mask2": faces[:20],
        "keypoints": parts["landmarks"][None] + 1,
        "frontmask2_idx": np.arange(1, 40)[:, None],
        "skinmask": np.ones((1, VERTICES)),
    }


def write_2009(path: Path, parts: dict[str, np.ndarray]) -> Path:
    scipy.io.savemat(path, contents_2009(parts))
    return path


def refused(path: Path, match: str) -> None:
    """The file is refused in one sentence that names it and says ``match``."""
    with pytest.raises(UserError, match=match) as caught:
        read_morphable_model(path)
    message = str(caught.value)
    assert path.name in message and message.endswith(".") and "\n" not in message
