"""What `task=probe` works on: the data, the networks and their controls, and the features that they compute."""
