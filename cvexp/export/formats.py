"""The formats of exported files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from cvexp.export.about import About
from cvexp.export.subject import Outputs, Subject

Run = Callable[[Tensor], Outputs]


class FileFormat(ABC):
    """A format: how a network is written, and how a file is read.

    Attributes:
        name: What `task.formats` calls it, which is also the suffix of its files.
        file_name: The name of the file that is written.
    """

    name: ClassVar[str]
    file_name: ClassVar[str]

    @abstractmethod
    def write(self, subject: Subject, path: Path, about: About, is_dynamic: bool) -> None:
        """Write a network, with a description to which a digest of its weights is added.

        Args:
            subject: The network.
            path: The file.
            about: The description.
            is_dynamic: Whether the file accepts images of other sizes than `subject.size`.

        Raises:
            Exception: of many types, if the network can't be written in this format.
        """

    @abstractmethod
    def load(self, path: Path) -> Run:
        """Return the function of images (b, 3, h, w) uint8 that a file contains, which this process has written."""

    @abstractmethod
    def read_about(self, path: Path) -> About:
        """Read the description in a file, which is not trusted.

        Raises:
            UserError: if the file is damaged, of another format, or not from `task=export`.
        """

    @abstractmethod
    def check(self, path: Path, about: About, fresh: Path) -> Run:
        """Compare a file, which is not trusted, with one that was just written from the checkpoint.

        Args:
            path: The file.
            about: Its description.
            fresh: A new file of the same network.

        Returns:
            The function that the file contains.

        Raises:
            UserError: if its weights were changed, or it can't be used.
        """
