"""Views of MLflow's list of runs with the columns that matter, as links.

MLflow's button *Share* stores such a view as a tag of the experiment, from which the link reads it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence

from cvexp.metrics import selection
from cvexp.metrics.names import safe_name
from cvexp.tracking.store import FAILURES, Store, few_retries

TAG = "mlflow.sharedViewState."
UI = "http://127.0.0.1:5000"  # where `make ui` shows the store of this machine
ALL_RUNS = "cvexp"  # the view of all runs

_TAGS = ("task", "start", "device")
_PARAMS = ("backbone.name", "dataset.name", "seed")
_METRICS = ("best/miou", "test/miou", "best/knn_top1", "best/loss", "speed/images_per_second")


def share_all_runs(store: Store) -> str | None:
    """Store the view of all runs of an experiment, and return its address; None if the store is away."""
    columns = [_column("tags", name) for name in _TAGS] + [_column("params", name) for name in _PARAMS]
    return _share(store, ALL_RUNS, [*columns, *(_column("metrics", name) for name in _METRICS)])


def share_sweep(store: Store, sweep_id: str, swept: Sequence[str], metrics: Sequence[str]) -> str | None:
    """Store a view of the jobs of a sweep, and return its address; None if the store is away.

    Args:
        store: Where the sweep is recorded.
        sweep_id: MLflow's id of the sweep.
        swept: The keys that the jobs differ in.
        metrics: The metrics by which they are compared, such as ``"best/miou"``.
    """
    names = [f"{key}.name" if key in ("task", "backbone", "dataset", "optimizer") else key for key in swept]
    columns = [_column("params", safe_name(name)) for name in names] + [_column("metrics", name) for name in metrics]
    if not columns:
        return None
    state = {"searchFilter": f"tags.`mlflow.parentRunId` = '{sweep_id}'", "orderByKey": columns[-1]}
    # If the list is ordered by date, MLflow shows jobs only below their sweep, which is closed.
    ascending = not metrics or selection.direction(f"val/{metrics[-1].removeprefix('best/')}") == "minimize"
    return _share(store, sweep_id, columns, **state, orderByAsc=ascending)


def _column(kind: str, name: str) -> str:
    return f"{kind}.`{name}`"


def _share(store: Store, key: str, columns: Sequence[str], **state: object) -> str | None:
    """Store a view under a key, with further settings of MLflow's page."""
    with few_retries(), contextlib.suppress(*FAILURES):
        experiment = store.experiment_id()
        store.client.set_experiment_tag(experiment, f"{TAG}{key}", json.dumps({"selectedColumns": columns, **state}))
        address = UI if store.address.startswith("sqlite") else store.address.rstrip("/")
        return f"{address}/#/experiments/{experiment}/runs?viewStateShareKey={key}"
    return None
