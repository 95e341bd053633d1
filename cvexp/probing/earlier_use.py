"""Whether the scored images were used before, to train the probed networks or to choose their checkpoints."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import PurePath
from typing import NamedTuple

from cvexp.config import RunConfig
from cvexp.data.index import Index
from cvexp.errors import UserError
from cvexp.metrics.selection import LAST
from cvexp.probing.networks import RANDOM, TIMM, Origin
from cvexp.tracking.data_record import recorded_files
from cvexp.tracking.finished import FinishedRun
from cvexp.tracking.store import Store


class EarlierUse(NamedTuple):
    """How the probed networks used the scored images.

    Attributes:
        num_trained: The number of images that some network was trained on.
        num_validated: The number of other images that some run validated on.
        selected: Whether validation images among them chose a checkpoint.
        is_unknown: Whether it is unknown which images some network was trained on.
    """

    num_trained: int = 0
    num_validated: int = 0
    selected: bool = False
    is_unknown: bool = False


def find_use(scored: Index, origins: Sequence[Origin], checkpoint: str, store: Store, config: RunConfig) -> EarlierUse:
    """Compare the scored images with those that the probed runs recorded, and the runs from which these started.

    An image is recognized by the name and the bytes of its file, in any folder.

    Args:
        scored: The split that is scored.
        origins: Where the probed networks come from. Random weights and those of timm count as unrelated to the data.
        checkpoint: Which checkpoint of runs is probed, ``"best"`` or ``"last"``.
        store: Where runs are recorded.
        config: The configuration of this process.
    """
    trained: set[str] = set()
    validated: set[str] = set()
    selected = is_unknown = False
    for origin in origins:
        if origin.run_id is None:
            is_unknown |= origin.method not in (RANDOM, TIMM)
            continue
        for run in _lineage(origin.run_id, store, config):
            used = None if run is None else _used_images(run, scored)
            if run is None or used is None:
                is_unknown = True
                continue
            trained |= used["train"]
            validated |= used["val"]
            selected |= bool(used["val"]) and checkpoint == "best" and run.params.get("task.monitor") != LAST
    return EarlierUse(len(trained), len(validated - trained), selected, is_unknown)


def _lineage(run_id: str, store: Store, config: RunConfig) -> Iterator[FinishedRun | None]:
    """Yield a run and the runs that it started from, newest first; None at the end if the origin is unknown."""
    source: str | None = run_id
    while source is not None:
        try:
            run = FinishedRun(store, store.run(source, "runs"), config)
        except UserError:  # it has been deleted
            yield None
            return
        yield run
        source = run.tags.get("weights_from")
    if run.start not in ("random", "timm"):
        yield None


def _used_images(run: FinishedRun, scored: Index) -> dict[str, set[str]] | None:
    """Return the scored images that a run used for ``"train"`` and for ``"val"``, or None if this is unknown."""
    own = {scored.catalog.file(image) for image in scored.images.tolist()}
    if run.tags.get(f"data.{scored.split}.fingerprint") == scored.fingerprint():
        return {"train": set(), "val": own if scored.split == "val" else set()}  # no image is in two splits
    recorded = recorded_files(run.store, run.id)
    if recorded is None or scored.catalog.members is not None or any(name.endswith(".tar") for name in recorded["val"]):
        return None  # shards do not say which images they contain
    name_of = {_identity(name, digest): name for name, digest in scored.file_digests().items()}
    identities = {split: {_identity(*file) for file in recorded[split].items()} for split in ("train", "val")}
    return {split: {name_of[one] for one in used & name_of.keys()} for split, used in identities.items()}


def _identity(name: str, digest: str) -> tuple[str, str]:
    """Return the name of a file without its folder, and the checksum of its bytes."""
    return PurePath(name).name, digest[:8]


def describe_use(scored: Index, use: EarlierUse) -> str:
    """Say which split is scored, and whether this may favor the probed networks."""
    number, is_test = len(scored.images), scored.split == "test"
    sentence = "The test split is scored" if is_test else "There is no test split, so the validation split is scored"
    used = {"trained": use.num_trained, "validated": use.num_validated if is_test else 0}
    if any(used.values()):
        parts = [f"{word} on {count}" for word, count in used.items() if count]
        return (
            f"{sentence}, but the probed networks were {' and '.join(parts)} of its {number} images; this may favor "
            "them over their controls."
        )
    if use.is_unknown:
        return (
            f"{sentence}. It is not recorded whether its images were also used to train the probed networks or to "
            "choose the checkpoint; this may favor them over their controls."
        )
    if is_test:
        return f"{sentence}. Nothing was chosen on its {number} images."
    if use.selected:
        return f"{sentence}, whose images also chose the checkpoint; this may favor the trained features slightly."
    return f"{sentence}."
