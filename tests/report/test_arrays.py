"""Arrays that whoever can write to the store may have changed."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest

from cvexp.report.arrays import read_arrays


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch was-run",)


def test_arrays_are_read_by_name(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "good.npz", a=np.arange(3), b="text")
    arrays = read_arrays(tmp_path / "good.npz")
    assert arrays["a"].tolist() == [0, 1, 2]
    assert str(arrays["b"]) == "text"


def test_objects_are_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "evil.npz", features=np.array([_Evil()], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_arrays(tmp_path / "evil.npz")
    assert not Path("was-run").exists()


def test_a_small_file_of_huge_arrays_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "bomb.npz", features=np.zeros((100, 10_000)))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"8000[0-9]+ bytes, but the limit is 7000000"):
        read_arrays(tmp_path / "bomb.npz", max_bytes=7e6)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,), }"
    with zipfile.ZipFile(tmp_path / "short.npz", "w") as archive:
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    with pytest.raises((ValueError, MemoryError)):
        read_arrays(tmp_path / "short.npz")
