"""Builds the documentation: `make docs`."""
