"""Images ranked by how well they were segmented."""

import numpy as np

from cvexp.metrics.ranking import best_median_worst


def test_images_without_any_class_are_not_pictured() -> None:
    per_image = [(9, 9, 9), (0, 1, 0), (5, 9, 9), (1, 9, 9), (0, 0, 0)]  # the second has a false pixel and no label
    counts = np.array([[(100, 100, 100), own] for own in per_image])
    assert best_median_worst([counts], np.full(5, 109), 1) == {"best": [0], "median": [2], "worst": [3]}


def test_images_that_are_mostly_ignored_are_pictured_only_where_all_are() -> None:
    per_image = [[(0, 0, 0), (9, 9, 9)], *([(40, 45, 41), (i, 9, 9)] for i in (8, 6, 4))]
    counts = np.array(per_image)  # of the first only the object is labeled
    areas = np.array([100, 100, 90, 100])
    assert best_median_worst([counts], areas, 1) == {"best": [1], "median": [2], "worst": [3]}
    assert best_median_worst([counts], areas * 10, 1)["best"] == [0]
