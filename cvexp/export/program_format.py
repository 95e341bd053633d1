"""Programs of `torch.export` (.pt2).

`torch.export.load` unpickles, and builds Python code from what is in the file, so it can run any code that someone has
put there. A file that this process did not write is therefore never loaded. It is compared, byte by byte, with one that
was just written from the checkpoint.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch

from cvexp.errors import UserError
from cvexp.export.about import KEY, MAX_LENGTH, About, digest, other_versions, parse
from cvexp.export.formats import FileFormat, Run
from cvexp.export.subject import Subject, quiet

DESCRIPTION = f"extra/{KEY}"
MAY_DIFFER = (DESCRIPTION, ".data/serialization_id")  # the second is a digest of the names and contents of all parts


class Program(FileFormat):
    """Networks for PyTorch, without their Python code."""

    name = "pt2"
    file_name = "model.pt2"

    def write(self, subject: Subject, path: Path, about: About, is_dynamic: bool) -> None:
        program = subject.program(is_dynamic)
        tensors = {**program.state_dict, **program.constants}
        arrays = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
        complete = {**about, "digest": digest(arrays)}
        with quiet():
            torch.export.save(program, path, extra_files={KEY: json.dumps(complete)})

    def load(self, path: Path) -> Run:
        with quiet():
            module: Run = torch.export.load(path).module()
        return module

    def read_about(self, path: Path) -> About:
        try:
            with zipfile.ZipFile(path) as archive:
                part = _parts(archive).get(DESCRIPTION)
                text = None
                if part is not None and part.file_size <= MAX_LENGTH:
                    text = archive.read(part).decode()
        except Exception as error:  # zipfile raises many types for damaged files
            raise UserError(f"{path}: this is not a readable .pt2 file ({type(error).__name__})") from error
        return parse(text, str(path))

    def check(self, path: Path, about: About, fresh: Path) -> Run:
        try:
            different = _first_difference(path, fresh)
        except Exception as error:  # zipfile raises many types for damaged files
            raise UserError(f"{path}: it is damaged ({type(error).__name__}); export it again") from error
        if different is not None:
            if others := other_versions(about):
                raise UserError(
                    f"{path}: it was written with {others}, and reading it could run code, so it can be verified only "
                    "with the same versions; export it again"
                )
            raise UserError(f"{path}: its {different} is not that of the checkpoint; export it again")
        return self.load(fresh)


def _parts(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Return the parts of an archive by their names without the common folder.

    Raises:
        ValueError: if two parts have the same name, because readers differ in which one they take.
    """
    parts = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    if len(parts) < len(archive.infolist()):
        raise ValueError("two parts have the same name")
    return parts


def _first_difference(path: Path, fresh: Path) -> str | None:
    """Return the name of a part in which two files differ, or None if there is none."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(fresh) as expected:
        parts, expected_parts = _parts(archive), _parts(expected)
        for name in sorted(parts.keys() ^ expected_parts.keys()):
            return name
        for name, part in parts.items():
            if name in MAY_DIFFER:
                continue
            other = expected_parts[name]  # sizes come first, because a small file may unpack to a huge one
            if part.file_size != other.file_size or archive.read(part) != expected.read(other):
                return name
    return None
