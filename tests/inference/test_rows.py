import pytest
import torch
import torch.nn.functional as F

from cvexp.inference import rows
from cvexp.inference.rows import RowResizer, resize_rows

SIZES = [
    ((7, 5), (7, 5)),
    ((7, 5), (40, 33)),
    ((40, 33), (7, 5)),
    ((1, 9), (50, 1)),
    ((64, 64), (100, 3)),
    ((3, 3), (1, 1)),
]


@pytest.mark.parametrize(("size", "new_size"), SIZES)
@pytest.mark.parametrize("num_rows", [1, 4, 1000])
@pytest.mark.parametrize("max_rows", [1, 3, 32])
def test_rows_that_arrive_in_parts_are_resized_as_a_whole(
    size: tuple[int, int], new_size: tuple[int, int], num_rows: int, max_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MAX_ROWS", max_rows)
    maps = torch.randn(4, *size, generator=torch.Generator().manual_seed(0))
    resizer = RowResizer(size, new_size)
    parts = [part for chunk in maps.split(num_rows, dim=1) for part in resizer.add(chunk)]
    assert all(part.shape[1] <= max_rows for part in parts)
    expected = F.interpolate(maps[None], new_size, mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=2e-5, rtol=1e-5)


def test_maps_of_the_right_size_do_not_change() -> None:
    maps = torch.randn(3, 65, 21)
    assert torch.equal(torch.cat(list(resize_rows(maps, (65, 21))), dim=1), maps)


def test_only_a_few_rows_are_in_memory() -> None:
    resizer = RowResizer((4000, 2), (4000, 2))
    for part in torch.zeros(1, 4000, 2).split(10, dim=1):
        for _ in resizer.add(part):
            pass
        assert resizer.kept is not None
        assert resizer.kept.shape[1] <= 12
