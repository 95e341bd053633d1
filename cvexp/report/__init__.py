"""Tables, figures and pages for people. Nothing here depends on a model."""
