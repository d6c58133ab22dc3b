"""Binary glTF 2.0: one buffer of arrays behind one JSON description."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from eavatar.io import atomic

Content = dict[str, Any]

MAGIC, VERSION = b"glTF", 2
JSON_CHUNK, BINARY_CHUNK = b"JSON", b"BIN\0"
COMPONENTS = {"uint8": 5121, "uint32": 5125, "float32": 5126}
KINDS = {(): "SCALAR", (3,): "VEC3", (4,): "VEC4"}
VERTICES, INDICES = 34962, 34963  # targets of buffer views
POINTS, TRIANGLES = 0, 4  # modes of primitives


class Glb:
    """Collects the arrays of a file, whose JSON names them by the number of their accessor."""

    def __init__(self) -> None:
        self._chunks: list[bytes] = []
        self._views: list[Content] = []
        self._accessors: list[Content] = []

    def add(self, array: NDArray[Any], target: int | None = None, bounds: bool = False) -> int:
        """Add an array; returns its accessor.

        Args:
            array: (N,), (N, 3) or (N, 4) of a type in `COMPONENTS`, whose rows have a multiple of
                4 bytes.
            target: `VERTICES` or `INDICES`; None for the numbers of an animation.
            bounds: state the least and the largest values, as positions and times must.
        """
        data = np.ascontiguousarray(array).tobytes()
        offset = sum(map(len, self._chunks))
        view = {"buffer": 0, "byteOffset": offset, "byteLength": len(data)}
        accessor: Content = {
            "bufferView": len(self._views),
            "componentType": COMPONENTS[array.dtype.name],
            "count": len(array),
            "type": KINDS[array.shape[1:]],
        }
        if bounds:
            rows = array.reshape(len(array), -1)
            accessor |= {"min": rows.min(axis=0).tolist(), "max": rows.max(axis=0).tolist()}
        self._chunks.append(data)
        self._views.append(view if target is None else view | {"target": target})
        self._accessors.append(accessor)
        return len(self._accessors) - 1

    def write(self, path: Path, content: Content) -> Path:
        """Write the file; returns ``path``.

        Args:
            path: the file.
            content: the JSON without ``asset``, ``scene`` and what says where the arrays are.
        """
        binary = b"".join(self._chunks)
        description = {
            "asset": {"version": "2.0", "generator": "eavatar"},
            "scene": 0,
            **content,
            "accessors": self._accessors,
            "bufferViews": self._views,
            "buffers": [{"byteLength": len(binary)}],
        }
        text = json.dumps(description, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        chunks = ((JSON_CHUNK, text), (BINARY_CHUNK, binary))
        size = 12 + sum(8 + len(data) for _, data in chunks)
        with atomic(path) as temporary, temporary.open("wb") as file:
            file.write(struct.pack("<4sII", MAGIC, VERSION, size))
            for kind, data in chunks:
                file.write(struct.pack("<I4s", len(data), kind) + data)
        return path
