from __future__ import annotations

import shutil
import threading
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch

from eavatar.data.frames import FrameSet, read_usable, unpack
from eavatar.data.images import place_on_white, read_grey
from eavatar.data.loader import Loader, Selection, decode_by_nvjpeg, select
from eavatar.errors import UserError
from eavatar.io import Sequences, read_cameras, write_cameras, write_sequences
from tests.scenes.head_pictures import BOX, picture, write_pictures

SIZE, TIMESTEPS, CAMERAS = 96, 3, 4
SMALL = 48  # half of SIZE


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("subject"), SIZE, TIMESTEPS, CAMERAS)


def read(subject: Path, size: int = SIZE, memory_gb: float = 1, split: str = "train") -> FrameSet:
    return FrameSet.read(subject / "capture", subject / "face", split, size, memory_gb)


def test_held_out_cameras_are_only_in_the_test_split(subject: Path) -> None:
    folders = subject / "capture", subject / "face"
    whole = read(subject)
    held_out = [whole.serials[1]]
    kept = FrameSet.read(*folders, "train", SIZE, held_out=held_out)
    assert kept.serials == (whole.serials[0], *whole.serials[2:])
    assert torch.equal(kept.world_to_camera, whole.world_to_camera[[0, 2, 3]])
    assert torch.equal(kept.views(0, [1]).images, whole.views(0, [2]).images)
    measured = FrameSet.read(*folders, "test", SIZE, held_out=held_out)
    assert measured.serials == (whole.serials[1],)


# --- selections-------------------------------------------------------------------------------


def all_usable(timesteps: int, cameras: int) -> np.ndarray:
    return np.ones((timesteps, cameras), dtype=bool)


def test_a_selection_follows_from_seed_and_step_alone() -> None:
    usable = all_usable(20, 8)
    first = [select(7, step, usable, 2, 3) for step in range(50)]
    backwards = [select(7, step, usable, 2, 3) for step in reversed(range(50))]
    assert first == backwards[::-1]
    assert len(set(first)) == 50
    assert first != [select(8, step, usable, 2, 3) for step in range(50)]


def test_selections_are_even_and_without_duplicates() -> None:
    selections = [select(0, step, all_usable(5, 6), 2, 4) for step in range(3000)]
    assert all(len(set(chosen.timesteps)) == 2 for chosen in selections)
    assert all(len(set(row)) == 4 for chosen in selections for row in chosen.cameras)
    pairs = count_pairs(selections)
    assert len(pairs) == 30
    # Each is selected 800 times, with a deviation of at most √800; the worst of 30 stays within 5.
    assert max(abs(count - 800) for count in pairs.values()) < 5 * 800**0.5


def count_pairs(selections: list[Selection]) -> Counter[tuple[int, int]]:
    """How often each camera of each timestep is selected."""
    return Counter(
        (timestep, camera)
        for chosen in selections
        for timestep, row in zip(chosen.timesteps, chosen.cameras, strict=True)
        for camera in row
    )


def test_more_than_there_is() -> None:
    chosen = select(0, 0, all_usable(2, 3), timesteps=5, views=4)
    assert len(chosen.timesteps) == 5
    assert all(sorted(row) == [0, 1, 2] for row in chosen.cameras)


def test_failed_views_are_never_selected_and_few_good_ones_are_repeated() -> None:
    usable = all_usable(3, 6)
    usable[1, :4] = False  # two are left
    usable[2, [0, 5]] = False
    selections = [select(0, step, usable, 3, 4) for step in range(500)]
    rows = [
        dict(zip(chosen.timesteps, (sorted(row) for row in chosen.cameras), strict=True))
        for chosen in selections
    ]
    assert all(len(row[0]) == len(set(row[0])) == 4 for row in rows)
    assert all(row[1] == [4, 4, 5, 5] for row in rows)
    assert all(row[2] == [1, 2, 3, 4] for row in rows)


# --- batches ----------------------------------------------------------------------------------


