"""Whatever starts a server, here or in the documentation, lets only this machine reach it unless it says so."""

import re
from pathlib import Path

import mlflow.cli
import mlflow.models.cli
import yaml

from cvexp.composition import CONF

ROOT = Path(__file__).parents[1]
START = re.compile(r"mlflow (ui|server)\b|mlflow models serve|uvicorn \w|-m http\.server|moto\.server|gradio \w")
OPENED = {"docs/slurm.md", "docs/server.md"}  # pages that explain how a server is opened to others, and what that takes
BY_DEFAULT = "127.0.0.1"


def commands() -> dict[str, list[str]]:
    """Return all lines that start a server, by file."""
    pages = [ROOT / "Makefile", ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("examples/*.ipynb")]
    modules = [*ROOT.glob("cvexp/**/*.py"), *ROOT.glob("experiments/*.*")]
    lines = {path: path.read_text(errors="replace").splitlines() for path in (*pages, *modules)}
    return {str(path.relative_to(ROOT)): [line for line in lines[path] if START.search(line)] for path in lines}


def hosts(line: str) -> list[str]:
    return re.findall(r"--(?:host|bind)[\"\s,=]+([\w.:]+)", line)


def test_the_default_of_each_server_is_this_machine() -> None:
    for command in (mlflow.cli.server, mlflow.models.cli.serve):  # `mlflow ui` is another name of the first
        (host,) = [option for option in command.params if option.name == "host"]
        assert host.default == BY_DEFAULT
    assert yaml.safe_load((CONF / "task/demo.yaml").read_text())["host"] == BY_DEFAULT


def test_commands_that_start_servers_do_not_open_them() -> None:
    found = commands()
    assert found["Makefile"]
    assert found["docs/serving.md"]
    for path, lines in found.items():
        for line in lines:
            if path not in OPENED:
                assert set(hosts(line)) <= {BY_DEFAULT}, f"{path}: {line}"


def test_pages_that_open_a_server_say_what_that_takes() -> None:
    for path in OPENED:
        page = ROOT / path
        if page.exists():
            assert "password" in page.read_text(), path


def test_hosts_are_noticed() -> None:
    assert hosts("mlflow server --host 0.0.0.0 --port 1") == ["0.0.0.0"]
    assert hosts('[sys.executable, "-m", "http.server", "--bind", "127.0.0.1"]') == ["127.0.0.1"]
    assert hosts("uvicorn a:app --host=::") == ["::"]
