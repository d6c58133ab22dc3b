"""One person's avatar moved by another's tracking."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from eavatar.__main__ import main
from eavatar.avatar.files import load_avatar, write_avatar
from eavatar.io import (
    ExpressionBasis,
    Sequences,
    Tracking,
    read_arrays,
    read_tracking,
    write_arrays,
    write_image,
    write_sequences,
)
from eavatar.results import Results
from eavatar.settings import Settings
from eavatar.tables.figures import GAP, HEADER, TILE
from eavatar.view.expressions import Face, expression_map
from eavatar.view.reenact import Rest, low_pass, retarget
from tests.scenes.faces import make_face, write_face
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import TIMESTEPS, make_tracking, write_results

CLOSE = 1e-6  # rounding of float32 around 1
SAME = np.eye(EXPRESSIONS)  # one morphable model


def rest_of(tracking: Tracking, scale: float = 0.1) -> Rest:
    return Rest(
        np.median(tracking.expression, axis=0),
        Rotation.from_rotvec(tracking.rotation).mean(),
        np.median(tracking.translation, axis=0).astype(np.float64),
        scale,
        tracking.gaze.shape[1],
    )


@pytest.fixture
def tracking() -> Tracking:
    random = np.random.default_rng(1)
    moved = make_tracking()
    moved.translation[:] = 0.05 * random.normal(size=moved.translation.shape) + [0.1, 1.2, 0]
    return moved


def test_a_person_moves_their_own_avatar_as_tracked(tracking):
    own = rest_of(tracking)
    moved = retarget(tracking, own, own, SAME, smoothing=0)
    for name in ("expression", "rotation", "translation"):
        assert np.allclose(getattr(moved, name), getattr(tracking, name), atol=CLOSE)


def test_the_drivers_neutral_face_seat_and_world_play_no_part(tracking):
    """The same person in a turned and shifted world, with an offset of all expressions."""
    turn, shift = Rotation.from_euler("xyz", [50, -120, 20], degrees=True), [3, -1, 2]
    other = replace(
        tracking,
        expression=tracking.expression + np.linspace(-1, 1, EXPRESSIONS, dtype=np.float32),
        rotation=(turn * Rotation.from_rotvec(tracking.rotation)).as_rotvec().astype(np.float32),
        translation=(turn.apply(tracking.translation) + shift).astype(np.float32),
    )
    # Medians of coordinates depend on the axes: the place at rest is given.
    rest = rest_of(tracking)
    there = replace(rest_of(other), translation=turn.apply(rest.translation) + shift)
    avatar = replace(rest, expression=rest.expression + 1, scale=0.12)
    here, moved = (
        retarget(track, driver, avatar, SAME, smoothing=0.5)
        for track, driver in ((tracking, rest), (other, there))
    )
    for name in ("expression", "rotation", "translation"):
        assert np.allclose(getattr(moved, name), getattr(here, name), atol=10 * CLOSE)


def test_a_larger_head_moves_as_far_in_its_own_size(tracking):
    small = rest_of(tracking)
    large = replace(small, scale=2 * small.scale)
    moved = retarget(tracking, small, large, SAME, smoothing=0)
    step = tracking.translation - small.translation
    assert np.allclose(moved.translation - large.translation, 2 * step, atol=CLOSE)


def test_the_gaze_is_the_drivers_unless_it_is_frozen(tracking):
    looking = replace(tracking, gaze=np.full((TIMESTEPS, 2), 0.2, np.float32))
    own = rest_of(looking)
    moved = retarget(looking, own, own, SAME, smoothing=0)
    assert np.array_equal(moved.gaze, looking.gaze)
    frozen = retarget(looking, own, replace(own, gaze_size=0), SAME, smoothing=0)
    assert frozen.gaze.shape == (TIMESTEPS, 0)  # an avatar takes none for straight


def test_smoothing_mixes_with_what_was_before():
    step = np.array([[0.0], [1], [1], [1]])
    assert low_pass(step, 0.5)[:, 0].tolist() == [0, 0.5, 0.75, 0.875]
    assert np.array_equal(low_pass(step, 0), step)


def write_person(root: Path) -> Path:
    write_results(root)
    write_avatar(root / "splat/baseline", make_avatar(), Settings())
    write_sequences(root / "capture/sequences.json", Sequences(("FREE",), ()))
    write_face(root / "face", make_face(0, EXPRESSIONS))
    for timestep in range(TIMESTEPS):
        frame = np.full((32, 32, 3), 80 + timestep, np.uint8)
        write_image(root / f"capture/FREE/222200037/{timestep:05d}.jpg", frame)
    return root


def call(avatar: Path, driver: Path, output: Path, smoothing: float = 0.5) -> int:
    words = ["--results", avatar, "--driver", driver, "--sequence", "FREE", "--output", output]
    words += [
        "--smoothing",
        smoothing,
        "--freeze-gaze",
        "--avatars",
        avatar / "splat/baseline",
        avatar / "splat/full",
    ]
    return main(["reenact", *map(str, words)])


def test_the_video_shows_the_driver_and_each_variant(tmp_path):
    people = [write_person(tmp_path / name) for name in ("a", "b")]
    output = tmp_path / "a_b_FREE.mp4"
    assert call(*people, output) == 0
    with av.open(str(output)) as video:
        frames = [frame.to_ndarray(format="rgb24") for frame in video.decode(video=0)]
    assert len(frames) == TIMESTEPS
    assert frames[0].shape == (SIZE, 3 * SIZE, 3)  # that of the avatars, not of the frames
    assert abs(int(frames[1][SIZE // 2, SIZE // 2, 0]) - 81) < 4  # the driver's frame, encoded
    sheet = cv2.imread(str(output.with_suffix(".jpg")))
    assert sheet.shape[:2] == (HEADER + 3 * (TILE + GAP), TIMESTEPS * (TILE + GAP) - GAP)
    names = [HEADER + row * (TILE + GAP) + np.arange(HEADER) for row in range(3)]
    written = [sheet[rows, :TILE].min() < 60 for rows in names]
    assert written == [False, True, True]  # the two variants' names, over the avatars' white


def test_a_video_or_smoothing_that_cannot_be_is_one_sentence(tmp_path, capsys):
    person = write_person(tmp_path / "a")
    for name, smoothing, sentence in (
        ("driven", 0.5, "ends in .mp4"),
        ("driven.avi", 0.5, "ends in .mp4"),
        ("driven.mp4", 1.5, "--smoothing 1.5 must be"),
    ):
        assert call(person, person, tmp_path / name, smoothing) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / name).exists()


def test_the_avatar_full_follows_at_once_if_nothing_else_is_asked_for(tmp_path, capsys):
    people = [write_person(tmp_path / name) for name in ("a", "b")]
    output = tmp_path / "driven.mp4"
    words = ["--results", people[0], "--driver", people[1], "--sequence", "FREE"]
    told = {}
    for more in ([], ["--avatars", people[0] / "splat/full", "--smoothing", 0]):
        assert main(["reenact", *map(str, [*words, *more, "--output", output])]) == 0
        assert capsys.readouterr().out == f"{output}\n"
        told[len(more)] = output.read_bytes()
    assert len(set(told.values())) == 1


@pytest.mark.parametrize(
    "flag, given, sentence",
    [
        ("--avatars", "full", "there is no avatar full; name {results}/splat/<variant>."),
        ("--driver", "clip.mp4", "clip.mp4 is a file and no driver; make one"),
        ("--driver", "untracked", "holds no sequence 'FREE'; tracked are: none."),
    ],
)
def test_a_folder_that_is_none_is_one_sentence(
    tmp_path, monkeypatch, capsys, flag, given, sentence
):
    monkeypatch.chdir(tmp_path)
    person = write_person(tmp_path / "a")
    (tmp_path / "clip.mp4").touch()
    (tmp_path / "untracked/capture").mkdir(parents=True)
    words = {"--results": person, "--driver": person, "--sequence": "FREE", "--output": "x.mp4"}
    words[flag] = given
    assert main(["reenact", *(str(word) for pair in words.items() for word in pair)]) == 2
    assert sentence.format(results=person) in capsys.readouterr().err
    assert not Path("x.mp4").exists()


def test_a_neutral_driver_leaves_the_avatar_neutral(tmp_path):
    """Through the files, between two models: its Gaussians stay within 0.5 mm of the avatar's."""
    avatar, driver = (Results(write_person(tmp_path / name)) for name in ("a", "b"))
    write_face(driver.face, make_face(1, EXPRESSIONS + 2))
    tracking = read_tracking(driver.tracking("FREE"))
    about, acted = np.random.default_rng(2).normal(size=(2, EXPRESSIONS + 2))
    calm = 0.1 * about
    acting = tracking.with_expression([calm - acted, calm, calm + acted])
    write_arrays(driver.tracking("FREE"), acting)
    own, theirs = (Face.read(results.face) for results in (avatar, driver))
    at_rest, of_driver = Rest.read(avatar, own), Rest.read(driver, theirs)
    driven = retarget(acting, of_driver, at_rest, expression_map(theirs, own), smoothing=0)
    drawn = load_avatar(avatar.avatar("full"))
    pose = torch.from_numpy(driven.poses[0])
    neutral, still, moved = (
        drawn.deform(torch.from_numpy(expression), pose).points
        for expression in (at_rest.expression, driven.expression[1], driven.expression[2])
    )
    assert (still - neutral).norm(dim=1).max() < 0.005  # canonical units
    assert (moved - neutral).norm(dim=1).max() > 0.005


def test_rest_is_the_calmest_that_was_seen_of_a_person(tmp_path):
    """Not the middle of a video that acts most of the time, nor what was interpolated."""
    person = Results(write_person(tmp_path))
    calm, acted, unseen = (np.full(EXPRESSIONS, value) for value in (0.1, 2.0, 0.0))
    tracking = read_tracking(person.tracking("FREE"))
    tracking = tracking.with_expression([calm, acted, unseen])
    tracking.reprojection_error[2] = np.nan
    write_arrays(person.tracking("FREE"), tracking)
    assert np.allclose(Rest.read(person, Face.read(person.face)).expression, calm)


def test_files_of_two_trackings_are_told(tmp_path, capsys):
    people = [write_person(tmp_path / name) for name in ("a", "b")]
    path = people[1] / "face/expression_basis.npz"
    basis = read_arrays(ExpressionBasis, path).basis
    write_arrays(path, ExpressionBasis(basis[..., :-1]))
    assert call(*people, tmp_path / "x.mp4") == 2
    told = capsys.readouterr().err
    assert f"has {EXPRESSIONS - 1} expression" in told and "track the person again" in told