def test_batches_are_the_selected_views(subject: Path) -> None:
    frames = read(subject)
    with Loader(frames, seed=3, timesteps=2, views=3) as loader:
        for step in range(4):
            batch = loader.batch(step)
            chosen = select(3, step, all_usable(TIMESTEPS, CAMERAS), 2, 3)
            assert batch.timesteps.tolist() == list(chosen.timesteps)
            assert batch.cameras.tolist() == [list(row) for row in chosen.cameras]
            assert batch.pixels.shape == (2, 3, SIZE, SIZE, 4)
            images, alpha = unpack(batch.pixels)
            for i, timestep in enumerate(chosen.timesteps):
                views = frames.views(timestep, chosen.cameras[i])
                assert torch.equal(images[i], views.images)
                assert torch.equal(alpha[i], views.masks)


def test_parts_of_a_batch_are_the_whole_and_those_that_are_uneven_are_told(subject: Path) -> None:
    with Loader(read(subject), 0, 2, 2) as loader:
        whole = loader.batch(5)
    for number in range(2):
        with Loader(read(subject), 0, 2, 2, part=(number, 2)) as loader:
            part = loader.batch(5)
        assert torch.equal(part.timesteps, whole.timesteps)
        assert torch.equal(part.cameras, whole.cameras[:, number : number + 1])
        assert torch.equal(part.pixels, whole.pixels[:, number : number + 1])
    with pytest.raises(UserError, match=r"2 views .* over 3 processes; set splat.views_per_step"):
        Loader(read(subject), 0, 2, 2, part=(0, 3))


def test_a_batch_is_the_same_whatever_was_asked_before(subject: Path) -> None:
    with Loader(read(subject), 0, 1, 2) as loader:
        through = [loader.batch(step).pixels for step in range(12)]
    with Loader(read(subject, memory_gb=0), 0, 1, 2) as loader:
        for step in (9, 2, 3, 11, 0):
            assert torch.equal(loader.batch(step).pixels, through[step])
    with Loader(read(subject), 1, 1, 2) as loader:
        assert not all(torch.equal(loader.batch(step).pixels, through[step]) for step in range(12))


def test_a_missing_frame_is_reported_by_its_batch(tmp_path: Path) -> None:
    subject = write_pictures(tmp_path, 32, 1, 2)
    path = subject / "capture" / "EXP-1" / "222200001" / "00000.jpg"
    path.unlink()
    with (
        Loader(read(subject, 32), 0, 1, 2) as loader,
        pytest.raises(UserError, match=r"222200001/00000\.jpg is missing; run `ingest` again"),
    ):
        loader.batch(0)
    path.write_bytes(b"not a picture")
    with (
        Loader(read(subject, 32), 0, 1, 2) as loader,
        pytest.raises(UserError, match=r"222200001/00000\.jpg is damaged"),
    ):
        loader.batch(0)


def test_close_leaves_no_thread(subject: Path) -> None:
    before = threading.active_count()
    loader = Loader(read(subject), 0, 1, 2)
    loader.batch(0)
    assert threading.active_count() > before
    loader.close()
    assert threading.active_count() == before


def mark_failed(subject: Path, views: list[tuple[int, int]]) -> None:
    """Mark (timestep, camera) of the training sequence as failed."""
    path = subject / "capture" / "masks" / "EXP-1.csv"
    table = pd.read_csv(path)
    for timestep, camera in views:
        table.loc[timestep * CAMERAS + camera, "failed"] = 1
    table.to_csv(path, index=False)


