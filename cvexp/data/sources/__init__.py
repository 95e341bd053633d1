"""What `dataset=` names: each source is a module with a `Config` and `recipes`."""
