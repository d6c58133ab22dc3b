"""What both training stages share: loop, losses, optimiser, captured steps."""
