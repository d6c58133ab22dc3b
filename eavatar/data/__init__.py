"""What a capture became on disk, read back: frames, masks, batches of pixels; videos written."""
