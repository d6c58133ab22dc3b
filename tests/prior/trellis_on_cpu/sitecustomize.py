"""TRELLIS' own code without a GPU, for tests: what differs is put in place as it is imported.

The interpreter of the tests has this folder on its path, so that Python imports this file when it
starts, and finds stand-ins for packages of which a mesh from images needs nothing: `utils3d`,
`transformers`, `open3d`, `rembg` and `kaolin`. On a GPU nothing differs, but that `spconv_triton`,
if it is there, is found by the name of `spconv`, and that torch's attention takes the place of
xformers' where that was built for another PyTorch and so refuses.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def attend_by_torch(operations: Any) -> None:
    """xformers' attention by torch's own, block by block of a mask (1, length, heads, channels)."""
    import torch

    def attend(query: Any, key: Any, value: Any, attn_bias: Any = None, **_: Any) -> Any:
        if attn_bias is None:
            blocks = [(slice(None), slice(None))]
        else:
            rows, columns = attn_bias.q_seqinfo.intervals(), attn_bias.k_seqinfo.intervals()
            blocks = [
                (slice(*row), slice(*column)) for row, column in zip(rows, columns, strict=True)
            ]
        parts = []
        for row, column in blocks:
            asked, keys, values = (
                part.transpose(1, 2) for part in (query[:, row], key[:, column], value[:, column])
            )
            attended = torch.nn.functional.scaled_dot_product_attention(asked, keys, values)
            parts.append(attended.transpose(1, 2))
        return torch.cat(parts, dim=1)

    operations.memory_efficient_attention = attend


def attend_on_gpu(operations: Any) -> None:
    """The same where xformers' operators do not load."""
    import xformers

    if not xformers._has_cpp_library:
        attend_by_torch(operations)


def extract_on_cpu(module: Any) -> None:
    """The mesh extraction, whose device is by default a GPU and never said."""
    initial = module.SparseFeatures2Mesh.__init__
    _, *others = initial.__defaults__
    initial.__defaults__ = ("cpu", *others)


def convolve_on_cpu(module: Any) -> None:
    """spconv's convolutions, which have code for the CPU in their training mode alone."""
    move = module.Pipeline.to

    def to(self: Any, device: Any) -> None:
        move(self, device)
        for model in self.models.values():
            for part in model.modules():
                if type(part).__module__.startswith("spconv"):
                    part.train()

    module.Pipeline.to = to


ON_CPU: dict[str, Callable[[Any], None]] = {
    "xformers.ops": attend_by_torch,
    "trellis.representations.mesh.cube2mesh": extract_on_cpu,
    "trellis.pipelines.base": convolve_on_cpu,
}
ON_GPU = "EAVATAR_TRELLIS_ON_GPU" in os.environ
PATCHES = {"xformers.ops": attend_on_gpu} if ON_GPU else ON_CPU


class Patcher(MetaPathFinder):
    """Finds modules as usual and has a patch follow their execution."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        patch = PATCHES.get(name)
        spec = PathFinder.find_spec(name, path) if patch else None
        if patch and spec and spec.loader:
            loader: Any = spec.loader
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                execute(module)
                patch(module)

            loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Patcher())
if ON_GPU and PathFinder.find_spec("spconv_triton"):
    sys.path.insert(0, str(Path(__file__).parent / "spconv_by_triton"))
