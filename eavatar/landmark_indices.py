"""The 68 landmarks of iBUG by name: indices into (68, ·) arrays, right and left the subject's."""

COUNT = 68
JAW_ENDS = (0, 16)  # right, left
CHIN = 8
JAW_SIDES = [*range(6), *range(11, 17)]
OUTER_LIP_CORNERS = (48, 54)  # right, left
BROWS = slice(17, 27)
EYES = slice(36, 48)
MOUTH = slice(48, 68)
INNER_LIPS = slice(60, 68)
# Rings, clockwise in an image of the front: their area is negative from behind.
RIGHT_BROW, LEFT_BROW = list(range(17, 22)), list(range(22, 27))
RIGHT_EYE, LEFT_EYE = list(range(36, 42)), list(range(42, 48))
LIPS = list(range(48, 60))
FACE = [*range(17, 27), *range(16, -1, -1)]
JAW_CORNERS = (4, 12)  # right, left
NOSE_BASE = 33
# The landmark on the other side of the face, of each; those of the median plane are their own.
MIRROR = (
    *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
    45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
    *range(54, 47, -1), *range(59, 54, -1), *range(64, 59, -1), *range(67, 64, -1),
)  # fmt: skip
