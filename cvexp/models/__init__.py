"""Plain PyTorch modules: no configuration, no files, no MLflow."""
