"""The sources of `generate_prior`, a module each (see `eavatar.backends`)."""
