"""Checkpoint files of any content."""

from pathlib import Path

import pytest
import torch

from cvexp.errors import UserError
from cvexp.weights.read import entry, read_checkpoint


@pytest.mark.parametrize("content", [torch.zeros(3), [torch.zeros(3)], {"model": {"epoch": 3}}, {"cvexp": 5}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "strange.pth")
    with pytest.raises(UserError, match="no named tensors"):
        read_checkpoint(tmp_path / "strange.pth")


@pytest.mark.parametrize("note", [5, {"config": [1]}, {"config": {"dataset": "x"}}])
def test_strange_notes_in_a_file_are_no_obstacle(tmp_path: Path, note: object) -> None:
    torch.save({"cvexp": note, "state_dict": {"a": torch.zeros(3)}}, tmp_path / "strange.ckpt")
    assert entry(read_checkpoint(tmp_path / "strange.ckpt").config, "dataset") == {}
