"""The 68 landmarks of iBUG by name: indices into (68, ·) arrays, right and left the subject's."""

COUNT = 68
JAW_ENDS = (0, 16)  # right, left
CHIN = 8
OUTER_LIP_CORNERS = (48, 54)  # right, left
MOUTH = slice(48, 68)
# The landmark on the other side of the face, of each; those of the median plane are their own.
MIRROR = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
)  # fmt: skip
