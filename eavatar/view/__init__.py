"""Looking at a trained avatar."""
