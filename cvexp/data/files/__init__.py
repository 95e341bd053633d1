"""Reading and fetching image, mask and archive files that may be broken or hostile."""
