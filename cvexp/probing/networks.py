"""The networks that are probed, and the controls that they are compared with."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import nn

from cvexp.config import BackboneConfig, RunConfig
from cvexp.data.augment.normalization import Normalization
from cvexp.errors import UserError
from cvexp.inference.networks import create_encoder, load_encoder
from cvexp.models.arguments import Needs
from cvexp.models.untrained import ColorHistogram, batch_norms
from cvexp.report.style import shorten
from cvexp.tracking.description import digest
from cvexp.tracking.finished import FinishedRun
from cvexp.tracking.run import ReadOnlyRun
from cvexp.weights.backbone import choose_arguments, create_backbone
from cvexp.weights.start import Start, open_start, record_start

CONTROLS = ("untrained", "batch_norm", "histogram", "timm")
EVAL_SIZE = 96  # pixels, for weights that do not say at which size they were evaluated


RANDOM, TIMM = "random weights", "timm"  # values of `Origin.method`

# Keys in which runs may differ besides the seed: what follows from it, names, and folders. The data are compared by
# their fingerprints.
BESIDES_SEED = ("seed", "name", "run", "dataset.fraction_seed", "dataset.root", "dataset.cache", "dataset.local")


class Origin(NamedTuple):
    """Where a network comes from.

    Attributes:
        method: The pretraining method, the name of other weights, or what a control is.
        start: The origin of the weights that the pretraining started from; empty for others than runs.
        backbone: The name of the backbone; empty for a histogram.
        seed: The seed of the pretraining or of the random weights; None if nothing was random.
        run_id: The pretraining run; None if it is unknown.
        settings: All other settings, as a digest or as text, by which networks that differ only in the seed are found.
    """

    method: str
    start: str
    backbone: str
    seed: int | None
    run_id: str | None
    settings: str


@dataclass(frozen=True, eq=False)
class FrozenNetwork:
    """A network whose features are probed.

    Attributes:
        name: A name that no other network has.
        origin: Where it comes from.
        module: Maps images to feature vectors.
        normalize: Normalizes images for it; None if it takes them as they are.
        eval_size: Side length of the images in pixels.
        needs_statistics: Whether the running statistics of its batch norm have yet to be estimated.
    """

    name: str
    origin: Origin
    module: nn.Module
    normalize: nn.Module | None
    eval_size: int
    needs_statistics: bool = False


@dataclass(frozen=True, eq=False)
class Subject:
    """A network that is probed, and what is needed to create controls for it.

    Attributes:
        network: The network.
        backbone: The configuration of its backbone.
        mean, std: The normalization of its images.
        seed: The seed of the initial weights of its controls.
        create: Creates a network of the same architecture from given weights.
    """

    network: FrozenNetwork
    backbone: BackboneConfig
    mean: Sequence[float]
    std: Sequence[float]
    seed: int
    create: Callable[[Start], nn.Module]

    @property
    def architecture(self) -> tuple[Any, ...]:
        """What networks with equal controls have in common, besides the seed."""
        args = json.dumps(self.backbone.args, sort_keys=True)
        return self.backbone.name, args, self.network.eval_size, tuple(self.mean), tuple(self.std)


def from_run(run: FinishedRun, checkpoint: str, eval_size: int | None) -> Subject:
    """Load the encoder of a finished pretraining run.

    Args:
        run: The run.
        checkpoint: ``"best"`` or ``"last"``.
        eval_size: Side length of the images in pixels; None uses that of the run.

    Raises:
        UserError: if the checkpoint can't be fetched or read, or the encoder does not accept the size.
    """
    config = run.config
    if eval_size is not None:
        config = replace(config, task=replace(config.task, eval_size=eval_size))  # type: ignore[call-arg]
    encoder = create_encoder(config, Start())
    load_encoder(encoder, run, f"{checkpoint}.ckpt", key="runs")
    mean, std, size = config.dataset.mean, config.dataset.std, config.task.eval_size  # type: ignore[attr-defined]
    fingerprints = [run.tags.get(f"data.{split}.fingerprint", "")[:16] for split in ("train", "val")]
    settings = " ".join([digest(config, BESIDES_SEED), *fingerprints])
    origin = Origin(run.task, run.start, config.backbone.name, run.seed, run.id, settings)
    name = f"{run.task} {run.id[:8]}, seed {run.seed}"
    network = FrozenNetwork(name, origin, encoder, Normalization(mean, std), size)
    return Subject(network, config.backbone, mean, std, run.seed, partial(create_encoder, config))


def from_weights(config: RunConfig, run: ReadOnlyRun, eval_size: int | None) -> Subject:
    """Create the configured backbone with the weights that `backbone.weights` names.

    The size and the normalization of the images are those that the weights were trained with, if the checkpoint says
    so. Other weights are used at `EVAL_SIZE` with the normalization of timm's weights or of the configuration.

    Args:
        config: The configuration of the probe.
        run: The run that records what is loaded.
        eval_size: Side length of the images in pixels; None leaves the choice to the weights.

    Raises:
        UserError: if the backbone can't be created, or the weights can't be found or don't fit.
    """
    backbone, weights = config.backbone, config.backbone.weights
    start = open_start(config, run)
    size = eval_size or int(start.task.get("eval_size", EVAL_SIZE))
    arguments = choose_arguments(backbone, Needs({"task.eval_size": size}))
    create = partial(create_backbone, backbone, arguments)
    with seeded(config.seed):
        encoder = create(start)
    record_start(start, run, backbone.name)
    mean = start.dataset.get("mean", config.dataset.mean)
    std = start.dataset.get("std", config.dataset.std)
    normalize = timm_normalization(encoder) if start.pretrained else Normalization(mean, std)
    method = RANDOM if weights is None else TIMM if start.pretrained else run.tags()["start"]
    seed = config.seed if weights is None else None
    origin = Origin(method, "", backbone.name, seed, run.tags().get("weights_from"), "")
    name = f"{method}, seed {seed}" if weights is None else "timm's weights" if start.pretrained else shorten(weights)
    network = FrozenNetwork(name, origin, encoder, normalize, size)
    return Subject(network, backbone, mean, std, config.seed, create)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed PyTorch's random numbers; restore the random state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def timm_normalization(backbone: nn.Module) -> Normalization:
    """Return the normalization that timm's pretrained weights of a backbone expect."""
    settings: Any = backbone.pretrained_cfg
    return Normalization(settings["mean"], settings["std"])


