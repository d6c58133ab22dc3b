"""Stand-in for what FlexiCubes imports."""
