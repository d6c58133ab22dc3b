"""Stage `face`: 68 landmarks, and the multi-view morphable-model fit."""
