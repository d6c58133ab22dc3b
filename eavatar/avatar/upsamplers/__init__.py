"""The upsamplers of stage II, a module each (see `eavatar.backends`)."""
