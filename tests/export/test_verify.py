"""Files that others have changed, or that are something else."""

from __future__ import annotations

import io
import pickle
import re
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from cvexp.errors import UserError
from cvexp.export.about import describe
from cvexp.export.files import FORMATS, verify
from cvexp.export.subject import Subject
from tests.export.networks import RUN, export, make_encoder, make_images

pytestmark = pytest.mark.slow  # tracing a network takes seconds

NAMES = ["onnx", "pt2", "safetensors"]


class Canary:
    """Leaves a file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, ("unpickled", "w")


@pytest.fixture(scope="module")
def subject() -> Subject:
    return make_encoder("task=simclr")


@pytest.fixture(scope="module")
def exported(subject: Subject, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The content of a good file of each format."""
    folder = tmp_path_factory.mktemp("exported")
    return {name: export(subject, name, folder)[0].read_bytes() for name in NAMES}


def check(subject: Subject, name: str, path: Path) -> None:
    about = describe(subject, RUN, "best", {"val": "f"})
    verify(FORMATS[name](), subject, path, about, make_images(subject), 1e-4)
    assert not Path("unpickled").exists()


def refused(subject: Subject, name: str, path: Path, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        check(subject, name, path)
    assert "\n" not in str(caught.value)
    assert not Path("unpickled").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_file_is_good(name: str, subject: Subject, exported: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"renamed.{name}"
    path.write_bytes(exported[name])
    check(subject, name, path)


def least(values: np.ndarray) -> np.ndarray:
    """Change one value as little as possible."""
    changed = values.copy()
    changed.flat[0] = np.nextafter(changed.flat[0], np.float32(9))
    return changed


def change_onnx(path: Path, also_digest: bool = False) -> None:
    model = onnx.load(path)
    tensor = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    tensor.CopyFrom(numpy_helper.from_array(least(numpy_helper.to_array(tensor)), tensor.name))
    if also_digest:
        old = FORMATS["onnx"]().read_about(path)["digest"]
        new = FORMATS["onnx"]()._digest(model)  # type: ignore[attr-defined]
        for entry in model.metadata_props:
            entry.value = entry.value.replace(old, new)
    onnx.save(model, path)


def change_part(path: Path, pattern: str, change: Callable[[bytes], bytes]) -> None:
    """Change a part of a .pt2 file, which keeps its other parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    (name,) = (name for name in parts if re.search(pattern, name))
    with zipfile.ZipFile(path, "w") as archive:
        for other, content in parts.items():
            archive.writestr(other, change(content) if other == name else content)


def replaced_by(new: bytes, old: bytes) -> bytes:
    return new


def flip_a_bit(content: bytes) -> bytes:
    return bytes([content[0] ^ 1]) + content[1:]


def change_safetensors(path: Path) -> None:
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = torch.from_numpy(least(tensors[name].numpy()))
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("onnx", change_onnx),
        ("onnx", lambda path: change_onnx(path, also_digest=True)),
        ("pt2", lambda path: change_part(path, "weight_3$", flip_a_bit)),
        ("safetensors", change_safetensors),
    ],
)
def test_the_least_change_of_a_weight_is_noticed(
    name: str, change: Callable[[Path], None], subject: Subject, exported: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"model.{name}"
    path.write_bytes(exported[name])
    change(path)
    refused(subject, name, path, r"(weights are not those|weight_3 is not that) of|digest")


@pytest.mark.parametrize("name", NAMES)
def test_another_description_is_noticed(
    name: str, subject: Subject, exported: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / f"model.{name}"
    path.write_bytes(exported[name])
    about = {**describe(subject, RUN, "best", {"val": "f"}), "colors": ["#000000"]}  # those of the run
    with pytest.raises(UserError, match="its description was changed: colors is not that of the run"):
        verify(FORMATS[name](), subject, path, about, make_images(subject), 1e-4)


def test_code_in_a_program_is_not_run(subject: Subject, exported: dict[str, bytes], tmp_path: Path) -> None:
    """What `torch.export.load` would unpickle, or turn into Python code, is only compared."""
    buffer = io.BytesIO()
    torch.save({"a": Canary()}, buffer)
    path = tmp_path / "model.pt2"
    for pattern, content in (
        ("sample_inputs/model.pt$", buffer.getvalue()),
        ("weight_0$", pickle.dumps(Canary())),
        ("models/model.json$", b"{}"),
    ):
        path.write_bytes(exported["pt2"])
        change_part(path, pattern, partial(replaced_by, content))
        refused(subject, "pt2", path, "is not that of the checkpoint")
    path.write_bytes(exported["pt2"])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("model/data/constants/opaque_obj_0", pickle.dumps(Canary()))
    refused(subject, "pt2", path, "opaque_obj_0 is not that of the checkpoint")
    path.write_bytes(exported["pt2"])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("model/models/model.json", b"{}")
    refused(subject, "pt2", path, "not a readable .pt2 file")


def test_a_program_of_other_versions_is_not_run(
    subject: Subject, exported: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An ONNX file of other versions is compared with its own digest, because it contains no code."""
    for name in ("pt2", "onnx"):
        (tmp_path / f"model.{name}").write_bytes(exported[name])
    change_part(tmp_path / "model.pt2", "models/model.json$", lambda content: content + b" ")
    now = {**FORMATS["onnx"]().read_about(tmp_path / "model.onnx")["versions"], "torch": "1.0"}
    monkeypatch.setattr("cvexp.export.about.versions", lambda: now)
    refused(subject, "pt2", tmp_path / "model.pt2", "written with torch .*instead of 1.0, and reading it could run")
    check(subject, "onnx", tmp_path / "model.onnx")
    change_onnx(tmp_path / "model.onnx")
    refused(subject, "onnx", tmp_path / "model.onnx", "weights are not those")


@pytest.mark.parametrize("name", NAMES)
def test_files_of_another_kind(name: str, subject: Subject, exported: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / f"model.{name}"
    for content in (b"", b"no model", pickle.dumps(Canary()), exported[name][: len(exported[name]) // 2]):
        path.write_bytes(content)
        refused(subject, name, path, "not a readable|not a file that task=export wrote")
    with path.open("wb") as file:  # a huge file, without its blocks
        file.truncate(2**33)
    refused(subject, name, path, "not a readable|more than 2 GiB")


def test_onnx_files_that_refer_to_others_or_can_not_be_run(
    subject: Subject, exported: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    model = onnx.load_from_string(exported["onnx"])
    onnx.save(model, path, save_as_external_data=True, location="weights.bin")
    refused(subject, "onnx", path, "its weights are in other files")
    model = onnx.load_from_string(exported["onnx"])
    model.graph.node[0].op_type = "Unheard"
    onnx.save(model, path)
    refused(subject, "onnx", path, "ONNX Runtime can't use it")
    model = onnx.load_from_string(exported["onnx"])
    model.graph.output[0].name = model.graph.node[0].output[0]
    onnx.save(model, path)
    refused(subject, "onnx", path, "the outputs are .* instead of features|ONNX Runtime can't use it")