def test_failed_views_are_left_out(tmp_path: Path) -> None:
    subject = write_pictures(tmp_path, 32, TIMESTEPS, CAMERAS)
    mark_failed(subject, [(0, 2), *((1, camera) for camera in range(CAMERAS))])
    frames = read(subject, 32)
    assert frames.timesteps == (0, 2)  # none is left of 1
    assert [frames.usable_cameras(timestep) for timestep in (0, 1)] == [[0, 1, 3], [0, 1, 2, 3]]
    assert len(frames.expression) == len(frames.store.keys) == 2
    with Loader(frames, 0, 2, 4) as loader:
        batches = [loader.batch(step) for step in range(20)]
    rows = [
        sorted(row)
        for batch in batches
        for timestep, row in zip(batch.timesteps.tolist(), batch.cameras.tolist(), strict=True)
        if timestep == 0
    ]
    assert len(rows) == 20 and all({*row} == {0, 1, 3} and len(row) == 4 for row in rows)


def test_a_camera_may_be_called_as_what_pandas_takes_for_none(tmp_path: Path) -> None:
    capture = write_pictures(tmp_path, 32, TIMESTEPS, CAMERAS) / "capture"
    for path in (capture / "EXP-1.csv", capture / "masks" / "EXP-1.csv"):
        table = pd.read_csv(path, dtype={"camera": str})
        first = table["camera"].iloc[0]
        table.replace({"camera": {first: "NA"}}).to_csv(path, index=False)
    _, usable = read_usable(capture, "train", ["NA"])
    assert usable.tolist() == [[True]] * TIMESTEPS


def test_sequences_and_cameras_that_are_no_longer_chosen_are_not_read(tmp_path: Path) -> None:
    """Their files lie beside the others: taken out of the sample sheet, or become held out."""
    subject = write_pictures(tmp_path, 32, TIMESTEPS, CAMERAS)
    capture = subject / "capture"
    for folder in (capture, capture / "masks"):
        (folder / "EXP-9.csv").write_bytes((folder / "EXP-1.csv").read_bytes())
    cameras = read_cameras(capture / "cameras.json")
    fewer = dict(list(cameras.items())[1:])
    write_cameras(capture / "cameras.json", fewer)
    frames = read(subject, 32)
    assert set(frames.sequences) == {"EXP-1"}
    assert frames.serials == tuple(fewer)
    assert frames.usable.shape == (TIMESTEPS, CAMERAS - 1)
    write_sequences(capture / "sequences.json", Sequences(("FREE",), ("EXP-1",)))
    assert set(read(subject, 32).sequences) == {"FREE"}
    assert set(read(subject, 32, split="test").sequences) == {"EXP-1"}
    write_sequences(capture / "sequences.json", Sequences(("FREE", "EXP-8"), ("EXP-1",)))
    with pytest.raises(UserError, match=r"EXP-8\.csv does not exist"):
        read(subject, 32)


def test_a_split_whose_masks_have_all_failed_is_refused(tmp_path: Path) -> None:
    subject = write_pictures(tmp_path, 32, 1, CAMERAS)
    mark_failed(subject, [(0, camera) for camera in range(CAMERAS)])
    with pytest.raises(UserError, match=r"all masks of the split 'train' in .* have failed"):
        read(subject, 32)


def test_failed_masks_do_not_widen_the_boxes(tmp_path: Path) -> None:
    subject = write_pictures(tmp_path, SIZE, TIMESTEPS, CAMERAS)
    path = subject / "capture" / "masks" / "EXP-1.csv"
    table = pd.read_csv(path)
    table.loc[1, BOX] = (0, 0, SIZE, SIZE)
    table.to_csv(path, index=False)
    assert read(subject).boxed(8).width == SIZE
    mark_failed(subject, [(0, 1)])
    assert read(subject).boxed(8).width < SIZE


# --- poses and devices ------------------------------------------------------------------------


def test_a_pose_is_rotation_then_translation_of_its_timestep(subject: Path) -> None:
    frames = read(subject)
    assert frames.poses.shape == (TIMESTEPS, 6)
    assert torch.equal(frames.poses[:, :3], frames.rotation)
    assert torch.equal(frames.poses[:, 3:], frames.translation)


def test_a_set_of_frames_is_where_its_tracking_is(subject: Path) -> None:
    frames = read(subject)
    assert frames.device == torch.device("cpu")
    assert frames.to(torch.device("meta")).device == torch.device("meta")


