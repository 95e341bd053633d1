"""Trained networks, ready for images: with their own preprocessing, on a device, in evaluation mode."""
