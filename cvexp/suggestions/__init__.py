"""What to do next, as the last line of a run or a sweep suggests it."""
