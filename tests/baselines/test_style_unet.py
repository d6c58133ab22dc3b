"""The StyleUNet: sizes, and modulated convolutions against kernels made for each image."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import conv2d, leaky_relu

from eavatar.baselines.style_unet import StyledConvolution, StyleUNet, channels_at


def test_channels_are_those_of_stylegan2():
    assert [channels_at(size, 512) for size in (16, 32, 64, 128, 256, 512)] == [
        512, 512, 256, 128, 64, 32,
    ]  # fmt: skip
    assert channels_at(512, 16) == 4


def test_a_styled_convolution_has_a_kernel_of_unit_norm_for_each_image():
    torch.manual_seed(0)
    layer = StyledConvolution(5, 7, 3)
    images, styles = torch.randn(2, 5, 6, 6), torch.randn(2, 3)
    drawn = layer(images, styles)
    for image, style, ours in zip(images, styles, drawn, strict=True):
        kernel = layer.scale * layer.weight * layer.style(style)[None, :, None, None]
        kernel = kernel / kernel.square().sum((1, 2, 3), keepdim=True).sqrt()
        slow = conv2d(image[None], kernel, layer.bias, padding=1)
        torch.testing.assert_close(ours[None], 2**0.5 * leaky_relu(slow, 0.2), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("into", "out"), [(64, 32), (32, 32), (16, 64)])
def test_an_image_and_a_style_become_an_image_of_the_wanted_size(into, out):
    torch.manual_seed(0)
    network = StyleUNet(7, 5, into, 16, out, 6, channels=16)
    image = torch.randn(2, 7, into, into, requires_grad=True)
    style = torch.randn(2, 6, requires_grad=True)
    drawn = network(image, style)
    assert drawn.shape == (2, 5, out, out)
    drawn.square().mean().backward()
    assert image.grad.any() and style.grad.any()
    idle = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []


def test_variance_stays_within_an_order_of_magnitude():
    torch.manual_seed(0)
    network = StyleUNet(8, 8, 64, 16, 64, 6, channels=32)
    drawn = network(torch.randn(4, 8, 64, 64), torch.randn(4, 6))
    assert 0.1 < drawn.std().item() < 3


@pytest.mark.parametrize("channels", [8, 128])
def test_a_step_of_adam_moves_what_is_drawn_by_little_however_many_channels(channels):
    """With plain layers, weights of 512 channels are as small as a few steps, and all is lost."""
    torch.manual_seed(0)
    network = StyleUNet(7, 3, 32, 16, 32, 6, channels)
    image, style = torch.randn(2, 7, 32, 32), torch.randn(2, 6)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-4)
    before = network(image, style)
    before.mean().backward()
    optimiser.step()
    change = (network(image, style) - before).detach().square().mean().sqrt()
    # 0.01 and 0.23 of the deviation; 0.08 and 9.6 without the equalised learning rate.
    assert change < 0.5 * before.std().item()
