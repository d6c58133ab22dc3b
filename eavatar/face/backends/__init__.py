"""The backends of `detect_landmarks`, a module each (see `eavatar.backends`)."""
