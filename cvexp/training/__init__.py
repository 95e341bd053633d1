"""What all training tasks have in common."""
