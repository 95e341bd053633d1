"""Figures and pages that people look at; nothing here knows a model."""
