"""The multilayer perceptron and the positional encoding."""

from __future__ import annotations

import math

import pytest
import torch

from eavatar.avatar.networks import MLP, align_columns, encode_position, encoded_size


def test_encoding_of_a_known_point() -> None:
    x = 0.3
    octaves = [math.sin(x), math.cos(x), math.sin(2 * x), math.cos(2 * x)]
    octaves += [math.sin(4 * x), math.cos(4 * x), math.sin(8 * x), math.cos(8 * x)]
    encoded = encode_position(torch.tensor([x]))
    torch.testing.assert_close(encoded, torch.tensor([x, *octaves]))
    assert encode_position(torch.zeros(5, 3)).shape == (5, encoded_size(3)) == (5, 27)


def test_input_enters_again_in_the_middle() -> None:
    """GHA's geometry network: 27, 256 × 5, 132 has its skip before layer 3."""
    network = MLP([27, 256, 256, 256, 256, 256, 132])
    widths = [layer.in_features for layer in network.layers]
    assert widths == [27, 256, 256, 256 + 27, 256, 256]
    assert network(torch.zeros(2, 4, 27)).shape == (2, 4, 132)


def test_forward_by_hand() -> None:
    network = MLP([1, 1, 1])
    with torch.no_grad():
        network.layers[0].weight.fill_(2.0)
        network.layers[0].bias.fill_(-4.0)
        network.layers[1].weight.copy_(torch.tensor([[1.0, 10.0]]))
        network.layers[1].bias.fill_(0.5)
    # x = 1: hidden leaky(2 - 4) = -0.02, then -0.02 + 10 · 1 + 0.5
    torch.testing.assert_close(network(torch.tensor([[1.0]])), torch.tensor([[10.48]]))


def test_columns_of_zeros_change_nothing() -> None:
    """As `align_columns` adds them on CUDA."""
    torch.manual_seed(0)
    for sizes in ([5, 6], [5, 6, 6, 2], [27, 16, 16, 16, 3]):
        network, inputs = MLP(sizes), torch.randn(7, sizes[0])
        wider = torch.nn.functional.pad(inputs, (0, 3))
        torch.testing.assert_close(network(wider), network(inputs))


@pytest.mark.gpu
def test_columns_are_aligned_on_cuda() -> None:
    torch.manual_seed(0)
    network, inputs = MLP([27, 256, 256, 3]).double(), torch.randn(50, 27).double()
    expected = network(inputs)
    found = network.cuda()(inputs.cuda())
    assert align_columns(inputs.cuda()).shape == (50, 32)
    torch.testing.assert_close(found.cpu(), expected)
