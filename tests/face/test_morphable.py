"""Readers of both Basel layouts, the canonical frame, and every refusal."""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io

from eavatar.errors import UserError
from eavatar.face.morphable import LANDMARK_CENTROID, read_morphable_model

VERTICES, IDENTITY, EXPRESSION = 90, 4, 3


def random_parts() -> dict[str, np.ndarray]:
    """A made-up model in millimetres: orthonormal bases, variances, faces, landmarks."""
    random = np.random.default_rng(0)
    bases = [np.linalg.qr(random.normal(size=(3 * VERTICES, n)))[0] for n in (IDENTITY, EXPRESSION)]
    return {
        "mean": random.normal(0, 60, 3 * VERTICES),
        "expression_mean": random.normal(0, 1, 3 * VERTICES),
        "identity": bases[0],
        "expression": bases[1],
        "identity_variance": random.uniform(100, 1000, IDENTITY),
        "expression_variance": random.uniform(100, 1000, EXPRESSION),
        "faces": random.integers(0, VERTICES, (50, 3)),
        "landmarks": random.permutation(VERTICES)[:68],
        "colours": random.uniform(0, 1, 3 * VERTICES),
    }


def write_2017(path: Path, parts: dict[str, np.ndarray], landmarks: bool = True) -> Path:
    with h5py.File(path, "w") as file:
        for group, mean, name in (
            ("shape", "mean", "identity"),
            ("expression", "expression_mean", "expression"),
        ):
            file[f"{group}/model/mean"] = parts[mean].astype(np.float32)
            file[f"{group}/model/pcaBasis"] = parts[name].astype(np.float32)
            file[f"{group}/model/pcaVariance"] = parts[f"{name}_variance"].astype(np.float32)
        file["shape/representer/cells"] = parts["faces"].T.astype(np.int32)
        file["color/model/mean"] = parts["colours"].astype(np.float32)
        if landmarks:
            file["landmarks68/vertex_index"] = parts["landmarks"].astype(np.int32)
    return path


def write_2009(path: Path, parts: dict[str, np.ndarray]) -> Path:
    def scaled(name: str) -> np.ndarray:
        return parts[name] * np.sqrt(parts[f"{name}_variance"]) / 100

    content = {
        "meanshape": (parts["mean"] + parts["expression_mean"])[None] / 100,
        "meantex": parts["colours"][None] * 255,
        "idBase": scaled("identity"),
        "exBase": scaled("expression"),
        "tri": parts["faces"] + 1,
        "keypoints": parts["landmarks"][None] + 1,
    }
    scipy.io.savemat(path, content)
    return path


def test_vertices_follow_the_statismo_formula(tmp_path: Path) -> None:
    parts = random_parts()
    model = read_morphable_model(write_2017(tmp_path / "model.h5", parts))
    coefficients = np.array([1.5, -0.5, 0.25], dtype=np.float32)
    expected = (parts["mean"] + parts["expression_mean"]).reshape(-1, 3) / 100
    expected += np.array(LANDMARK_CENTROID) - expected[parts["landmarks"]].mean(axis=0)
    for k, value in enumerate(coefficients):  # the slow loop: one component at a time
        deviation = np.sqrt(parts["identity_variance"][k])
        expected += value * deviation * parts["identity"][:, k].reshape(-1, 3) / 100
    # float32 storage of values of about 1 dm
    np.testing.assert_allclose(model.vertices(coefficients), expected, atol=1e-5)
    assert model.expression_basis.shape == (VERTICES, 3, EXPRESSION)


def test_both_layouts_give_the_same_model(tmp_path: Path) -> None:
    parts = random_parts()
    first = read_morphable_model(write_2017(tmp_path / "model.h5", parts))
    second = read_morphable_model(write_2009(tmp_path / "BFM09_model_info.mat", parts))
    for name in ("mean", "identity_basis", "expression_basis", "faces", "landmark_vertices"):
        np.testing.assert_allclose(getattr(first, name), getattr(second, name), atol=1e-5)
    assert first.colours is not None and second.colours is not None
    np.testing.assert_allclose(first.colours, second.colours, atol=1e-6)


def test_landmark_indices_beside_the_model(tmp_path: Path) -> None:
    parts = random_parts()
    path = write_2017(tmp_path / "model.h5", parts, landmarks=False)
    with pytest.raises(UserError, match=r"model\.txt"):
        read_morphable_model(path)
    (tmp_path / "model.txt").write_text("1 2 three")
    with pytest.raises(UserError, match="whole numbers"):
        read_morphable_model(path)
    (tmp_path / "model.txt").write_text("1 2 3")
    with pytest.raises(UserError, match="68 vertex indices, not 3"):
        read_morphable_model(path)
    (tmp_path / "model.txt").write_text("\n".join(map(str, parts["landmarks"])))
    np.testing.assert_array_equal(read_morphable_model(path).landmark_vertices, parts["landmarks"])


def test_wrong_formats_are_one_sentence(tmp_path: Path) -> None:
    parts = random_parts()
    flame = tmp_path / "generic_model.pkl"
    flame.write_bytes(b"\x80\x02}q\x00.")
    renamed = tmp_path / "flame.h5"
    renamed.write_bytes(flame.read_bytes())
    other = tmp_path / "other.h5"
    with h5py.File(other, "w") as file:
        file["weights"] = np.zeros(3)
    truncated = write_2017(tmp_path / "truncated.h5", parts)
    truncated.write_bytes(truncated.read_bytes()[:5000])
    short = write_2009(tmp_path / "short.mat", parts)
    short.write_bytes(short.read_bytes()[:5000])
    empty = tmp_path / "empty.mat"
    empty.write_bytes(b"")
    unrelated = tmp_path / "unrelated.mat"
    scipy.io.savemat(unrelated, {"x": np.zeros(3)})
    for path in (flame, renamed, other, truncated, short, empty, unrelated, tmp_path / "none.h5"):
        with pytest.raises(UserError, match=path.name) as caught:
            read_morphable_model(path)
        assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


def test_indices_outside_the_mesh_are_refused(tmp_path: Path) -> None:
    parts = random_parts()
    parts["landmarks"] = parts["landmarks"] + VERTICES
    with pytest.raises(UserError, match="landmarks name vertices outside"):
        read_morphable_model(write_2017(tmp_path / "model.h5", parts))


@pytest.mark.skipif("EAVATAR_SHARED" not in os.environ, reason="EAVATAR_SHARED is not set")
def test_large_model_lies_in_the_canonical_frame() -> None:
    shared = Path(os.environ["EAVATAR_SHARED"])
    model = read_morphable_model(shared / "models" / "ict_bfm2017.h5")
    landmarks = model.mean[model.landmark_vertices]
    # figures of Gaussian Head Avatar's frame; faces differ by a few millimetres
    assert abs(landmarks[30, 2] - 0.55) < 0.1 and abs(landmarks[8, 1] + 0.82) < 0.1
    assert abs(landmarks[16, 0] - 0.73) < 0.1 and abs(landmarks[0, 0] + 0.73) < 0.1
    assert model.identity_basis.shape == (11248, 3, 80) and model.colours is not None
