"""Plain PyTorch modules, independent of configuration, files and MLflow."""
