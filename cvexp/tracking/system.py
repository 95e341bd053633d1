"""The use of CPU, memory, disk, network and GPU during a run."""

from __future__ import annotations

import threading

from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

from cvexp.tracking.run import Run

PREFIX = "system/"


class SystemMetrics:
    """Samples the machine in a thread of its own, until :meth:`finish` is called.

    MLflow measures, but does not log, because it would give up when its server does not answer.

    Args:
        run: What gets the metrics. Their steps count the samples, on from those of an interrupted run.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._machine = SystemMetricsMonitor(run.id, tracking_uri=run.store.client.tracking_uri)
        self._has_ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="system metrics")
        self._thread.start()

    def _sample(self) -> None:
        steps = [self._run.history(name)[-1][0] for name in self._run.metrics() if name.startswith(PREFIX)]
        step = max(steps, default=-1) + 1
        while not self._has_ended.wait(self._machine.sampling_interval):
            self._machine.collect_metrics()
            values = self._machine.aggregate_metrics()
            try:
                self._run.log_metrics({PREFIX + name: value for name, value in values.items()}, step)
            except Exception:  # whatever it is, the training meets it too, and reports it
                return
            for monitor in self._machine.monitors:
                monitor.clear_metrics()
            step += 1

    def finish(self) -> None:
        """Stop sampling."""
        self._has_ended.set()
        self._thread.join()
