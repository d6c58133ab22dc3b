from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
import torch

from eavatar.__main__ import main
from eavatar.avatar.files import read_avatar
from eavatar.avatar.model import CameraBatch
from eavatar.io import read_cameras
from eavatar.training.graphs import MIN_SPARE, PLAIN_CALLS
from eavatar.view.player import GRAPHS, Player, draw_frame, most_frontal
from tests.scenes.small_avatar import EXPRESSIONS, SIZE, make_avatar
from tests.scenes.small_results import TIMESTEPS, make_camera, make_tracking, write_results


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_results(tmp_path_factory.mktemp("results"))


def run(results: Path, output: Path, *more: str, sequence: str = "FREE") -> int:
    return main(["render", str(results), "--sequence", sequence, "--output", str(output), *more])


def test_a_video_has_a_frame_for_each_timestep(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(results, tmp_path / "video.mp4", "--rate", "12.5") == 0
    with av.open(str(tmp_path / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == 12.5
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [image.shape for image in images] == [(SIZE, SIZE, 3)] * TIMESTEPS
    assert images[0][0, 0].min() > 250  # white but for the codec's rounding
    assert images[0][SIZE // 2, SIZE // 2].min() < 240
    line = capsys.readouterr().out
    assert re.search(r"^3 frames of 64×64: [\d.]+ ms a frame .*on (CPU|NVIDIA)", line)


def test_images_are_those_of_the_avatar(results: Path, tmp_path: Path) -> None:
    assert run(results, tmp_path / "images", "--camera", "2222*36", "222200037") == 0
    names = sorted(str(p.relative_to(tmp_path / "images")) for p in tmp_path.rglob("*.png"))
    serials = ("222200036", "222200037")
    assert names == [f"{s}/{t:05d}.png" for s in serials for t in range(TIMESTEPS)]
    avatar, camera = read_avatar(results / "splat" / "full"), make_camera(40).resize(SIZE, SIZE)
    expected = avatar.render(make_tracking()[1], camera)
    image = cv2.imread(str(tmp_path / "images" / "222200036" / "00001.png"))[..., ::-1]
    # Half a step of rounding, and on a GPU the order of sums.
    assert np.abs(image - 255 * expected.numpy()).max() < (
        1.5 if torch.cuda.is_available() else 0.501
    )


def test_neutral_freezes_the_expression(results: Path, tmp_path: Path) -> None:
    run(results, tmp_path / "acted", "--camera", "222200037")
    run(results, tmp_path / "neutral", "--neutral", "--camera", "222200037")
    acted, neutral = (
        cv2.imread(str(tmp_path / name / "222200037" / "00000.png")).astype(int)
        for name in ("acted", "neutral")
    )
    assert np.abs(acted - neutral).max() > 10


def test_the_most_frontal_camera_looks_into_the_face(results: Path) -> None:
    cameras = read_cameras(results / "capture" / "cameras.json")
    tracking = make_tracking()[:1]
    still = replace(tracking, rotation=np.zeros((1, 3), np.float32))
    assert most_frontal(cameras, still) == "222200037"
    turned = replace(still, rotation=np.array([[0, np.radians(40), 0]], np.float32))
    assert most_frontal(cameras, turned) == "222200036"


@pytest.mark.parametrize(
    ("output", "more", "sequence", "message"),
    [
        ("video.avi", (), "FREE", r"video\.avi cannot be written"),
        ("video.mp4", (), "SMILE", "no sequence 'SMILE'; tracked are: FREE"),
        ("video.mp4", ("--camera", "1*"), "FREE", r"no camera '1\*'; it has 222200036, 222200037"),
        ("video.mp4", ("--camera", "*"), "FREE", "one camera, not 2"),
        ("video.mp4", ("--rate", "0"), "FREE", "--rate 0.0"),
        ("video.mp4", ("--rate", "0.0001"), "FREE", "from 0.001 to 1000"),
        ("video.mp4", ("--rate", "nan"), "FREE", "--rate nan"),
        ("video.mp4", ("--variant", "bold"), "FREE", "no variant 'bold'; name one of: full"),
    ],
)
def test_faults_are_told_before_anything_is_drawn(
    results: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    output: str,
    more: tuple[str, ...],
    sequence: str,
    message: str,
) -> None:
    assert run(results, tmp_path / output, *more, sequence=sequence) == 2
    assert re.search(message, capsys.readouterr().err)
    assert list(tmp_path.iterdir()) == []


def test_without_an_output_the_video_is_beside_the_avatar(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["render", str(results), "--sequence", "FREE", "--neutral"]) == 0
    video = results / "splat" / "full" / "FREE_neutral.mp4"
    assert video.exists()
    assert str(video) in capsys.readouterr().out
    assert main(["render", str(results), "--sequence", "FREE", "--camera", "*"]) == 0
    assert len(list((results / "splat" / "full" / "FREE").rglob("*.png"))) == 2 * TIMESTEPS


def test_a_sequence_may_have_a_dot_in_its_name(results: Path) -> None:
    tracking = results / "face" / "tracking"
    (tracking / "take.1.npz").write_bytes((tracking / "FREE.npz").read_bytes())
    assert main(["render", str(results), "--sequence", "take.1", "--camera", "*"]) == 0
    assert len(list((results / "splat/full/take_1").rglob("*.png"))) == 2 * TIMESTEPS
    (tracking / "take.1.npz").unlink()


def test_a_folder_without_results_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "none", tmp_path / "video.mp4") == 2
    assert "none does not exist; name results/<subject>" in capsys.readouterr().err
    (tmp_path / "074" / "capture").mkdir(parents=True)
    assert run(tmp_path, tmp_path / "video.mp4") == 2
    assert (
        "is not the results folder of a subject; it holds those of 074" in capsys.readouterr().err
    )
    assert run(tmp_path / "074", tmp_path / "video.mp4") == 2
    assert "no trained model in splat/ yet; train it with" in capsys.readouterr().err


def test_an_output_of_another_kind_is_not_overwritten(
    results: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "video.mp4").mkdir()
    (tmp_path / "images").touch()
    assert run(results, tmp_path / "video.mp4") == 2
    assert run(results, tmp_path / "images") == 2
    assert "is a file already" in capsys.readouterr().err


def test_what_is_captured_has_one_shape_with_and_without_a_measured_appearance(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[torch.Size] = []

    def note(avatar, capacity, expression, *others, **more):
        given.append(expression.shape)
        return draw_frame(avatar, capacity, expression, *others, **more)

    monkeypatch.setattr("eavatar.view.player.draw_frame", note)
    avatar, camera = make_avatar(appearances=2), make_camera(-5).resize(SIZE, SIZE)
    torch.nn.init.normal_(avatar.appearance_by_expression)
    views = CameraBatch.of([camera], avatar.device)
    player, tracked = Player(avatar), make_tracking()[0]
    measured = replace(tracked, appearance=np.ones(2, np.float32))
    for step in (measured, tracked):  # as when a slider of the viewer is moved
        pose = torch.from_numpy(np.concatenate([step.rotation, step.translation]))
        driving = torch.from_numpy(step.driving)
        image = player(driving, pose, views.intrinsics, views.world_to_camera)
        assert torch.equal(
            image,
            draw_frame(avatar, None, driving, pose, views.intrinsics, views.world_to_camera)[0],
        )
    assert given == [(EXPRESSIONS + 2,)] * 2


def test_an_image_has_the_size_that_is_asked_for_and_few_sizes_are_kept() -> None:
    avatar = make_avatar()
    views = CameraBatch.of([make_camera(-5).resize(SIZE, SIZE)], avatar.device)
    player = Player(avatar)
    given = (torch.zeros(EXPRESSIONS), torch.zeros(6), views.intrinsics, views.world_to_camera)
    square = player(*given)
    assert square.shape == (SIZE, SIZE, 3)
    for more in range(2 * GRAPHS):
        size = (SIZE, SIZE + 64 * more)
        assert player(*given, size=size).shape == (*size, 3)
        assert torch.equal(player(*given), square)
    assert len(player._graphs) == GRAPHS


@pytest.mark.gpu
def test_the_graph_draws_what_plain_calls_draw_also_when_it_grows() -> None:
    avatar = make_avatar(4 * SIZE).cuda()
    player = Player(avatar)
    camera = make_camera(-5).resize(4 * SIZE, 4 * SIZE)
    far = torch.from_numpy(camera.world_to_camera)[None].float().cuda()
    near = far.clone()
    far[:, 2, 3], near[:, 2, 3] = 3, 0.3
    intrinsics = torch.from_numpy(camera.intrinsics)[None].float().cuda()
    expression, pose = torch.zeros(EXPRESSIONS, device="cuda"), torch.zeros(6, device="cuda")
    needed = []
    for view in (*[far] * (PLAIN_CALLS + 1), near, far, near):  # one capture, and another
        given = (expression, pose, intrinsics, view)
        image = player(*given)
        expected, pairs = draw_frame(avatar, None, *given)
        needed.append(int(pairs))
        # The order of sums may differ, and with it the rounding to 8 bits.
        assert (image.int() - expected.int()).abs().max() <= 1
    assert needed[-1] > 1.5 * needed[0] + MIN_SPARE  # more than the first capture holds
