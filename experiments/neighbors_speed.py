"""How long does the search for nearest neighbors take, with 5000 queries among 50 000 features of 512 dimensions?

    python experiments/neighbors_speed.py

The script searches three times in loose classes, and three times in tight ones, where many features are almost as near
as the k-th neighbor.

Expected (two cores): 3.1 to 3.4 s per search for loose classes, and 4.6 to 5.0 s for tight ones.
"""

from __future__ import annotations

from time import perf_counter

import numpy as np

from cvexp.metrics.neighbors import nearest_neighbors

BANK, QUERIES, DIMENSIONS, CLASSES, K, REPEATS = 50_000, 5000, 512, 100, 10, 3


def main() -> None:
    random = np.random.default_rng(0)
    centers = random.normal(size=(CLASSES, DIMENSIONS))
    for spread in (1.0, 0.01):
        features = centers[np.arange(BANK) % CLASSES] + spread * random.normal(size=(BANK, DIMENSIONS))
        single = features.astype(np.float32)
        for _ in range(REPEATS):
            start = perf_counter()
            found = nearest_neighbors(single, single[:QUERIES], K, exclude=np.arange(QUERIES))
            seconds = perf_counter() - start
            print(f"spread {spread}: {seconds:.2f} s; mean {K}th cosine {found.cosines[:, -1].mean():.4f}")


if __name__ == "__main__":
    main()
