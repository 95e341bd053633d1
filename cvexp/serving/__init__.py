"""The program of a registered model. It runs without cvexp and PyTorch."""
