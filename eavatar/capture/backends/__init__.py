"""The backends of `matte`, a module each (see `eavatar.backends`)."""
