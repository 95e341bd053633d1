"""Fitting the tensors of a checkpoint to a network, whatever their names are."""

from __future__ import annotations

import re

from torch import nn

from cvexp.errors import UserError
from cvexp.weights.start import Start

# Prefixes of a backbone's weights in files of other programs. The prefix that fits the most tensors is used; in a tie,
# the first one.
PREFIXES = (
    "teacher.backbone.",
    "model.encoder.backbone.",
    "teacher.backbone.features.",  # the course's files, the teacher first
    "backbone.features.",
    "encoder.",
    "module.backbone.",  # files of the original DINO
    "backbone.",
    "module.",
    "",
)


def fit_backbone(backbone: nn.Module, start: Start, name: str) -> None:
    """Load the weights of a backbone, and note in `start` what was loaded.

    Args:
        backbone: The network to load the weights into.
        start: The weights.
        name: The name of the backbone, for messages.

    Raises:
        UserError: if nothing fits, or a tensor has a different shape.
    """
    own = backbone.state_dict()
    prefixes = (f"{start.encoder}.", *PREFIXES) if start.encoder else PREFIXES
    prefix = max(prefixes, key=lambda prefix: sum(prefix + key in start.tensors for key in own))
    state = {key: start.tensors[prefix + key] for key in own if prefix + key in start.tensors}
    differing = [key for key in state if own[key].shape != state[key].shape]
    if differing:
        raise UserError(
            f"backbone.weights: {start.source} has a different architecture than {name}: {len(differing)} tensors "
            f"differ in shape, the first is {differing[0]}: {tuple(state[differing[0]].shape)} in the file, "
            f"{tuple(own[differing[0]].shape)} in the backbone; choose the one of the file with backbone="
        )
    if not state:
        raise UserError(
            f"backbone.weights: nothing in {start.source} fits the backbone {name}; give weights of the same "
            "architecture, or choose another backbone with backbone="
        )
    backbone.load_state_dict(state, strict=False)
    start.loaded |= {prefix + key: f"backbone.{key}" for key in state}
    start.left_random += [f"backbone.{key}" for key in own if key not in state]


def fit_decoder(model: nn.Module, start: Start, of_classes: str) -> None:
    """Load the weights of what follows the encoder, if the checkpoint has tensors that fit.

    Args:
        model: The segmenter. Its `encoder` is left alone.
        start: The weights. What was loaded is noted here.
        of_classes: The part whose tensors depend on the classes. It is loaded only from a run with the same classes.
    """
    if not start.tensors:
        return
    own = model.state_dict()
    for name, value in own.items():
        part = name.partition(".")[0]
        if part == "encoder":
            continue
        for source in (f"model.{name}", _course_name(name)):
            tensor = start.tensors.get(source)
            if tensor is None or (part == of_classes and not start.same_classes):
                continue
            if part == "classifier" and len(tensor) == 2 and len(value) == 1:
                tensor = tensor[1:] - tensor[:1]  # softmax over background and foreground is one sigmoid
            if tensor.shape == value.shape:
                own[name] = tensor
                start.loaded[source] = name
                break
        else:
            start.left_random.append(name)
    model.load_state_dict(own)


# Our names of the decoder's tensors, and those in the course's binary_segmentation.pth.
COURSE_NAMES = (
    (r"decoder\.aspp\.convs\.4\.([12])\.", r"decoder.global_avg_pool.\1."),
    *((rf"decoder\.aspp\.convs\.{i}\.0\.", f"decoder.aspp{i + 1}.atrous_convolution.") for i in range(4)),
    *((rf"decoder\.aspp\.convs\.{i}\.1\.", f"decoder.aspp{i + 1}.bn.") for i in range(4)),
    (r"decoder\.aspp\.project\.0\.", "decoder.conv1."),
    (r"decoder\.aspp\.project\.1\.", "decoder.bn1."),
    (r"decoder\.reduce_low\.0\.", "decoder.conv2."),
    (r"decoder\.reduce_low\.1\.", "decoder.bn2."),
    (r"decoder\.refine\.", "decoder.last_conv."),
    (r"classifier\.", "decoder.last_conv.6."),
)


def _course_name(name: str) -> str:
    for pattern, course in COURSE_NAMES:
        if re.match(pattern, name):
            return re.sub(pattern, course, name)
    return name