class Controls(NamedTuple):
    """The networks that the probed ones are compared with.

    Attributes:
        networks: The networks.
        names: The names of the controls of each probed network, by its name.
        skipped: A sentence for each control that can't be created.
    """

    networks: list[FrozenNetwork]
    names: dict[str, list[str]]
    skipped: list[str]


def make_controls(subjects: Sequence[Subject], kinds: Sequence[str]) -> Controls:
    """Create the controls of networks.

    Networks of the same architecture share controls. The untrained ones also depend on the seed.

    Args:
        subjects: The networks that are probed.
        kinds: Which of `CONTROLS` to create.
    """
    controls = Controls([], {}, [])
    made: dict[tuple[Any, ...], FrozenNetwork | None] = {}
    for subject in subjects:
        names = controls.names[subject.network.name] = []
        for kind in kinds:
            if {"untrained": RANDOM, "timm": TIMM}.get(kind) == subject.network.origin.method:
                continue  # the control would be the network itself
            seed = subject.seed if kind in ("untrained", "batch_norm") else None
            key = (kind, subject.network.eval_size) if kind == "histogram" else (kind, seed, *subject.architecture)
            if key not in made:
                taken = {network.name for network in controls.networks}
                made[key] = _make_control(subject, kind, seed, taken, controls.skipped)
                controls.networks.extend([made[key]] if made[key] else [])  # type: ignore[list-item]
            if (control := made[key]) is not None:
                names.append(control.name)
    return controls


def _make_control(
    subject: Subject, kind: str, seed: int | None, taken: Collection[str], skipped: list[str]
) -> FrozenNetwork | None:
    """Create a control, or add a sentence to `skipped` and return None if this is not possible."""
    size, backbone = subject.network.eval_size, subject.backbone.name
    normalize: nn.Module | None = Normalization(subject.mean, subject.std)
    module: nn.Module
    if kind == "histogram":
        backbone, normalize = "", None
        method, module = "color histogram", ColorHistogram()
    elif kind == "timm":
        try:
            method, module = "timm's weights", subject.create(Start(TIMM, pretrained=True))
        except UserError as error:
            reason = str(error).removeprefix("backbone.weights=timm: ").partition("; ")[0]
            skipped.append(f"Without the control timm: {reason}.")
            return None
        normalize = timm_normalization(module)
    else:
        with seeded(subject.seed):
            method, module = "untrained", subject.create(Start())
        if kind == "batch_norm":
            method = "untrained, batch norm estimated"
            if not batch_norms(module):
                sentence = f"Without the control batch_norm: {backbone} has no batch norm."
                skipped.extend([sentence] if sentence not in skipped else [])
                return None
    name = method if seed is None else f"{method}, seed {seed}"
    candidates = itertools.chain(
        [name, f"{name} ({backbone or f'{size} px'})"], (f"{name} ({i})" for i in itertools.count(2))
    )
    name = next(candidate for candidate in candidates if candidate not in taken)
    origin = Origin(method, "", backbone, seed, None, json.dumps(subject.architecture))
    return FrozenNetwork(name, origin, module, normalize, size, kind == "batch_norm")
