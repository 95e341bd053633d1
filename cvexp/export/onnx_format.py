"""ONNX files. They contain no code, but may refer to other files, which is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cvexp.errors import UserError
from cvexp.export.about import KEY, About, digest, other_versions, parse
from cvexp.export.formats import FileFormat, Run
from cvexp.export.subject import Outputs, Subject, quiet
from cvexp.models.backbone import one_line

OPSET = 18  # the oldest one that PyTorch's exporter writes, which most runtimes can read
MAX_BYTES = 2**31 - 1  # the limit of its encoding, protobuf


class Onnx(FileFormat):
    """Networks for ONNX Runtime, TensorRT, OpenVINO and others."""

    name = "onnx"
    file_name = "model.onnx"

    def __init__(self) -> None:
        try:
            import onnx
            import onnxruntime
            import onnxscript  # noqa: F401, which the exporter of PyTorch needs
        except ImportError as error:
            raise UserError(
                f"task.formats: onnx needs the package {error.name}; install it with: pip install 'cvexp[export]', or "
                "leave out onnx"
            ) from error
        self.onnx, self.runtime = onnx, onnxruntime

    def write(self, subject: Subject, path: Path, about: About, is_dynamic: bool) -> None:
        program = subject.program(is_dynamic)
        names = list(subject.graph(torch.zeros(1, 3, subject.size, subject.size, dtype=torch.uint8)))
        with quiet():
            converted = torch.onnx.export(
                program, (), input_names=["images"], output_names=names, opset_version=OPSET, verbose=False
            )
        assert converted is not None
        model = converted.model_proto
        _tidy(model.graph)
        complete = {**about, "digest": self._digest(model)}
        self.onnx.helper.set_model_props(model, {KEY: json.dumps(complete)})
        path.write_bytes(model.SerializeToString())

    def load(self, path: Path) -> Run:
        return self._run(self.onnx.load_model(path))

    def read_about(self, path: Path) -> About:
        properties = {entry.key: entry.value for entry in self._read(path).metadata_props}
        return parse(properties.get(KEY), str(path))

    def check(self, path: Path, about: About, fresh: Path) -> Run:
        model = self._read(path)
        expected = self.read_about(fresh)["digest"]
        try:
            found = self._digest(model)
        except Exception as error:  # NumPy and onnx raise many types for tensors of a wrong length
            raise UserError(f"{path}: its weights are damaged ({one_line(error)}); export it again") from error
        if found != about.get("digest") or (found != expected and not other_versions(about)):
            raise UserError(f"{path}: its weights are not those of the checkpoint; export it again")
        try:
            return self._run(model)
        except Exception as error:  # ONNX Runtime raises many types
            raise UserError(f"{path}: ONNX Runtime can't use it ({one_line(error)}); export it again") from error

    def _read(self, path: Path) -> Any:
        """Read a file that is not trusted."""
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: it has more than 2 GiB, which no ONNX file that task=export wrote can have")
        try:
            model = self.onnx.load_model(path, format="protobuf", load_external_data=False)
        except Exception as error:  # protobuf raises many types
            raise UserError(f"{path}: this is not a readable ONNX file ({type(error).__name__})") from error
        if any(self.onnx.external_data_helper.uses_external_data(tensor) for tensor in self._tensors(model)):
            raise UserError(f"{path}: its weights are in other files, which task=export does not write")
        return model

    def _tensors(self, message: Any) -> Iterator[Any]:
        """Yield all tensors inside a message of protobuf."""
        if isinstance(message, self.onnx.TensorProto):
            yield message
            return
        for field, value in message.ListFields():
            if field.message_type is not None:
                for part in [value] if hasattr(value, "ListFields") else value:
                    yield from self._tensors(part)

    def _digest(self, model: Any) -> str:
        to_array = self.onnx.numpy_helper.to_array
        return digest({tensor.name: to_array(tensor) for tensor in model.graph.initializer})

    def _run(self, model: Any) -> Run:
        options = self.runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # fatal errors, because others become exceptions
        session = self.runtime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]

        def run(images: Tensor) -> Outputs:
            arrays = session.run(names, {"images": images.numpy()})
            return {name: torch.from_numpy(array) for name, array in zip(names, arrays, strict=True)}

        return run


def _tidy(graph: Any) -> None:
    """Call the axes by what they are, and remove what the exporter notes at each node."""
    symbols = [axis.dim_param for axis in graph.input[0].type.tensor_type.shape.dim]
    words = {symbol: word for symbol, word in zip(symbols, ("batch", "", "height", "width"), strict=True) if symbol}
    pattern = re.compile("|".join(rf"\b{re.escape(symbol)}\b" for symbol in words))
    for value in (*graph.input, *graph.output, *graph.value_info):
        value.ClearField("metadata_props")
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_param = pattern.sub(lambda match: words[match[0]], axis.dim_param)
    for node in graph.node:
        node.ClearField("metadata_props")
        node.ClearField("doc_string")
