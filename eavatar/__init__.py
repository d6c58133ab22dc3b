"""EAvatar: expression-aware 3D Gaussian head avatars from raw multi-view video."""

__version__ = "0.2.0"
