"""Stage `splat`: dynamic Gaussians with expression control, splitting and an upsampler."""
