"""Stand-in: TRELLIS names its class of meshes for meshes as input, which are not asked for."""

from types import SimpleNamespace

geometry = SimpleNamespace(TriangleMesh=None)
