"""What all that trains has in common."""
