"""Additions to cvexp from another package."""
