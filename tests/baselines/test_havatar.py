"""HAvatar: planes, blend and sizes, and a training on a toy scene of two cameras."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import trimesh
from safetensors.torch import load_file

from eavatar.avatar.torso import Torso
from eavatar.baselines.conditions import LOWER, UPPER, DeformingMesh
from eavatar.baselines.havatar import HAvatar, HavatarModelSettings
from eavatar.baselines.havatar_training import FIRST_WEIGHTS, prepare_havatar, train_havatar
from eavatar.baselines.plane_field import Blend, PlaneField, Planes
from eavatar.baselines.volume import Composite
from eavatar.data.frames import FrameSet
from eavatar.errors import UserError
from eavatar.settings import HavatarSettings, merge, read_config, read_yaml, validate
from eavatar.tables.methods import open_method
from eavatar.training.loop import seed_everything
from tests.baselines.test_nerface import request
from tests.scenes import CONFIG, ROOT
from tests.scenes.splat_scene import AXES, EXPRESSIONS, deform

CPU = torch.device("cpu")
CHANGES = {"steps": 60, "field_steps": 35, "learning_rate": 5e-3, "later_learning_rate": 5e-3}


def small_settings(**changes) -> HavatarSettings:
    blocks = [read_yaml(CONFIG / name) for name in ("config.yaml", "demo.yaml")]
    blocks.append(read_yaml(ROOT / "tests" / "tiny.yaml"))
    merged = merge(*(block["havatar"] for block in blocks), CHANGES, changes)
    return validate(HavatarSettings, merged, "test")


@pytest.fixture(scope="module")
def mesh() -> DeformingMesh:
    """The toy head's ellipsoid, which its three expressions deform."""
    made = trimesh.creation.icosphere(3)
    neutral = AXES * torch.tensor(made.vertices, dtype=torch.float32)
    basis = [deform(neutral, row) - neutral for row in torch.eye(EXPRESSIONS)]
    return DeformingMesh(
        neutral.numpy(), torch.stack(basis, dim=-1).numpy(), np.array(made.faces, dtype=np.int64)
    )


def test_the_published_sizes_are_those_of_the_profiles():
    paper = read_config(CONFIG / "config.yaml", CONFIG / "paper.yaml").havatar
    sizes = (paper.condition_size, paper.plane_size, paper.plane_channels, paper.field_size)
    assert sizes == (256, 128, 64, 128)
    assert (paper.samples, paper.fine_samples, paper.images_per_step, paper.patch) == (
        64,
        16,
        2,
        64,
    )
    assert (paper.weights.mask, paper.weights.lpips_patch, paper.weights.lpips) == (0.01, 0.05, 0.1)
    assert (paper.learning_rate, paper.later_learning_rate) == (5e-4, 1e-4)
    assert (LOWER, UPPER) == ((-1.5, -1.6, -1.6), (1.5, 1.4, 1.2))


def test_the_networks_have_the_published_widths_and_parameters():
    """Two planes of 64 and 48 numbers of the place to 2 × 128, 64 features, 3 colours."""
    real = read_config(CONFIG / "config.yaml").havatar
    field = PlaneField(real)
    layers = (field.first, field.second, field.density, field.feature, field.colour)
    widths = [(layer.in_features, layer.out_features) for layer in layers]
    assert widths == [(176, 128), (128, 128), (128, 1), (128, 64), (64, 3)]
    assert sum(p.numel() for p in field.parameters()) == 47_748
    with torch.device("meta"):
        own = real.model_dump(include=set(HavatarModelSettings.model_fields))
        drawn = HavatarModelSettings(**own, expression_size=64, vertices=9, faces=9, scale=0.1)
        model = HAvatar(drawn)
    assert [part.entry.weight.shape[1] for part in (model.front, model.side)] == [7, 13]
    counts = {
        name: sum(p.numel() for p in part.parameters())
        for name, part in model.named_children()
        if name in ("front", "side", "upsampler")
    }
    assert counts == {"front": 19_609_968, "side": 19_610_352, "upsampler": 19_650_611}


