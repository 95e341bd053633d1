"""Views of images. The distributions of random views are defined here and nowhere else."""
