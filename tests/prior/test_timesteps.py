"""The tracked timesteps: each is of its sequence, and its head is where it was tracked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.spatial.transform import Rotation

from eavatar.io import Identity, Tracking, read_arrays, read_cameras, write_arrays
from eavatar.prior.timesteps import read_timesteps
from tests.scenes.ball import make_subject


def test_a_timestep_is_of_its_sequence_and_its_head_where_it_was_tracked(tmp_path: Path) -> None:
    results = make_subject(tmp_path).results
    capture, face = results / "capture", results / "face"
    serials = tuple(read_cameras(capture / "cameras.json"))
    path = face / "tracking/EXP-1-head.npz"
    stored = read_arrays(Tracking, path)
    turns = np.array([[0.1, 0.2, 0.3], [-0.3, 0.1, 0.2]], np.float32)
    write_arrays(path, replace(stored, rotation=turns))

    found = read_timesteps(capture, face, serials)

    assert found.keys == [("EXP-1-head", 0), ("EXP-1-head", 1)]  # FREE is held out
    masks = pd.read_csv(capture / "masks/EXP-1-head.csv", dtype={"camera": str})
    failed = masks[masks["failed"] == 1]
    assert len(failed) == np.count_nonzero(~found.usable) > 0
    for row in failed.itertuples():
        assert not found.usable[row.timestep, serials.index(row.camera)]
    identity = read_arrays(Identity, face / "identity.npz")
    for step, turn in enumerate(turns):
        head = found.head(step)
        turned = Rotation.from_rotvec(turn).apply(identity.landmarks)
        world = identity.scale * turned + stored.translation[step]
        np.testing.assert_allclose(head.pose.apply(head.landmarks), world, atol=1e-6)
