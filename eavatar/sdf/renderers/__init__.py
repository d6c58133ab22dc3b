"""The renderers of stage I, a module each (see `eavatar.backends`)."""
