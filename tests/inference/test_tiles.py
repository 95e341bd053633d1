import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvexp.inference.tiles import OVERLAP, Blend, Layout, arrange


def blended(layout: Layout, image: torch.Tensor) -> torch.Tensor:
    blend = Blend(layout)
    return torch.cat([rows for tile in layout.cut(image) for rows in blend.add(tile)], dim=1)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 90), st.integers(1, 90), st.integers(2, 40))
def test_tiles_cover_the_image_and_overlap(height: int, width: int, size: int) -> None:
    layout = arrange(height, width, size)
    for starts, length in ((layout.tops, height), (layout.lefts, width)):
        assert starts[0] == 0
        assert starts[-1] + size == max(length, size)
        steps = [after - before for before, after in itertools.pairwise(starts)]
        assert all(1 <= step <= max(1, size - OVERLAP * size) for step in steps)
    image = torch.randn(2, height, width, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(blended(layout, image), image)


def test_the_blend_changes_gradually_from_one_tile_to_the_next() -> None:
    layout = arrange(16, 28, 16)
    assert (layout.tops, layout.lefts) == ([0], [0, 12])
    blend = Blend(layout)
    rows = [row for value in (0.0, 1.0) for row in blend.add(torch.full((1, 16, 16), value))]
    (blended_11w,) = rows
    line = blended_11w[0, 5]
    assert line[:12].tolist() == [0.0] * 12
    assert line[16:].tolist() == [1.0] * 12
    assert line[12:16].tolist() == pytest.approx([0.125, 0.375, 0.625, 0.875])
