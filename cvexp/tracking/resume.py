"""Configurations read back from a store. Whoever can write to the store may have changed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cvexp.composition import check
from cvexp.config import RunConfig, flatten
from cvexp.errors import UserError
from cvexp.tracking.store import Store, connect

NO_TEST: dict[str, dict[str, Any]] = {  # the keys of each source for the test split, as if there were none
    "shapes": {"test_images": 0},
    "coco": {"test_annotations": None, "test_images": None},
    "voc": {"test_list": None},
    "folder": {"test_images": None, "test_masks": None},
}
FOLDERS = ("root", "cache", "local")  # keys of `dataset` that name folders which a run may create
TASK_FOLDERS = ("out", "shards")  # the same for `task`
TABLES = (".parquet", ".npz")  # files that `task.out` may name, in such a folder


def saved_config(config: RunConfig, composed: DictConfig, overrides: list[str]) -> RunConfig:
    """Return the configuration that the run `config.resume` was started with.

    Args:
        config: The newly composed configuration, which says where the store is and which run to resume.
        composed: The same configuration as YAML.
        overrides: The command line. It may repeat the run's settings, but not change them.

    Raises:
        UserError: if the run does not exist or has finished, or an override differs from the run's setting.
    """
    store = connect(config.tracking)
    run = store.run(str(config.resume), "resume")
    if run.info.status == "FINISHED":
        raise UserError(f"resume: the run {config.resume} has finished; there is nothing to resume")
    if "config.yaml" not in store.files(run.info.run_id):
        command = run.data.tags.get("command", "python -m cvexp ...")
        raise UserError(
            f"resume: the run {config.resume} has no configuration (config.yaml), because it was killed before it "
            f"recorded one; start again with: {command}"
        )
    named = named_keys(overrides)
    saved = recorded_config(store, run.info.run_id, config, named)
    saved.resume = config.resume
    old, new = flatten(_plain(saved)), flatten(_plain(composed))
    if "experiment" in named:  # an experiment may set any key
        named = list(new)
    changed = sorted(
        key
        for key in old.keys() | new.keys()
        if any(key == word or key.startswith(f"{word}.") for word in named)
        and old.get(key) != new.get(key)
        and not key.endswith((".password", "tracking.progress_seconds"))  # which change no result
    )
    if changed:
        differences = "; ".join(f"{key} was {old.get(key)}, now {new.get(key)}" for key in changed)
        raise UserError(
            f"resume: the configuration differs from that of the run {config.resume} ({differences}); leave them out "
            f"(resume={config.resume} alone keeps all settings), or start a new run"
        )
    if "password" in saved.dataset:  # the only key that is not recorded
        saved.dataset.password = OmegaConf.select(composed, "dataset.password")
    return check(saved)


def named_keys(overrides: Sequence[str]) -> list[str]:
    """Return the keys and groups that overrides set."""
    return [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]


def recorded_config(store: Store, run_id: str, local: RunConfig, named: Sequence[str] = ()) -> DictConfig:
    """Return the configuration of a run, with its folders moved to the tracking folder of this process.

    Whoever can write to the store can change the configuration. So nothing in it is resolved against the environment,
    it can't create folders just anywhere, and it fetches files only if this process is to fetch the same ones.

    Args:
        store: Where the run is recorded.
        run_id: MLflow's id of the run.
        local: The configuration of this process.
        named: The keys that the command line of this process sets.

    Raises:
        UserError: if the configuration is missing or damaged, contains an interpolation, or names a folder that neither
            exists nor lies within the working folder or the tracking folder.
    """
    saved = store.read(run_id, "config.yaml", _read_config)
    where = f"run {run_id}: its config.yaml"
    refuse_interpolations(saved, where)
    former, saved["tracking"]["folder"] = saved["tracking"]["folder"], local.tracking.folder
    allowed = (Path.cwd(), Path(local.tracking.folder).resolve())
    for group, key in [*(("dataset", key) for key in FOLDERS), *(("task", key) for key in TASK_FOLDERS)]:
        folder = saved[group].get(key) if isinstance(saved.get(group), dict) else None
        if not isinstance(folder, str) or folder.startswith(("http://", "https://", "s3://")):
            continue
        if Path(folder).is_relative_to(former):  # which may have been moved since
            folder = saved[group][key] = str(Path(local.tracking.folder) / Path(folder).relative_to(former))
        is_inside = any(Path(folder).resolve().is_relative_to(parent) for parent in allowed)
        is_file = group == "task" and Path(folder).suffix in TABLES
        is_there = (Path(folder).parent if is_file else Path(folder)).is_dir()
        if not is_inside and not is_there and f"{group}.{key}" not in named:
            raise UserError(
                f"{where} has {group}.{key}: {folder!r}, which does not exist; if that is the right place, create it, "
                f"or repeat {group}.{key}= on the command line"
            )
    if saved["dataset"].get("download") and not _fetches_the_same(saved["dataset"], asdict(local.dataset)):
        saved["dataset"]["download"] = False
    config = OmegaConf.create(saved)
    assert isinstance(config, DictConfig)
    return config


def _fetches_the_same(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> bool:
    """Return whether this process, too, is to download the data that a recorded configuration names, to its folder."""
    texts = [key for key, value in recorded.items() if isinstance(value, str)]
    return bool(given.get("download")) and all(recorded[key] == given.get(key) for key in texts)


def refuse_interpolations(values: Mapping[str, Any], where: str) -> None:
    """Raise a UserError if a recorded configuration has an interpolation, which could read the environment.

    Args:
        values: Nested plain values.
        where: What the configuration is of, for the message.
    """
    for key, value in flatten(values).items():
        if "${" in key + value:
            raise UserError(
                f"{where} has {key}: {value!r}, but a run records values, never interpolations; the file was changed "
                "later, so restore it, or start a new run"
            )


def _read_config(path: Path) -> dict[str, Any]:
    """Read YAML as plain values, without resolving anything."""
    return complete(OmegaConf.to_container(OmegaConf.load(path), resolve=False))


def complete(config: Any) -> dict[str, Any]:
    """Check the outline of a recorded configuration, and add keys that older versions lacked.

    Args:
        config: Plain values of any kind.

    Raises:
        ValueError: if it is no configuration of cvexp.
    """
    if not isinstance(config, dict) or not all(isinstance(config.get(key), dict) for key in ("dataset", "tracking")):
        raise ValueError("it is not a configuration of cvexp")
    if not isinstance(config["tracking"].get("folder"), str):
        raise ValueError("it has no tracking.folder")
    saved = {str(key): value for key, value in config.items()}
    saved = {"run": None, "runs": None, "benchmark": False, **saved}
    new_keys: dict[str, Any] = {"keep": "auto", "fraction": 1.0, "fraction_seed": 0, "test_fraction": None}
    saved["tracking"] = {"upload_checkpoints": "end", "progress_seconds": 8.0, **saved["tracking"]}
    if saved["dataset"].get("name") == "folder":
        new_keys |= {"image_suffix": None, "background_value": 0}
    saved["dataset"] = {**new_keys, **NO_TEST.get(str(saved["dataset"].get("name")), {}), **saved["dataset"]}
    if isinstance(saved.get("trainer"), dict):
        saved["trainer"] = {"compile": False, "sync_batchnorm": False, "steps_per_epoch": None, **saved["trainer"]}
    if isinstance(saved.get("task"), dict) and "embed_crops" in saved["task"]:
        saved["task"].setdefault("dense_images", 0)
    return saved


def _plain(config: DictConfig) -> Mapping[str, Any]:
    container = OmegaConf.to_container(config, resolve=True)
    assert isinstance(container, dict)
    return {str(key): value for key, value in container.items()}
