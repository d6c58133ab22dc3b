"""The 68 landmarks of iBUG by name: indices into (68, ·) arrays, right and left the subject's."""

COUNT = 68
JAW_ENDS = (0, 16)  # right, left
CHIN = 8
OUTER_LIP_CORNERS = (48, 54)  # right, left
MOUTH = slice(48, 68)
