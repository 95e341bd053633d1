"""Tasks, each a module with a `Config` and a `main(config, run)`."""
