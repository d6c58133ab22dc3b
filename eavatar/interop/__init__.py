"""Interop: a subject in the layouts of other projects, so that they run on identical input."""
