"""The record of runs in MLflow: written while they run, and found afterwards."""
