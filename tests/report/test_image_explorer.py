"""What the explorer shows of the user's own images."""

from pathlib import Path

import numpy as np
import pytest

from cvexp.report.embedding import compute_layout
from cvexp.report.image_explorer import folders_of


def test_images_in_several_folders_are_labeled_by_their_names() -> None:
    paths = ["x/R&D/a.jpg", "y/R&D/b.jpg", "x/<b>/c.jpg", "x/<b>/../d.jpg"]
    names, numbers = folders_of([Path(path) for path in paths])
    assert [names[number] for number in numbers] == ["R&D", "R&D", "<b>", "x"]


@pytest.mark.parametrize("num_folders", [1, 21])
def test_images_in_one_folder_or_in_too_many_have_no_labels(num_folders: int) -> None:
    names, numbers = folders_of([Path(f"{i % num_folders}/{i}.jpg") for i in range(42)])
    assert names == []
    assert set(numbers.tolist()) == {-1}


def test_equal_images_have_a_layout() -> None:
    layout = compute_layout(np.ones((6, 8), np.float32), None)
    assert layout.shape == (6, 2)
    assert np.isfinite(layout).all()
