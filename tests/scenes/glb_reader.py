"""A reader of binary glTF that knows nothing of how we write it: JSON, and arrays by accessor."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {5121: np.uint8, 5125: np.uint32, 5126: np.float32}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


class GlbFile:
    def __init__(self, path: Path):
        data = path.read_bytes()
        magic, version, size, length, kind = struct.unpack("<4sIII4s", data[:20])
        assert (magic, version, size, kind) == (b"glTF", 2, len(data), b"JSON")
        self.content: dict[str, Any] = json.loads(data[20 : 20 + length])
        assert data[24 + length : 28 + length] == b"BIN\0"
        self.binary = data[28 + length :]

    def array(self, accessor: int) -> np.ndarray:
        found = self.content["accessors"][accessor]
        view = self.content["bufferViews"][found["bufferView"]]
        width = WIDTHS[found["type"]]
        kind = np.dtype(TYPES[found["componentType"]])
        assert view["byteOffset"] % 4 == 0
        assert view["byteLength"] == found["count"] * width * kind.itemsize
        flat = np.frombuffer(self.binary, kind, found["count"] * width, view["byteOffset"])
        array = flat.reshape(-1, width) if width > 1 else flat
        if "min" in found:
            np.testing.assert_array_equal(np.atleast_1d(array.min(axis=0)), found["min"])
            np.testing.assert_array_equal(np.atleast_1d(array.max(axis=0)), found["max"])
        return array

    def attributes(self) -> dict[str, np.ndarray]:
        (mesh,) = self.content["meshes"]
        (primitive,) = mesh["primitives"]
        return {name: self.array(number) for name, number in primitive["attributes"].items()}
