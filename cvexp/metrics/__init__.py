"""Plain functions of tensors: no configuration, no files, no MLflow."""
