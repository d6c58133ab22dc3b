"""Checks before a run: sample sheet, inputs, machine; all faults at once."""
