"""Tasks, each a module with a `Config` and a `run(config, run)`."""
