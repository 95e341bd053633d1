"""The notebooks in examples/, with fewer epochs."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parents[1] / "examples"

QUICK = {
    "first_steps": "PHOTOS, EPOCHS, COUNT = None, 1, 40",
    "own_data": "EPOCHS, COUNT = 1, 16",
    "study": "SEEDS, FRACTIONS, STEPS, PRETRAINING_STEPS = [0], [1.0], 2, 2",
    "whole_story": "PRETRAINING_EPOCHS, EPOCHS = 1, 1; "
    "FEWER = ['dataset.train_images=60', 'dataset.val_images=20', 'dataset.test_images=24']",
}

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # they train


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_run(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = nbformat.read(path, as_version=4)
    (parameters,) = (cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    parameters.source = QUICK[path.stem]
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": "."}}).execute()
    for cell in notebook.cells:
        draws = any(line.startswith(("show(", "Image(")) for line in cell.source.splitlines())
        outputs = cell.get("outputs", [])
        assert draws == any("image/png" in output.get("data", {}) for output in outputs), cell.source
    texts = [output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", [])]
    assert not any("Traceback" in text for text in texts)