def test_planes_are_sampled_at_known_points():
    """One channel tells the column, the other the row: of x and y in front, of z and y aside."""
    places = (torch.arange(8) + 0.5) / 4 - 1
    columns, rows = places.expand(8, 8), places[:, None].expand(8, 8)
    plane = torch.stack([columns, -rows])[None]  # y points up, the first row is at the top
    points = torch.tensor([[[0.25, -0.5, 0.75], [-0.6, 0.3, 0.1]]])
    found = Planes(plane, plane).sample(points)
    x, y, z = points.unbind(dim=-1)
    torch.testing.assert_close(found, torch.stack([x, y, z, y], dim=-1), atol=1e-6, rtol=0)
    outside = torch.tensor([[[1.3, 0.0, 0.0]]])
    assert (Planes(plane, plane).sample(outside)[..., :2] == 0).all()


def test_the_blend_is_the_head_above_and_rests_below():
    torso = Torso()
    landmarks = torch.zeros(68, 3)
    landmarks[8, 1] = -0.5  # the chin
    torso.place(FIRST_WEIGHTS, landmarks, torch.zeros(1, 6), 0.1)
    blend = Blend()
    blend.start(torso)

    def place(height: float) -> torch.Tensor:
        y = 2 * (height - LOWER[1]) / (UPPER[1] - LOWER[1]) - 1
        return torch.tensor([[[0.1, y, -0.2]]])

    shift = torch.tensor([0.05, 0.02, -0.03])
    for height, share in ((0.5, 1.0), (-1.5, 0.0), (-0.85, 0.5)):
        resting, riding = place(height), place(height) + shift
        moved = blend(resting, riding)
        # weights start at 0.01 and 0.99; a cell of 0.05 and the shift blur the step
        tolerance = 0.02 if share in (0, 1) else 0.15
        torch.testing.assert_close(
            moved - resting, (share * shift)[None, None], atol=tolerance * 0.05, rtol=0
        )


def test_at_its_ends_the_blend_is_exactly_one_of_its_inputs():
    blend = Blend()
    resting, riding = torch.rand(1, 50, 3) - 0.5, torch.rand(1, 50, 3) - 0.5
    for head, wanted in ((1, riding), (0, resting)):
        with torch.no_grad():
            blend.logits[1] = 40.0 * (2 * head - 1)
            blend.logits[0] = -blend.logits[1]
        torch.testing.assert_close(blend(resting, riding), wanted, atol=1e-6, rtol=0)
    assert blend.roughness() < 1e-6


@pytest.fixture(scope="module")
def trained(subject: Path, mesh: DeformingMesh, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("havatar")
    train_havatar(small_settings(), 0, mesh, subject / "capture", subject / "face", output)
    return output


def test_a_short_training_lowers_the_loss_and_draws_the_scene(subject, trained):
    log = pd.read_csv(trained / "log.csv")
    assert {"loss", "coarse", "fine", "mask", "latent", "blend", "image"} <= set(log)
    assert (log["image"][log["step"] < 35] == 0).all() and (log["image"].iloc[-1] > 0).all()
    assert log["fine"].iloc[-1] < 0.5 * log["fine"].iloc[0]
    method = open_method("havatar", trained, subject / "capture", CPU)
    frames = FrameSet.read(subject / "capture", subject / "face", "test", method.image_size)
    images = method.render(request(frames, 0))
    truth = frames.views(0, [0, 1]).images
    assert images.shape == truth.shape and images.min() >= 0 and images.max() <= 1
    blank = (1 - truth).square().mean()
    assert (images - truth).square().mean() < 0.6 * blank


def test_a_resumed_training_is_the_unbroken_one_bit_for_bit_across_the_phases(
    subject, mesh, tmp_path
):
    places = mesh, subject / "capture", subject / "face"
    settings = small_settings(steps=7, field_steps=4)
    whole = load_file(train_havatar(settings, 0, *places, tmp_path / "whole"))
    for steps in (2, 5, 7):
        part = settings.model_copy(update={"steps": steps})
        path = train_havatar(part, 0, *places, tmp_path / "parts")
    parts = load_file(path)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())


