"""Stand-in: TRELLIS imports it for Gaussians, which are not asked for."""
