"""The avatar: neutral Gaussians, the networks that drive them, and the upsampler."""
