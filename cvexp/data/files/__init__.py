"""Reading and fetching of image, mask and archive files that may be broken or hostile."""
