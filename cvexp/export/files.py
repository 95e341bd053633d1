"""Writing exported files, and verifying those that exist."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from cvexp.errors import UserError
from cvexp.export.about import About, other_versions
from cvexp.export.formats import FileFormat
from cvexp.export.onnx_format import Onnx
from cvexp.export.program_format import Program
from cvexp.export.subject import Subject
from cvexp.export.verification import Agreement, compare, make_batches
from cvexp.export.weights_format import Weights
from cvexp.models.backbone import one_line

FORMATS: dict[str, type[FileFormat]] = {kind.name: kind for kind in (Onnx, Program, Weights)}


class ExportError(Exception):
    """A network can't be written in a format, or the file does not compute what the network computes."""


class Written(NamedTuple):
    """A file that was written.

    Attributes:
        about: Its description.
        agreement: How its outputs differ from those of the network.
    """

    about: About
    agreement: Agreement


def write(
    file_format: FileFormat, subject: Subject, path: Path, about: About, images: Tensor, tolerance: float
) -> Written:
    """Write a network, for images of any size if possible, read the file back and verify its outputs.

    Args:
        file_format: The format.
        subject: The network.
        path: The file.
        about: The description, without what depends on the file.
        images: Images (n, 3, s, s) uint8 on which to verify it.
        tolerance: The largest difference; see :class:`Agreement`.

    Raises:
        ExportError: if the network can't be written, or the outputs differ.
    """
    reason = ""
    for multiple in dict.fromkeys([subject.multiple, None]):
        is_dynamic = multiple is not None
        axes = {"batch": True, "height": is_dynamic, "width": is_dynamic, "multiple_of": multiple}
        try:
            file_format.write(subject, path, {**about, "dynamic": axes}, is_dynamic)
            agreement = compare(file_format.load(path), subject, make_batches(subject, images, multiple))
        except Exception as error:  # the exporters raise many types
            if isinstance(error, OSError) and error.strerror:  # such as a full disk
                raise
            reason = _root_cause(error)
            continue
        if not (problems := agreement.problems(tolerance)):
            return Written(file_format.read_about(path), agreement)
        reason = "; ".join(problems)
    raise ExportError(reason)


def verify(
    file_format: FileFormat, subject: Subject, path: Path, about: About, images: Tensor, tolerance: float
) -> Agreement:
    """Verify a file, which is not trusted: its description, its weights and its outputs. See :func:`write`.

    Raises:
        UserError: if something is not as this version of the program writes it.
    """
    found = file_format.read_about(path)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder) / file_format.file_name
        try:
            expected = write(file_format, subject, fresh, about, images, tolerance).about
        except ExportError as error:
            raise UserError(f"{path}: the network can't be exported again to compare ({error})") from error
        run = file_format.check(path, found, fresh)
        may_differ = {"versions", "digest", "dynamic"} if other_versions(found) else {"versions"}
        for key in sorted((found.keys() | expected.keys()) - may_differ):
            if found.get(key) != expected.get(key):
                raise UserError(f"{path}: its description was changed: {key} is not that of the run; export it again")
        batches = make_batches(subject, images, expected["dynamic"]["multiple_of"])
        try:
            agreement = compare(run, subject, batches)
        except Exception as error:  # ONNX Runtime raises many types
            raise UserError(f"{path}: it can't be run ({_root_cause(error)}); export it again") from error
    if problems := agreement.problems(tolerance):
        raise UserError(f"{path}: {'; '.join(problems)}; export it again")
    return agreement


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {one_line(error)}"[:300]  # type: ignore[arg-type]
