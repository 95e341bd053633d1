"""Files of trained networks for use without cvexp: how they are written, described, read back and verified."""
