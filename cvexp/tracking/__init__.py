"""The record of runs in MLflow: writing it during a run, and finding it afterwards."""
