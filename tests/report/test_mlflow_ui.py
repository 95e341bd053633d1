"""What MLflow's own pages show of runs, in a real browser."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import sync_playwright

from tests.helpers import TINY, Outcome, mlflow_server, runs, store

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


CHROMIUM = shutil.which("chromium")


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt install chromium")
def test_mlflow_shows_pictures_the_explorer_and_the_comparison_of_two_runs(cvexp: Callable[..., Outcome]) -> None:
    for seed in (0, 1):
        assert cvexp(*TINY, "trainer.max_epochs=1", f"seed={seed}").code == 0
    second, first = (run.info.run_id for run in runs())
    names = [Path(item.path).name for item in store().list_artifacts(first, "images")]
    picture = next(name for name in names if name.startswith("tsne") and name.endswith(".png"))
    experiment = runs()[0].info.experiment_id
    with (
        mlflow_server("--backend-store-uri", f"sqlite:///{Path('outputs/mlflow.db')}") as address,
        sync_playwright() as p,
    ):
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1400, "height": 900})
        tab.goto(f"{address}/#/experiments/{experiment}/runs/{first}/artifacts/explorer.html")
        tab.frame_locator("iframe").locator("body[data-ready]").wait_for(timeout=60_000)
        for folder, name, height in (("curves", "curves.png", 400), ("images", picture, 600)):
            tab.get_by_text(folder, exact=True).click()
            tab.get_by_text(name, exact=True).click()
            tab.wait_for_function(f"[...document.images].some(i => i.naturalHeight > {height})", timeout=60_000)
        compared = f'?runs=["{first}","{second}"]&experiments=["{experiment}"]'
        tab.goto(f"{address}/#/compare-runs{compared}")
        for seed in (0, 1):
            tab.get_by_text(f"dino-test_resnet-shapes-seed{seed}").first.wait_for(timeout=60_000)
        browser.close()
