"""Plain functions of arrays and tensors, independent of configuration, files and MLflow."""
