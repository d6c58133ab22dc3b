"""Tests, in the folders of the package they test. A package, so that they can share scenes."""