# --- images -----------------------------------------------------------------------------------


def on_white(colour: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    weight = alpha[..., None] / 255
    return colour * weight + 255 * (1 - weight)


def test_a_frame_that_is_its_own_background_is_composited_and_rounded() -> None:
    level, alpha = (axis.astype(np.uint8) for axis in np.mgrid[:256, :256])
    colour = np.dstack([level, level[::-1], level.T])
    image = np.empty((256, 256, 4), np.uint8)
    place_on_white(colour, alpha, colour, image)
    assert np.array_equal(image[..., :3], on_white(colour, alpha).round())
    assert np.array_equal(image[..., 3], alpha)


def mixtures() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Random colours of a person and of a set, and masks of all values."""
    random = np.random.default_rng(1)
    person, behind = random.integers(0, 256, (2, 256, 256, 3)).astype(np.uint8)
    return person, behind, np.mgrid[:256, :256][1].astype(np.uint8)


def test_the_background_is_taken_out_of_soft_edges() -> None:
    person, behind, alpha = mixtures()
    weight = alpha[..., None] / 255
    frame = (weight * person + (1 - weight) * behind).round().astype(np.uint8)
    image = np.empty((256, 256, 4), np.uint8)
    place_on_white(frame, alpha, behind, image)
    # Rounded twice, by half a level each.
    assert abs(image[..., :3] - on_white(person, alpha)).max() <= 1


def test_colours_stay_possible_whatever_is_behind() -> None:
    frame, behind, alpha = mixtures()
    image = np.empty((256, 256, 4), np.uint8)
    place_on_white(frame, alpha, behind, image)
    assert (image[..., :3] >= 255 - alpha[..., None]).all()  # of a black person
    assert (image[..., :3][alpha == 0] == 255).all()
    assert np.array_equal(image[..., :3][alpha == 255], frame[alpha == 255])


@pytest.fixture
def with_set(subject: Path, tmp_path: Path) -> Path:
    """The subject and backgrounds of its cameras 0, 1 and 2: 60, 200 and 90."""
    shutil.copytree(subject, tmp_path, dirs_exist_ok=True)
    for camera, level in enumerate((60, 200, 90)):
        path = tmp_path / "capture" / "masks" / "EXP-1" / f"{222200000 + camera}" / "background.jpg"
        cv2.imwrite(str(path), np.full((SIZE, SIZE, 3), level, np.uint8))
    return tmp_path


def test_each_camera_has_its_own_background(subject: Path, with_set: Path) -> None:
    left_in = read(subject).store.read(1, range(CAMERAS))
    store = read(with_set).store
    taken_out = store.read(1, range(CAMERAS))
    assert np.array_equal(store.read_with_set(1, range(CAMERAS)), left_in)
    assert np.array_equal(taken_out[3], left_in[3])  # it has none
    soft = (left_in[..., 3] > 0) & (left_in[..., 3] < 255)
    for camera, level in enumerate((60, 200, 90)):
        mask = left_in[camera, ..., 3:].astype(float)
        frame = 255 - (255.0 - left_in[camera, ..., :3]) * 255 / np.maximum(mask, 1)
        expected = np.clip(frame + (1 - mask / 255) * (255 - level), 255 - mask, 255)
        difference = abs(taken_out[camera, ..., :3] - expected)[soft[camera] & (mask[..., 0] > 50)]
        assert difference.max() <= 4  # half a level of the composite is 2.5 of a frame's at 50
        assert np.array_equal(taken_out[camera][~soft[camera]], left_in[camera][~soft[camera]])


def test_boxes_and_batches_have_the_backgrounds(with_set: Path) -> None:
    frames = read(with_set)
    boxed = frames.boxed(8)
    for camera in range(CAMERAS):
        whole = frames.store.read(2, [camera])[0]
        crop = boxed.store.boxes.window(camera)
        assert np.array_equal(boxed.store.read(2, [camera])[0], whole[crop])
    with Loader(boxed, 0, 1, 2) as loader:
        batch = loader.batch(0)
    expected = boxed.store.read(int(batch.timesteps[0]), batch.cameras[0].tolist())
    assert np.array_equal(batch.pixels[0].numpy(), expected)


def test_pixels_are_on_white_before_they_are_averaged(subject: Path) -> None:
    frames = read(subject, SMALL)
    capture = subject / "capture"
    colour = cv2.imread(str(capture / "EXP-1" / "222200002" / "00001.jpg"))[..., ::-1]
    alpha = read_grey(capture / "masks" / "EXP-1" / "222200002" / "00001.png")
    white = np.dstack([on_white(colour, alpha), alpha])
    expected = white.reshape(SMALL, 2, SMALL, 2, 4).mean(axis=(1, 3))
    # Rounded twice, by half a level each.
    assert abs(frames.store.read(1, [2])[0] - expected).max() <= 1


def test_files_and_pixels_in_memory_give_the_same(subject: Path) -> None:
    budgets = {"nothing": 0.0, "files": 5e4 / 2**30, "pixels": 1.0}
    sets = {name: read(subject, memory_gb=budget) for name, budget in budgets.items()}
    for _ in range(2):  # as read, then as kept
        for timestep in range(TIMESTEPS):
            images = [frames.store.read(timestep, range(CAMERAS)) for frames in sets.values()]
            assert all(np.array_equal(image, images[0]) for image in images)
    assert not sets["nothing"].store.kept
    assert 0 < sets["files"].store.used <= 5e4
    assert 0 < len(sets["files"].store.kept) < TIMESTEPS * CAMERAS
    assert not any(isinstance(kept, np.ndarray) for kept in sets["files"].store.kept.values())
    assert sets["pixels"].store.used == TIMESTEPS * CAMERAS * SIZE * SIZE * 4


def test_small_pixels_are_kept_instead_of_large_files(subject: Path) -> None:
    store = read(subject, 24, memory_gb=2.5e4 / 2**30).store
    assert not store.keeps_pixels
    for timestep in range(TIMESTEPS):
        store.read(timestep, range(CAMERAS))
    assert len(store.kept) == 2.5e4 // (24 * 24 * 4)
    assert all(isinstance(kept, np.ndarray) for kept in store.kept.values())


# --- boxes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [SIZE, SMALL])
def test_boxes_hold_the_person_with_a_margin(subject: Path, size: int) -> None:
    whole, boxed = read(subject, size), read(subject, size).boxed(8)
    assert boxed.height % 8 == 0 and boxed.width % 8 == 0
    assert boxed.width < boxed.height <= size  # the blob is taller than wide
    boxes = boxed.store.boxes
    for camera, (left, top) in enumerate(boxes.corners):
        masks = np.stack([whole.store.read(timestep, [camera])[0, ..., 3] for timestep in range(3)])
        rows, columns = np.nonzero(masks.max(axis=0))
        assert 0 <= top <= max(rows.min() - 0.02 * size, 0)
        assert 0 <= left <= max(columns.min() - 0.02 * size, 0)
        assert min(rows.max() + 1 + 0.02 * size, size) <= top + boxed.height <= size
        assert min(columns.max() + 1 + 0.02 * size, size) <= left + boxed.width <= size


@pytest.mark.parametrize("size", [SIZE, SMALL])
@pytest.mark.parametrize("memory_gb", [0, 1])
def test_a_box_is_a_crop_of_pixels_and_camera(subject: Path, size: int, memory_gb: float) -> None:
    whole, boxed = read(subject, size, memory_gb), read(subject, size, memory_gb).boxed(8)
    point = torch.tensor([0.01, -0.02, 0.03, 1.0])
    for camera, corner in enumerate(boxed.store.boxes.corners):
        image = boxed.store.read(2, [camera])[0]
        expected = whole.store.read(2, [camera])[0][boxed.store.boxes.window(camera)]
        assert image.shape == (boxed.height, boxed.width, 4)
        assert np.array_equal(image, expected)
        assert boxed.visible.shape[1:] == (boxed.height, boxed.width)
        pixels = []
        for frames in (whole, boxed):
            seen = frames.intrinsics[camera] @ (frames.world_to_camera[camera] @ point)[:3]
            pixels.append(seen[:2] / seen[2])
        # Pixels of order 100 in float32.
        torch.testing.assert_close(
            pixels[0] - pixels[1], torch.tensor(corner).float(), rtol=0, atol=1e-4
        )
    with Loader(boxed, 0, 1, 2) as loader:
        assert loader.batch(0).pixels.shape == (1, 2, boxed.height, boxed.width, 4)


def test_a_camera_without_a_person_gets_the_middle(tmp_path: Path) -> None:
    subject = write_pictures(tmp_path, SIZE, 1, 2)
    path = subject / "capture" / "masks" / "EXP-1.csv"
    table = pd.read_csv(path)
    table.loc[1, BOX] = 0
    table.to_csv(path, index=False)
    boxed = read(subject).boxed(2)
    left, top = boxed.store.boxes.corners[1]
    assert (2 * left + boxed.width, 2 * top + boxed.height) == (SIZE, SIZE)


def test_an_index_of_masks_without_boxes_is_refused(tmp_path: Path) -> None:
    subject = write_pictures(tmp_path, 32, 1, 1)
    path = subject / "capture" / "masks" / "EXP-1.csv"
    pd.read_csv(path).drop(columns=BOX).to_csv(path, index=False)
    with pytest.raises(UserError, match=r"EXP-1\.csv was written by .* run `matte` again"):
        read(subject, 32)


# --- on the GPU -------------------------------------------------------------------------------


@pytest.mark.gpu
def test_nvjpeg_and_libjpeg_agree() -> None:
    """Their inverse transforms round differently, and they interpolate chroma differently."""
    random = np.random.default_rng(0)
    surface = random.standard_normal((16, 16, 3), np.float32)
    surface = cv2.resize(surface, (512, 512), interpolation=cv2.INTER_CUBIC)
    colour, _ = picture(random, surface, 2 * random.standard_normal((512, 512, 1), np.float32))
    _, jpeg = cv2.imencode(".jpg", colour, (cv2.IMWRITE_JPEG_QUALITY, 95))
    expected = cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB).astype(float)
    for image in decode_by_nvjpeg([jpeg, jpeg], torch.device("cuda")):
        assert abs(image.permute(1, 2, 0).cpu().numpy() - expected).mean() < 1


@pytest.mark.gpu
@pytest.mark.parametrize("boxed", [False, True])
@pytest.mark.parametrize("gpu_decoding", [False, True])
def test_batches_on_the_gpu_are_those_of_the_cpu(
    with_set: Path, boxed: bool, gpu_decoding: bool
) -> None:
    frames = read(with_set, memory_gb=5e4 / 2**30)
    frames = frames.boxed(8) if boxed else frames
    busy = torch.ones(4096, 4096, device="cuda")
    with (
        Loader(frames, 0, 2, 3) as on_cpu,
        Loader(frames.to(torch.device("cuda")), 0, 2, 3, gpu_decoding) as on_gpu,
    ):
        assert on_gpu.gpu_decoding == gpu_decoding
        kept = []
        for step in range(20):
            busy = busy @ busy / 4096  # the batch is read long after the next ones are prepared
            kept.append(on_gpu.batch(step).pixels.clone())
        for step, pixels in enumerate(kept):
            expected = on_cpu.batch(step).pixels
            assert torch.equal(pixels[..., 3].cpu(), expected[..., 3])
            difference = (pixels.cpu().float() - expected.float()).abs()
            assert difference.mean() < (1 if gpu_decoding else 1e-9)
