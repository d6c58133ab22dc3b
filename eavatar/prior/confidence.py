"""Whether an alignment of the prior is right: one number, of four that tell heads from others.

The confidence is the least of four values in [0, 1], each linear between two limits:

residual  mean distance between prior and fitted face, from each to the other
          (`eavatar.prior.registration.face_residual`): what has no face is far from it
margin    by how much the error of the next best distinct orientation is larger, distance from the
          masks' outlines included: a sphere or a heap of noise fits as well in another one
coverage  fraction of the fitted face that the prior comes close to: a small piece that happens to
          fit is no face
masks     mean distance by which the prior is outside the person's masks: a head that is wrongly
          placed, or larger than the person's, sticks out

What the prior lacks in the masks only ranks candidates: hair, say, of the generic head.

The limits were chosen on heads and other meshes of `benchmarks.align`, see docs/method.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.spatial import cKDTree

from eavatar.arrays import Float64
from eavatar.prior.registration import Candidate, Target

# At the first limit the value is 0, at the second 1.
RESIDUAL = 0.065, 0.03  # dm
MARGIN = 0.0, 0.12  # of the best error
COVERAGE = 0.2, 0.5  # of the face's area
PROTRUSION = 0.010, 0.002  # dm
TOLERANCE = 0.1  # within which a point of the face is covered, dm


def confidence(found: Sequence[Candidate], prior: Float64, target: Target) -> float:
    """The confidence in the first of some candidates, in [0, 1].

    Args:
        found: by `eavatar.prior.registration.register`.
        prior: (N, 3) samples in the prior's frame.
        target: that they were registered to.
    """
    best = found[0]
    others = [other.error / max(best.error, 1e-9) - 1 for other in found[1:]]
    distance, _ = cKDTree(best.transform.apply(prior)).query(target.points[target.on_face])
    values = [
        np.interp(-best.residual, -np.array(RESIDUAL), (0, 1)),
        np.interp(min(others, default=np.inf), MARGIN, (0, 1)),
        np.interp(np.mean(distance < TOLERANCE), COVERAGE, (0, 1)),
        np.interp(-best.protrusion, -np.array(PROTRUSION), (0, 1)),
    ]
    return float(min(values))
