"""No module calls what could run code in a file, run a shell, write HTML without escaping, or open a server to all."""

import ast
import os
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from tests.test_house import assert_none, modules

PICKLES = ("pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal")
SERVERS = ("http.server", "socketserver", "uvicorn", "flask", "fastapi", "wsgiref")
FORBIDDEN = {  # whatever the arguments are
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen", "tempfile.mktemp"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load"),
    *("torch.export.load", "torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    *("mlflow.pyfunc.load_model", "mlflow.pytorch.load_model", "mlflow.onnx.load_model", "mlflow.sklearn.load_model"),
    *("hydra.utils.instantiate", "hydra.utils.call", "hydra.utils.get_method", "shutil.unpack_archive"),
}
NEEDED = {  # keyword arguments
    "torch.load": {"weights_only": True},
    "trainer.fit": {"weights_only": True},
    "jinja2.Environment": {"autoescape": True},
    "jinja2.Template": {"autoescape": True},
    "blocks.launch": {"share": False},
}
EXCEPTIONS = {
    "cvexp/checkpoints.py: import pickle": "for the same type",
    "cvexp/weights/read.py: import pickle": "for the type of the error with which PyTorch refuses a file",
    "cvexp/export/program_format.py: torch.export.load": "only of files that this process has just written",
    "cvexp/report/explorer.py: jinja2.Template(autoescape=...)": "Bokeh's HTML; names are JSON, shown as text",
}


def offenders(path: str, source: str) -> list[str]:
    """Describe each import and call in a module that could be unsafe."""
    tree = ast.parse(source)
    full: dict[str, str] = {}  # names in the module, by what they stand for
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            full.update({alias.asname: alias.name for alias in node.names if alias.asname})
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            full.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
            imported = [str(node.module), *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        bad = {root for root in (*PICKLES, *SERVERS) for name in imported if f"{name}.".startswith(f"{root}.")}
        found += [f"import {root}" for root in sorted(bad)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            found += _of_call(full.get(first, first) + dot + rest, node)
    return [f"{path}: {what}" for what in found]


def _of_call(name: str, call: ast.Call) -> list[str]:
    given = {keyword.arg: keyword.value for keyword in call.keywords}
    values = {key: value.value for key, value in given.items() if isinstance(value, ast.Constant)}
    found = [name] if name in FORBIDDEN or name.startswith(("os.exec", "os.spawn")) else []
    found += [f"{name}({key}=...)" for key, needed in NEEDED.get(name, {}).items() if values.get(key) is not needed]
    if name == "numpy.load" and values.get("allow_pickle", False) is not False:
        found.append(f"{name}(allow_pickle=...)")
    for key, safe in (("shell", False), ("verify", True), ("trust_remote_code", False)):
        if key in given and isinstance(given[key], ast.Constant) and values[key] is not safe:
            found.append(f"{name}({key}=...)")
    found += [name] if name.endswith(".extractall") else []
    return found


def test_no_module_has_an_unsafe_call() -> None:
    found = [offender for path, source in modules().items() for offender in offenders(path, source)]
    assert_none(sorted(set(found) - EXCEPTIONS.keys()))
    assert EXCEPTIONS.keys() <= set(found)


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "import http.server",
        "eval('1')",
        "from os import system as f\nf('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import torch\ntorch.load(path)",
        "import torch as t\nt.load(path, weights_only=False)",
        "import torch\ntorch.load(path, weights_only=is_safe)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import yaml\nyaml.load(text, yaml.Loader)",
        "from jinja2 import Environment\nEnvironment()",
        "from mlflow import pyfunc\npyfunc.load_model(uri)",
        "blocks.launch(server_name=host)",
        "import zipfile\nzipfile.ZipFile(path).extractall()",
    ],
)
def test_unsafe_calls_are_noticed(source: str) -> None:
    assert offenders("module.py", source)


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.load(path, weights_only=True)",
        "import numpy as np\nnp.load(path)\nnp.load(path, allow_pickle=False)",
        "import subprocess\nsubprocess.run(['ls'])",
        "model.eval()\nyaml.safe_load(text)\nre.compile(text)",
    ],
)
def test_safe_calls_are_not_noticed(source: str) -> None:
    assert not offenders("module.py", source)


def test_recorded_configurations_are_read_without_python_objects(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("touch was-run",)

    (tmp_path / "config.yaml").write_text(yaml.dump({"a": Evil()}))
    with pytest.raises(yaml.YAMLError, match=r"os\.system|posix\.system"):
        OmegaConf.load(tmp_path / "config.yaml")
    assert not Path("was-run").exists()
