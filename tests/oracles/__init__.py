"""Independent implementations, written for clarity, to test against."""
