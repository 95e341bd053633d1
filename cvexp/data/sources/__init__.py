"""The data sources that `dataset=` selects. Each is a module with a `Config` and `recipes`."""
