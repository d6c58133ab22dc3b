"""The kernels that draw without gradients, step by step: interpreted on the CPU, and on CUDA.

Interpreted, Triton's kernels are numpy: they do the same, without what a compiler may do wrong.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from eavatar.rendering import cpu
from eavatar.rendering.splatting import LOW_PASS, Gaussians, Rendering, splat
from eavatar.rendering.tiles import TILE, bin_splats
from eavatar.training.graphs import Captured
from tests.rendering.test_splatting import Scene, leaves, make_scene, stacked
from tests.scenes.dense_splat import dense_splat

PARTS = ("table", "depths", "tiles", "bounds", "splats", "pairs", "image", "alpha")
Steps = dict[str, Tensor]

LISTED = make_scene(count=60, channels=3, views=3, width=70, height=41)
SHORT = 40  # pairs, of more than twice as many


def crowded(seed: int) -> Scene:
    """In a small image, so opaque that pixels are finished, and some chunks long."""
    scene = make_scene(count=120, channels=3, views=1, width=18, height=7, seed=seed)
    opaque = replace(
        scene.gaussians,
        scales=3 * scene.gaussians.scales,
        opacities=torch.full_like(scene.gaussians.opacities, 0.97),
    )
    return replace(scene, gaussians=opaque)


DRAWN = stacked([crowded(0), replace(crowded(1), background=crowded(0).background)])


def run_steps(scene: Scene, capacity: int | None, device: str, draws: bool) -> Steps:
    """What the three steps return, on the CPU: projection and lists, and with `draws` images."""
    from eavatar.rendering import inference

    gaussians = Gaussians(*(tensor.to(device) for tensor in vars(scene.gaussians).values()))
    cameras, intrinsics = scene.world_to_camera.to(device), scene.intrinsics.to(device)
    width, height = scene.width, scene.height
    *_, views = images = cameras.shape[:-2]
    splats = inference.project(
        gaussians.means, gaussians.quaternions, gaussians.scales, gaussians.opacities,
        cameras, intrinsics, width, height, LOW_PASS,
    )  # fmt: skip
    lists = inference.list_tiles(splats, images.numel(), width, height, capacity)
    found = {**vars(splats), **vars(lists)}
    if draws:
        background = scene.background.to(device)
        found["image"], found["alpha"] = inference.composite(
            splats, lists, gaussians.features, background, views, width, height
        )
    return {name: found[name].cpu() for name in PARTS if name in found}


@dataclass(frozen=True)
class Results:
    """What the steps return for `LISTED`, with all pairs and with `SHORT`, and for `DRAWN`."""

    listed: Steps
    short: Steps
    drawn: Steps


def run_all(device: str) -> Results:
    return Results(
        run_steps(LISTED, None, device, draws=False),
        run_steps(LISTED, SHORT, device, draws=False),
        run_steps(DRAWN, 500, device, draws=True),
    )


SAVE = """
import sys
import torch
from tests.rendering.test_inference import run_all
torch.save(vars(run_all("cpu")), sys.argv[1])
"""


@pytest.fixture(scope="module", params=["interpreted", pytest.param("cuda", marks=pytest.mark.gpu)])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    if request.param == "cuda":
        return run_all("cuda")
    if importlib.util.find_spec("triton") is None:
        pytest.skip("torch has come without Triton")
    path = tmp_path_factory.mktemp("interpreted") / "steps.pt"
    # Another process, as Triton is told before it is imported.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[2]
    command = (sys.executable, "-W", "ignore", "-c", SAVE, path)
    subprocess.run(command, check=True, env=environment, cwd=root)
    return Results(**torch.load(path))


def seen(steps: Steps) -> Tensor:
    return steps["tiles"] > 0


def test_splats_are_those_of_the_cpu_kernel(results):
    scene, steps = LISTED, results.listed
    inputs = [tensor.numpy() for tensor in vars(scene.gaussians).values()][:4]
    cameras = scene.world_to_camera.numpy(), scene.intrinsics.numpy()
    table = torch.from_numpy(
        cpu.prepare(*inputs, *cameras, scene.width, scene.height, LOW_PASS).table
    )
    ours = seen(steps)
    # The CPU's radii are not whole pixels: it sees a few less.
    assert (ours | (table[:, cpu.REACH] == 0)).all()
    both = ours & (table[:, cpu.REACH] > 0)
    assert 0 < both.sum() < 0.8 * len(both)
    assert torch.isinf(steps["depths"][~ours]).all()
    table, found = table[both], steps["table"][both]
    in_nats = found[:, 2:5] / torch.tensor([0.5, 1, 0.5]) * np.log(2)
    for name, value, truth in (
        ("depth", steps["depths"][both], table[:, cpu.DEPTH]),
        ("centre", found[:, :2], table[:, [cpu.X, cpu.Y]]),
        ("conic", in_nats, table[:, [cpu.CONIC_XX, cpu.CONIC_XY, cpu.CONIC_YY]]),
        ("opacity", found[:, 5].exp2(), table[:, cpu.OPACITY]),
    ):
        # float32 and approximate divisions, against float64.
        torch.testing.assert_close(value, truth, rtol=1e-4, atol=1e-4, msg=partial(named, name))


def named(name: str, message: str) -> str:
    return f"{name}: {message}"


def lists_of(steps: Steps) -> list[list[int]]:
    begins, ends = steps["bounds"].tolist()
    splats = steps["splats"].tolist()
    return [splats[begin:end] for begin, end in zip(begins, ends, strict=True)]


def covering_lists(steps: Steps) -> list[list[int]]:
    """Splats of each tile that cover a pixel centre of it with 1/255, near to far."""
    scene = LISTED
    views, columns, rows = len(scene.intrinsics), -(-scene.width // TILE), -(-scene.height // TILE)
    y, x = torch.meshgrid(torch.arange(rows * TILE), torch.arange(columns * TILE), indexing="ij")
    found = []
    for view, (table, depths) in enumerate(
        zip(
            steps["table"].double().chunk(views),
            steps["depths"].chunk(views),
            strict=True,
        )
    ):
        near_to_far = depths.argsort(stable=True)[: int(depths.isfinite().sum())]
        dx = table[near_to_far, 0, None, None] - x - 0.5
        dy = table[near_to_far, 1, None, None] - y - 0.5
        xx, xy, yy, log_opacity = table[near_to_far, 2:6, None, None].unbind(1)
        power = log_opacity - xx * dx**2 - xy * dx * dy - yy * dy**2
        covered = power > -np.log2(255)
        tiles = covered.unflatten(2, (columns, TILE)).unflatten(1, (rows, TILE)).any(4).any(2)
        numbers = (view * len(depths) + near_to_far).tolist()
        for tile in tiles.flatten(1).T.tolist():
            found.append([n for n, touches in zip(numbers, tile, strict=True) if touches])
    return found


def test_lists_hold_near_to_far_whatever_covers_a_pixel_centre(results):
    steps = results.listed
    lists, needed = lists_of(steps), covering_lists(steps)
    for found, expected in zip(lists, needed, strict=True):
        assert found == sorted(set(found), key=lambda n: (steps["depths"][n].item(), n))
        assert set(found) >= set(expected)
    # Ellipses that pass between the pixel centres are few, corners of rectangles are many.
    listed, covering = (sum(map(len, part)) for part in (lists, needed))
    print(f"pairs: {covering} cover a pixel, {listed} listed, {int(steps['pairs'])} in rectangles")
    assert listed - covering < 0.2 * (steps["pairs"] - covering)


def test_pairs_are_those_of_the_rectangles(results):
    steps = results.listed
    assert steps["pairs"] == steps["tiles"].sum() == len(steps["splats"])
    assert sum(map(len, lists_of(steps))) < steps["pairs"]


def test_without_room_for_all_the_farthest_are_left_out(results):
    whole, short = results.listed, results.short
    assert short["pairs"] == whole["pairs"] > 2 * SHORT
    kept, left_out = [], []
    for part, full in zip(lists_of(short), lists_of(whole), strict=True):
        assert part == full[: len(part)]
        kept += part
        left_out += full[len(part) :]
    assert 0 < len(kept) <= SHORT
    assert whole["depths"][kept].max() <= whole["depths"][left_out].min()


def test_images_are_those_of_the_dense_reference(results):
    for scene in range(2):
        gaussians = Gaussians(
            *(tensor[scene].double() for tensor in vars(DRAWN.gaussians).values())
        )
        cameras = DRAWN.world_to_camera[scene].double(), DRAWN.intrinsics[scene].double()
        truth = dense_splat(
            gaussians, *cameras, DRAWN.width, DRAWN.height, DRAWN.background.double()
        )
        assert truth.alpha.max() > 0.999  # some pixels are finished
        image, alpha = (results.drawn[name][scene : scene + 1] for name in ("image", "alpha"))
        # Tensor cores round weights and features to 11 bits: 2⁻¹² of each, and less on average.
        limit = 2**-11 * gaussians.features.abs().max()
        assert (image - truth.features).abs().max() < limit
        assert (alpha - truth.alpha).abs().max() < 1e-5  # some tens of float32 products


def sharp_scene(count=20_000, channels=32, views=1, width=200, height=150) -> Scene:
    """Many small Gaussians with positive features, whose rounding errors average out."""
    scene = make_scene(count, channels, views, width, height)
    gaussians = replace(
        scene.gaussians,
        scales=0.2 * scene.gaussians.scales,
        features=torch.rand(count, channels, generator=torch.Generator().manual_seed(3)),
    )
    return replace(scene, gaussians=gaussians)


def draw_both(scene: Scene, capacity: int | None = None) -> tuple[Rendering, Rendering]:
    """Drawn on CUDA without gradients, by the Triton kernels, and with them, by gsplat."""
    *inputs, background = leaves(scene, torch.float32, "cuda")
    cameras = scene.world_to_camera.cuda(), scene.intrinsics.cuda()
    arguments = (*cameras, scene.width, scene.height, background, capacity)
    with torch.no_grad():
        ours = splat(Gaussians(*inputs), *arguments)
    theirs = splat(Gaussians(*inputs), *arguments)
    assert theirs.features.requires_grad
    assert not ours.features.requires_grad
    return ours, theirs


def assert_same(ours: Rendering, theirs: Rendering) -> None:
    """An alpha within rounding of 1/255 may count in one and not in the other."""
    for name in ("features", "alpha"):
        difference = getattr(ours, name) - getattr(theirs, name).detach()
        assert difference.isfinite().all(), name
        quantile = difference.abs().flatten().sort().values[int(0.999 * difference.numel())]
        mean = difference.double().mean().abs()
        print(f"{name}: 99.9 % within {quantile:.1e}, mean within {mean:.1e}")
        assert quantile < 1e-3, name
        # Features cut off instead of rounded would be 2.5e-4 too dark.
        assert mean < 1e-5, name
    # Radii are rounded up to whole pixels after other roundings.
    assert abs(ours.pairs - theirs.pairs) <= 1e-3 * theirs.pairs


@pytest.mark.gpu
@pytest.mark.parametrize("views", [1, 4])
@pytest.mark.parametrize("channels", [3, 32, 35])
@pytest.mark.parametrize("capacity", [None, 400_000])
def test_images_are_those_of_gsplat(views, channels, capacity):
    ours, theirs = draw_both(sharp_scene(channels=channels, views=views), capacity)
    assert 0 < ours.pairs < 400_000
    assert_same(ours, theirs)


@pytest.mark.gpu
def test_images_of_scenes_are_those_of_gsplat():
    scenes = [sharp_scene(channels=16, views=2), sharp_scene(channels=16, views=2)]
    scenes[1] = replace(scenes[1], intrinsics=0.9 * scenes[1].intrinsics)
    assert_same(*draw_both(stacked(scenes), 400_000))


@pytest.mark.gpu
def test_rectangles_are_those_of_gsplat():
    """Splat for splat, but for radii whose rounding up is a matter of float32's rounding."""
    import gsplat

    from eavatar.rendering import inference

    scene = sharp_scene(views=2)
    means, quaternions, scales, opacities, _ = (
        tensor.cuda() for tensor in vars(scene.gaussians).values()
    )
    cameras = scene.world_to_camera.cuda(), scene.intrinsics.cuda()
    size = scene.width, scene.height
    radii, centres, depths, _, _ = gsplat.fully_fused_projection(
        means, None, quaternions, scales, *cameras, *size, LOW_PASS, opacities=opacities
    )
    ours = inference.project(means, quaternions, scales, opacities, *cameras, *size, LOW_PASS)
    theirs = (radii > 0).all(-1).flatten()
    assert (seen(vars(ours)) != theirs).float().mean() < 1e-3
    both = seen(vars(ours)) & theirs
    torch.testing.assert_close(ours.depths[both], depths.flatten()[both])
    centre_error = (ours.table[:, :2] - centres.flatten(0, 1))[both].abs().max()
    assert centre_error < 1e-3  # pixels, of some hundreds
    pairs = bin_splats(centres, radii, depths, *size, None).pairs
    assert abs(ours.tiles.sum() - pairs) <= 1e-3 * pairs


