"""Tables of features, as Parquet and npz files.

A row is an image: its path, width, height, and features, the last of which is a list of fixed size.
"""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cvexp.errors import opening

ROWS = 4096  # of a row group, which are kept in memory until they are written
METADATA = b"cvexp"  # the key in the metadata of a file


class TableWriter:
    """Adds rows to a table; see :func:`new_table`.

    Attributes:
        num_rows: Number of rows so far.
    """

    def __init__(self, file: pq.ParquetWriter, schema: pa.Schema) -> None:
        self.num_rows = 0
        self._file, self._schema = file, schema
        self._waiting: list[pa.RecordBatch] = []

    def write(self, paths: Sequence[str], sizes: Sequence[tuple[int, int]], features: NDArray[np.float32]) -> None:
        """Add the rows of b images.

        Args:
            paths: Their paths.
            sizes: Their widths and heights.
            features: Their features (b, d).
        """
        columns = [
            pa.array(paths),
            *(pa.array(side, pa.int32()) for side in zip(*sizes, strict=True)),
            pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), type=self._schema.field("features").type),
        ]
        self._waiting.append(pa.record_batch(columns, schema=self._schema))
        self.num_rows += len(paths)
        if sum(len(batch) for batch in self._waiting) >= ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait as a row group."""
        self._file.write_table(pa.Table.from_batches(self._waiting, self._schema))
        self._waiting.clear()


@contextlib.contextmanager
def new_table(path: Path, num_features: int, metadata: Mapping[str, Any]) -> Iterator[TableWriter]:
    """Write a Parquet file, a few thousand rows at a time. If that fails, no file is left.

    Args:
        path: The file, which is replaced if it exists.
        num_features: Number of features of an image, d.
        metadata: JSON that is stored in the file.
    """
    features = pa.list_(pa.field("element", pa.float32(), nullable=False), num_features)
    fields = (("path", pa.string()), ("width", pa.int32()), ("height", pa.int32()), ("features", features))
    columns = [pa.field(name, kind, nullable=False) for name, kind in fields]
    schema = pa.schema(columns, metadata={METADATA: json.dumps(metadata)})
    try:
        with pq.ParquetWriter(path, schema, use_dictionary=False) as file:
            writer = TableWriter(file, schema)
            yield writer
            writer.flush()
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def copy_table(source: Path, target: Path) -> None:
    """Copy a Parquet file that :func:`new_table` wrote to a new file, which may end in ``.npz``.

    Raises:
        UserError: if the file exists or can't be written.
    """
    with opening("task.out"), target.open("xb") as file:
        try:
            if target.suffix == ".npz":
                _write_npz(source, file)
            else:
                with source.open("rb") as content:
                    shutil.copyfileobj(content, file)
        except BaseException:
            target.unlink()
            raise


def _write_npz(source: Path, file: BinaryIO) -> None:
    """Write the arrays paths (n,), sizes (n, 2) with widths and heights, features (n, d), and the metadata as JSON."""
    table = pq.read_table(source).combine_chunks()
    features = table.column("features").combine_chunks()
    np.savez(
        file,
        paths=np.array(table.column("path").to_pylist(), dtype=np.str_),
        sizes=np.stack([table.column(name).to_numpy() for name in ("width", "height")], axis=1),
        features=features.flatten().to_numpy().reshape(len(table), -1),
        metadata=np.array(table.schema.metadata[METADATA].decode()),
    )
