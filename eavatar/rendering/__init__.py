"""Gaussian splatting of any features: one function on gsplat (CUDA) and on our kernel (CPU)."""
