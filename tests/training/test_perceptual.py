"""LPIPS through the real package, with a weights file of the published name and shapes."""

from __future__ import annotations

import logging

import lpips
import pytest
import torch
import torchvision

from eavatar.errors import UserError
from eavatar.training.perceptual import Perceptual, load_perceptual
from eavatar.weights import backbone

CPU = torch.device("cpu")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def write_alexnet(path) -> dict[str, torch.Tensor]:
    """The published AlexNet's tensors by name and shape; one stored zero stands for the classifier.

    Expanded tensors keep the file at 10 MB instead of 233 MB, as LPIPS drops the classifier.
    """
    with torch.device("meta"):
        shapes = torchvision.models.alexnet(weights=None).state_dict()
    torch.manual_seed(0)
    state = {
        name: 0.05 * torch.randn(value.shape)
        if name.startswith("features")
        else torch.zeros(1).expand(value.shape)
        for name, value in shapes.items()
    }
    path.parent.mkdir(parents=True)
    torch.save(state, path)
    return state


def by_hand(state, first, second) -> torch.Tensor:
    """Zhang et al. 2018, Eq. 1, written out for AlexNet with the package's linear heads."""
    features = torchvision.models.AlexNet().features.eval()
    features.load_state_dict({k.removeprefix("features."): v for k, v in state.items()
                              if k.startswith("features.")})  # fmt: skip
    path = f"{lpips.__path__[0]}/weights/v0.1/alex.pth"
    heads = torch.load(path, weights_only=True, map_location="cpu")
    shift = torch.tensor([-0.030, -0.088, -0.188])[:, None, None]
    spread = torch.tensor([0.458, 0.448, 0.450])[:, None, None]
    pair = [(2 * image.permute(2, 0, 1) - 1 - shift) / spread for image in (first, second)]
    total = torch.zeros(())
    taps = [1, 4, 7, 9, 11]
    for index, layer in enumerate(features):
        pair = [layer(values[None])[0] for values in pair]
        if index in taps:
            a, b = (v / (v.square().sum(0).sqrt() + 1e-10) for v in pair)
            head = heads[f"lin{taps.index(index)}.model.1.weight"][0]
            total = total + ((a - b).square() * head).sum(0).mean()
    return total


def test_distance_is_that_of_the_paper(cache):
    state = write_alexnet(backbone("alex").path)
    perceptual = load_perceptual("alex", CPU, required=True)
    assert perceptual is not None
    torch.manual_seed(1)
    first, second = torch.rand(2, 64, 64, 3), torch.rand(2, 64, 64, 3)
    with torch.no_grad():
        expected = torch.stack([by_hand(state, a, b) for a, b in zip(first, second, strict=True)])
        # float32 convolutions, added in another order
        torch.testing.assert_close(perceptual(first, second), expected, rtol=1e-3, atol=1e-6)
        assert torch.equal(perceptual(first, first), torch.zeros(2))


def test_gradient_reaches_the_image_and_not_the_weights(cache):
    write_alexnet(backbone("alex").path)
    perceptual = Perceptual.load("alex", CPU)
    image = torch.rand(1, 64, 64, 3, requires_grad=True)
    perceptual(image, torch.rand(1, 64, 64, 3)).sum().backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in perceptual.parameters())


def random_model(net: str = "alex") -> lpips.LPIPS:
    """The package's metric on a backbone of random weights."""
    torch.manual_seed(0)
    return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


def value_and_gradient(distance, prediction, target) -> tuple[torch.Tensor, torch.Tensor]:
    prediction = prediction.clone().requires_grad_()
    values = distance(prediction, target)
    return values.detach(), torch.autograd.grad(values.sum(), prediction)[0]


def test_values_and_gradients_are_those_of_the_package():
    model = random_model()

    def package(prediction, target):
        pair = [images.permute(0, 3, 1, 2) for images in (prediction, target)]
        return model(*pair, normalize=True).flatten()

    prediction, target = torch.rand(2, 2, 70, 64, 3)
    theirs = value_and_gradient(package, prediction, target)
    ours = value_and_gradient(Perceptual(model), prediction, target)
    for a, b in zip(ours, theirs, strict=True):
        # float32 convolutions in another memory layout
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("net", ["alex", "vgg"])
def test_distances_are_those_of_the_package_to_a_millionth(net):
    model = random_model(net)
    truths = torch.rand(3, 64, 72, 3)
    images = torch.stack([truths[0], (truths[1] + 0.1).clamp(max=1), torch.rand(64, 72, 3)])
    with torch.no_grad():
        pair = [batch.permute(0, 3, 1, 2) for batch in (images, truths)]
        expected = model(*pair, normalize=True).flatten()
        distances = Perceptual(model)(images, truths)
    assert expected[0] == 0 and expected[1:].min() > 1e-3  # a thousand times the tolerance
    torch.testing.assert_close(distances, expected, rtol=0, atol=1e-6)


def test_no_gradient_is_infinite_where_all_features_are_zero():
    """Convolutions of zero weights: the features' length is 0, where its slope is infinite."""
    model = random_model()
    for parameter in model.net.parameters():
        torch.nn.init.zeros_(parameter)
    values, gradient = value_and_gradient(Perceptual(model), *torch.rand(2, 1, 64, 64, 3))
    assert torch.equal(values, torch.zeros(1)) and torch.equal(gradient, torch.zeros(1, 64, 64, 3))


def test_mixed_precision_gives_float32_near_full_precision():
    perceptual = Perceptual(random_model())
    prediction, target = torch.rand(2, 1, 64, 64, 3)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = perceptual(prediction, target)
    assert mixed.dtype == torch.float32
    # bfloat16 rounds every feature by 0.4 %
    torch.testing.assert_close(mixed, perceptual(prediction, target), rtol=0.02, atol=0)


def test_one_graph_can_be_traced():
    perceptual = Perceptual(random_model())
    traced = torch.compile(perceptual, backend="aot_eager", fullgraph=True)
    pair = torch.rand(2, 1, 64, 64, 3)
    for a, b in zip(
        value_and_gradient(traced, *pair), value_and_gradient(perceptual, *pair), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * b.abs().max().item())


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_missing_weights_are_told_once(cache, caplog, net):
    with caplog.at_level(logging.WARNING):
        assert load_perceptual(net, CPU, required=False) is None
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert str(backbone(net).path) in message and "https://download.pytorch.org" in message
    with pytest.raises(UserError, match="lpips_required"):
        load_perceptual(net, CPU, required=True)
    assert not backbone(net).path.exists()  # nothing was downloaded


@pytest.mark.parametrize("content", ["cut short", "other tensors"])
def test_damaged_weights_are_an_error(cache, content):
    path = backbone("alex").path
    write_alexnet(path)
    if content == "cut short":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        torch.save({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="does not hold the published weights"):
        load_perceptual("alex", CPU, required=False)
