"""The sections of the report, each written from what finished runs recorded."""
