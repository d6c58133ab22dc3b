"""Time and memory of the upsamplers and of LPIPS: ``python -m benchmarks.upsample``, some minutes,
nearly all of them the compiler's.

On CUDA 512² features of 32 channels become 2048² images, and LPIPS (VGG) compares 512² patches; on
the CPU all is an eighth of that, for trying the script out. LPIPS' weights are random, on which its
speed does not depend. Medians over repetitions after a warm-up, on CUDA between events on the
device; float32 convolutions there are TF32, PyTorch's default. "graph" is the compiled network,
captured in a CUDA graph: without the host's time, as in training.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from eavatar.avatar.upsample import make_upsampler
from eavatar.device import choose_device
from eavatar.training.perceptual import Perceptual

DEVICE = choose_device()
SIDE = 512 if DEVICE.type == "cuda" else 64  # pixels of features and LPIPS patches
WARM_UPS = 5
REPETITIONS = 30 if DEVICE.type == "cuda" else 3


@dataclass(frozen=True)
class Mode:
    """How a network is run."""

    name: str
    mixed: bool = False
    compiled: bool = False
    captured: bool = False


@dataclass(frozen=True)
class Case:
    """A network, what it is given, and with respect to what its output is differentiated."""

    name: str
    network: nn.Module
    inputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]

    @staticmethod
    def of(name: str, network: nn.Module, *shapes: tuple[int, ...]) -> Case:
        """Random inputs, of which the first wants its gradient, as do the weights that learn."""
        torch.manual_seed(0)
        network = network.to(DEVICE)
        inputs = tuple(torch.rand(shape, device=DEVICE) for shape in shapes)
        leaves = [inputs[0].requires_grad_(), *network.parameters()]
        return Case(name, network, inputs, tuple(leaf for leaf in leaves if leaf.requires_grad))


MODES = [Mode("float32"), Mode("bfloat16", mixed=True), Mode("compiled", mixed=True, compiled=True)]
if DEVICE.type == "cuda":
    MODES.append(Mode("graph", mixed=True, compiled=True, captured=True))


def make_case(name: str, views: int) -> Case:
    """Of ``gha``, ``subpixel`` or ``lpips``, at the widths of the configuration's profiles."""
    if name == "lpips":
        import lpips

        with warnings.catch_warnings():
            # lpips still passes torchvision's old `pretrained`, which warns.
            warnings.simplefilter("ignore", UserWarning)
            model = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
        shape = (views, SIDE, SIDE, 3)
        return Case.of(name, Perceptual(model), shape, shape)
    width = 32 if name == "gha" else 64
    return Case.of(name, make_upsampler(name, 32, width, 4), (views, SIDE, SIDE, 32))


def count_multiplications(case: Case) -> float:
    """1e9 multiplications of all convolutions in a forward pass."""
    network, counts = copy.deepcopy(case.network).to("meta"), []
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(
                lambda layer, _, output: counts.append(output.numel() * layer.weight[0].numel())
            )
    network(*(torch.empty_like(values, device="meta") for values in case.inputs))
    return sum(counts) / 1e9


def passes(case: Case, mode: Mode) -> tuple[Callable[[], None], Callable[[], None]]:
    """The forward pass without gradients, and forward and backward pass."""
    torch.compiler.reset()
    network = (
        torch.compile(case.network, fullgraph=True, dynamic=False)
        if mode.compiled
        else case.network
    )

    def run() -> Tensor:
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=mode.mixed):
            return network(*case.inputs)

    with torch.no_grad():
        gradient = torch.rand_like(run())

    def forward() -> None:
        with torch.no_grad():
            run()

    def both() -> None:
        torch.autograd.grad(run(), case.leaves, gradient)

    return (capture(forward), capture(both)) if mode.captured else (forward, both)


def capture(run: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of it, compiled before on a stream of its own as capturing demands."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UPS):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def measure(run: Callable[[], None]) -> float:
    """Median milliseconds."""
    for _ in range(WARM_UPS):
        run()
    return statistics.median(time_once(run) for _ in range(REPETITIONS))


def time_once(run: Callable[[], None]) -> float:
    """Milliseconds of one run, on CUDA of the device."""
    if DEVICE.type == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    first.record()
    run()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def report(name: str, views: int, mode: Mode) -> None:
    """Print a line of the table. The memory is the peak of all tensors, weights included."""
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    case = make_case(name, views)
    multiplications = count_multiplications(case)
    forward, both = (measure(run) for run in passes(case, mode))
    memory = torch.cuda.max_memory_allocated() / 2**30 if DEVICE.type == "cuda" else float("nan")
    print(
        f"{name:9} {views:5}  {mode.name:9} {multiplications:7.1f} "
        f"{forward:11.2f} {both:20.2f} {memory:9.2f}",
        flush=True,
    )


def main() -> int:
    """The whole table; 1 if a line of it failed, whose error stands in its place."""
    argparse.ArgumentParser(description=__doc__.partition("\n\n")[0]).parse_args()
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else "CPU"
    print(f"{device}, PyTorch {torch.__version__}, features and LPIPS patches of {SIDE}²")
    print("network   views  mode         GMAC  forward ms  forward+backward ms  peak GiB")
    failures = 0
    for name in ("subpixel", "gha", "lpips"):
        for views in (1, 4):
            for mode in MODES:
                try:
                    report(name, views, mode)
                except Exception as error:  # whatever it is: the other lines are wanted too
                    failures += 1
                    reason = " ".join(str(error).split())[:500]
                    print(f"{name:9} {views:5}  {mode.name:9} {type(error).__name__}: {reason}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