@pytest.mark.gpu
def test_too_small_a_capacity_leaves_out_the_farthest():
    scene = sharp_scene(views=2)
    pairs = int(draw_both(scene)[0].pairs)
    ours, theirs = draw_both(scene, pairs // 2)
    assert abs(ours.pairs - pairs) <= 1e-3 * pairs
    # A pair more or less among the nearest changes which is the last one drawn.
    difference = (ours.alpha - theirs.alpha.detach()).abs().flatten()
    assert difference.sort().values[int(0.99 * len(difference))] < 1e-3
    assert (draw_both(scene, 0)[0].alpha == 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("count", [0, 1, 40])
@pytest.mark.parametrize("capacity", [None, 1000])
def test_few_gaussians_or_none(count, capacity):
    scene = make_scene(count=count, width=67, height=41)
    means = scene.gaussians.means * torch.tensor([1.0, 1.0, 0.0])
    if count == 40:
        means[1:, 2] = -5  # all but one behind the cameras
    ours, theirs = draw_both(
        replace(scene, gaussians=replace(scene.gaussians, means=means)), capacity
    )
    assert torch.equal(ours.pairs, theirs.pairs)
    # Features are up to 3, of 11 bits.
    torch.testing.assert_close(ours.features, theirs.features.detach(), rtol=0, atol=3e-3)
    torch.testing.assert_close(ours.alpha, theirs.alpha.detach(), rtol=0, atol=5e-3)


@pytest.mark.gpu
def test_nothing_in_sight_leaves_the_background():
    scene = make_scene(count=40)
    behind = replace(scene.gaussians, means=scene.gaussians.means - torch.tensor([0, 0, 9.0]))
    for capacity in (None, 100):
        ours, _ = draw_both(replace(scene, gaussians=behind), capacity)
        assert ours.pairs == 0
        assert not ours.alpha.any()
        assert torch.equal(ours.features.cpu(), scene.background.expand(ours.features.shape))


@pytest.mark.gpu
def test_without_a_background_features_lie_on_zero():
    scene = make_scene()
    inputs = [tensor.cuda() for tensor in vars(scene.gaussians).values()]
    cameras = scene.world_to_camera.cuda(), scene.intrinsics.cuda()
    arguments = (Gaussians(*inputs), *cameras, scene.width, scene.height)
    without = splat(*arguments)
    assert torch.equal(without.features, splat(*arguments, torch.zeros(5).cuda()).features)


@pytest.mark.gpu
def test_a_graph_replays_with_other_cameras():
    """Captured on one scene, replayed on another: to the bit."""
    scene, other = sharp_scene(views=2), sharp_scene(views=2)
    *inputs, background = (
        tensor.cuda() for tensor in (*vars(scene.gaussians).values(), scene.background)
    )

    def step(world_to_camera: Tensor, intrinsics: Tensor) -> tuple[Tensor, ...]:
        drawn = splat(
            Gaussians(*inputs), world_to_camera, intrinsics, 200, 150, background, 400_000
        )
        return drawn.features, drawn.alpha, drawn.pairs

    captured = Captured(step, scene.world_to_camera.cuda(), scene.intrinsics.cuda())
    inputs[0].add_(0.05)
    cameras = other.world_to_camera.cuda(), 0.9 * other.intrinsics.cuda()
    replayed, eager = captured(*cameras), step(*cameras)
    assert 0 < eager[2] <= 400_000
    for name, ours, theirs in zip(("features", "alpha", "pairs"), replayed, eager, strict=True):
        assert torch.equal(ours, theirs), name
