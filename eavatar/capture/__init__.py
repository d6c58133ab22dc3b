"""Stage `capture`: raw videos to colour-corrected, cropped frames, cameras and masks."""