def test_the_second_phase_moves_the_upsampler_and_lowers_the_other_rates(subject, mesh):
    seed_everything(0)
    settings = small_settings(later_learning_rate=1e-4, decay_steps=1000)
    task = prepare_havatar(settings, 0, mesh, subject / "capture", subject / "face", CPU)
    with task:
        first = task.havatar.upsampler.exit.weight.detach().clone()
        task.step(0)
        assert torch.equal(task.havatar.upsampler.exit.weight, first)
        assert task.optimiser.param_groups[0]["lr"] == pytest.approx(5e-3)
        task.step(settings.field_steps)
        assert not torch.equal(task.havatar.upsampler.exit.weight, first)
        decayed = 0.1 ** (settings.field_steps / 1000)
        rates = [group["lr"] for group in task.optimiser.param_groups]
        assert rates == pytest.approx([1e-4 * decayed, settings.upsampler_learning_rate * decayed])


def test_before_training_the_upsampler_interpolates_the_rendered_colours(subject, mesh):
    seed_everything(0)
    settings = small_settings()
    task = prepare_havatar(settings, 0, mesh, subject / "capture", subject / "face", CPU)
    with task:
        features = settings.feature_size
        rendered = torch.full((1, settings.field_size**2, 3 + features), 0.25)
        style = task.havatar.style(torch.zeros(1, 6), torch.zeros(1, settings.latent_size))
        images = task.havatar.upsample(rendered, style)
        assert images.shape == (1, 32, 32, 3) and (images == 0.25).all()


def test_the_loss_of_the_mask_has_a_gradient_where_the_field_is_opaque(subject, mesh):
    seed_everything(0)
    task = prepare_havatar(small_settings(), 0, mesh, subject / "capture", subject / "face", CPU)
    depth = torch.full((1, 4), 50.0, requires_grad=True)  # alpha is 1 in single precision
    colours, visible = torch.zeros(1, 4, 3), torch.ones(1, 4, 1)
    seen = Composite(colours, 1 - torch.exp(-depth), depth, torch.zeros(1, 4, 2))
    with task:
        first = torch.zeros(1, dtype=torch.int64)
        view = task._view(first, first)
        losses = task._field_losses((seen, seen), colours, torch.zeros(1, 4), visible, view)
    losses["mask"].backward()
    torch.testing.assert_close(depth.grad, torch.full((1, 4), 0.25))


@pytest.mark.gpu
def test_captured_steps_of_both_phases_train_on_a_gpu(subject, mesh):
    seed_everything(0)
    device, settings = torch.device("cuda"), small_settings()
    task = prepare_havatar(settings, 0, mesh, subject / "capture", subject / "face", device)
    with task:
        losses = [task.step(step)["fine"].item() for step in range(60)]
        assert task.image_graph.captured and not task.field_graph.captured
        with task.averaged():
            frames = FrameSet.read(subject / "capture", subject / "face", "test", 32).to(device)
            images = task.havatar.render(request(frames, 0))
    assert images.is_cuda and images.isfinite().all()
    assert sum(losses[-10:]) < sum(losses[:10])


def test_lpips_that_is_required_must_be_there(subject, mesh, monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    settings = small_settings(lpips_required=True)
    with pytest.raises(UserError, match="or set lpips_required to false"):
        prepare_havatar(settings, 0, mesh, subject / "capture", subject / "face", CPU)


def test_at_rest_the_style_holds_no_motion(subject, mesh):
    settings = small_settings()
    task = prepare_havatar(settings, 0, mesh, subject / "capture", subject / "face", CPU)
    with task:
        rest = task.havatar.torso.rest_pose[None]
        style = task.havatar.style(rest, torch.ones(1, settings.latent_size))[0]
    motion = style[settings.latent_size :]
    expected = [*torch.eye(3).flatten().tolist(), 0, 0, 0]
    assert motion.tolist() == pytest.approx(expected, abs=1e-6)
