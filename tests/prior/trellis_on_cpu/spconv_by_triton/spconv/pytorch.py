"""What TRELLIS takes from spconv."""

from spconv_triton.pytorch import (
    ConvAlgo,
    SparseConv3d,
    SparseConvTensor,
    SparseInverseConv3d,
    SubMConv3d,
)

__all__ = ["ConvAlgo", "SparseConv3d", "SparseConvTensor", "SparseInverseConv3d", "SubMConv3d"]
