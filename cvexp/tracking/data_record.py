"""The record of the data that a run uses: fingerprints, counts, and a digest of each file."""

from __future__ import annotations

import gzip
import json
import tempfile
from pathlib import Path

from cvexp.data.index import Index, Splits
from cvexp.errors import UserError
from cvexp.tracking.run import ReadOnlyRun, Run
from cvexp.tracking.store import Store

FILES = "data/files.json.gz"  # the artifact with a digest of each file
LARGEST_FILES = 2**28  # bytes, unpacked
NUM_NAMED = 3  # files of each kind in a message


def record_data(run: ReadOnlyRun, name: str, splits: Splits) -> None:
    """Record the data set: source, fingerprint and counts of each split, its files, and what was left out.

    A resumed run has recorded all this already, unless it was killed first. If it has, its data must be unchanged.

    Args:
        run: The run that records the data.
        name: Name of the data source.
        splits: The data.

    Raises:
        UserError: naming some of the files, if the data have changed since the run began.
    """
    tags = run.tags()
    recorded = [tags.get(f"data.{index.split}.fingerprint") for index in splits]
    fingerprints = [index.fingerprint() for index in splits]
    if recorded == fingerprints:
        return
    if any(old not in (None, new) for old, new in zip(recorded, fingerprints, strict=True)):
        raise UserError(
            f"dataset: the data in {splits.val.place} have changed since the run {run.id} began"
            f"{_changed_files(run, splits)}; restore them, or start a new run"
        )
    if isinstance(run, Run):
        _write(run, name, splits, fingerprints)


def _write(run: Run, name: str, splits: Splits, fingerprints: list[str]) -> None:
    run.log_inputs(
        [_describe(name, index, fingerprint) for index, fingerprint in zip(splits, fingerprints, strict=True)]
    )
    files = {index.split: index.file_digests() for index in splits}
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / Path(FILES).name
        path.write_bytes(gzip.compress(json.dumps(files).encode(), mtime=0))
        run.log_file(path, str(Path(FILES).parent))
    left_out = [str(problem) for index in splits for problem in index.problems]
    run.log_metrics({"data/left_out": len(left_out)}, step=0)
    run.flush()
    if left_out:
        run.log_text("\n".join(left_out) + "\n", "data/left_out.txt")
    for index, fingerprint in zip(splits, fingerprints, strict=True):  # last, to show that all else is recorded
        run.set_tag(f"data.{index.split}.fingerprint", fingerprint)


def _describe(name: str, index: Index, fingerprint: str) -> dict[str, str]:
    """Describe a split as MLflow does."""
    return {
        "context": index.split,
        "name": f"{name}-{index.split}",
        "digest": fingerprint[:36],  # MLflow's limit
        "source_type": "local",
        "source": json.dumps({"uri": index.place if "://" in index.place else str(index.root.absolute())}),
        "profile": json.dumps({"images": len(index.images), "objects": len(index), "classes": index.counts()}),
    }


def _changed_files(run: ReadOnlyRun, splits: Splits) -> str:
    """Name some of the files that differ from the recorded ones; return "" if none were recorded."""
    recorded = recorded_files(run.store, run.id)
    if recorded is None:
        return ""
    changes = []
    for index in splits:
        now, before = index.file_digests(), recorded.get(index.split, {})
        for word, files in (
            ("changed", [file for file in now.keys() & before.keys() if now[file] != before[file]]),
            ("new", now.keys() - before.keys()),
            ("gone", before.keys() - now.keys()),
        ):
            named = ", ".join(sorted(files)[:NUM_NAMED])
            more = f" and {len(files) - NUM_NAMED} more" if len(files) > NUM_NAMED else ""
            if files:
                changes.append(f"{index.split}: {word} {named}{more}")
    return f" ({'; '.join(changes) or 'the same files, but other classes'})"


def recorded_files(store: Store, run_id: str) -> dict[str, dict[str, str]] | None:
    """Return the digest of each file that a run used, by split and name, see :meth:`Index.file_digests`.

    It is None if the record comes from an older version, or is damaged.
    """
    try:
        return store.read(run_id, FILES, _read_files)
    except UserError:
        return None


def _read_files(path: Path) -> dict[str, dict[str, str]]:
    """Read the digest of each file by split."""
    with gzip.open(path) as stream:
        content: dict[str, dict[str, str]] = json.loads(stream.read(LARGEST_FILES))
    return {str(split): dict(files) for split, files in content.items()}
