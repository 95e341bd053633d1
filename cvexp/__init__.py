"""cvexp: self-supervised pretraining and segmentation experiments, recorded in MLflow."""

__version__ = "0.1.0"
