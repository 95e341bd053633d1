"""Image, mask and archive files that nobody has checked yet."""
