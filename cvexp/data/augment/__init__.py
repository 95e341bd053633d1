"""Views of images: the distributions of random views are stated here, and nowhere else."""
