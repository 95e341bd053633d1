"""The server of docs/server.md: each block of the page runs here, on PostgreSQL, and runs are recorded there."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.helpers import TINY, TINY_SEGMENTATION, Outcome, code_blocks, finish, free_port, serving, start_at_once

pytestmark = pytest.mark.slow  # these tests start servers, and train

psycopg = pytest.importorskip("psycopg", reason="needs PostgreSQL's client: pip install 'cvexp[server]'")

CREATE_DATABASE, WRITE_SETTINGS, START, BECOME_ADMIN, RECORD, SYNC, START_WITH_S3, BACK_UP, RESTORE = code_blocks(
    "server.md", "bash"
)
(ADD_USER,) = code_blocks("server.md", "python")
(CREDENTIALS,) = code_blocks("server.md", "ini")

NUM_AT_ONCE = 8
EPOCH = ["trainer.max_epochs=1"]
OF_THE_MACHINE = "speed/"  # metrics of which a run has as many as it takes time


def bash(block: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a block in the environment of this process and some further variables, and return what it prints."""
    ran = subprocess.run(
        ["bash", "-euc", block], cwd=folder, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


@contextlib.contextmanager
def running(block: str, folder: Path, environment: Mapping[str, str]) -> Iterator[str]:
    """Run a block that starts a server at port 5000, at a free port instead, and yield that port."""
    port = free_port()
    command = f"{block.strip().replace('5000', port)} --workers 2"
    with serving(["bash", "-euc", command], f"http://127.0.0.1:{port}/health", folder, environment):
        yield port


class Server(NamedTuple):
    """A running server: its folder, port, environment, the passwords of its users, and the socket of its database."""

    folder: Path
    port: str
    environment: dict[str, str]
    passwords: dict[str, str]
    socket: str

    def query(self, text: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the database."""
        with psycopg.connect(host=self.socket, user="mlflow", dbname="mlflow") as connection:
            return list(connection.execute(text, values).fetchall())


@pytest.fixture(scope="module")
def server(postgres: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    tools = f"{Path(sys.executable).parent}{os.pathsep}{postgres['PATH']}"
    bash(CREATE_DATABASE, folder, postgres)
    own = {**postgres, "PATH": tools, "PGUSER": "mlflow"}  # instead of a user of the system
    bash(WRITE_SETTINGS, folder, own)
    assert {path.name: oct(path.stat().st_mode)[-3:] for path in folder.iterdir()} == {
        "auth.ini": "600",
        "server.env": "600",
    }
    with running(START, folder, own) as port:
        as_admin = BECOME_ADMIN.replace("5000", port)
        bash(as_admin, folder, own)
        passwords = {}
        for name, program in (("anna", ADD_USER), ("guest", re.sub(r"\nfor .*\n +.*", "", ADD_USER))):
            (folder / "add_user.py").write_text(program.replace("5000", port))
            exports = as_admin.rpartition("\nmlflow ")[0]
            passwords[name] = bash(f"{exports}\npython add_user.py {name}", folder, own).strip()
        yield Server(folder, port, own, passwords, postgres["PGHOST"])


@pytest.fixture
def as_user(server: Server, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let this process record on the server, as a user with a password."""

    def log_in(name: str, password: str) -> None:
        exports = RECORD.rpartition("\npython ")[0].replace("5000", server.port)
        for key, value in re.findall(r"(\w+)=(\S+)", exports):
            monkeypatch.setenv(key, {"anna": name, "PASSWORD": password}.get(value, value))

    return log_in


def test_every_task_records_on_the_server(
    cvexp: Callable[..., Outcome],
    server: Server,
    as_user: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    as_user("anna", server.passwords["anna"])
    dino = [setting for setting in TINY if not setting.startswith("trainer.max")]
    masks = [setting for setting in TINY_SEGMENTATION if not setting.startswith("trainer.max")]
    simclr = [setting for setting in dino if not re.match(r"task\.(local|bottleneck|out|global)", setting)]
    jobs = [
        [RECORD.split("python -m cvexp ")[1].strip(), *dino, *EPOCH],
        ["task=simclr", *simclr, *EPOCH],
        ["-m", "task=multiclass", "seed=0,1", *masks, *EPOCH],
        ["task=attention", *masks, *EPOCH],
        ["task=compare", "task.samples=100", "task.timed_images=1", "task.pictured_images=1"],
    ]
    for words in jobs[:-1]:
        outcome = cvexp(*words)
        assert outcome.code == 0, outcome.message
    # The credentials may also be in a file.
    (tmp_path / ".mlflow").mkdir()
    (tmp_path / ".mlflow/credentials").write_text(CREDENTIALS.replace("PASSWORD", server.passwords["anna"]))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MLFLOW_TRACKING_USERNAME")
    monkeypatch.delenv("MLFLOW_TRACKING_PASSWORD")
    outcome = cvexp(*jobs[-1])
    assert outcome.code == 0, outcome.message
    # tests/tracking/test_store.py has cases in which something waits.
    assert "nothing waits" in bash(SYNC, Path.cwd(), {"PATH": server.environment["PATH"]})
    statuses = server.query(
        "SELECT value, status, count(*) FROM runs JOIN tags USING (run_uuid) WHERE key = 'task' GROUP BY value, status"
    )
    counts = {"dino": 1, "simclr": 1, "multiclass": 2, "sweep": 1, "attention": 1, "compare": 1}
    assert {(task, status): count for task, status, count in statuses}.items() >= {
        (task, "FINISHED"): count for task, count in counts.items()
    }.items()
    assert not Path("outputs/mlflow.db").exists()


def test_who_may_not_record_gets_one_message(
    cvexp: Callable[..., Outcome], server: Server, as_user: Callable[[str, str], None]
) -> None:
    recorded = server.query("SELECT count(*) FROM runs")
    for name, password, words_of_message in (
        ("anna", "a-wrong-password", "got 'anna', but the server does not accept this name with its password"),
        ("guest", server.passwords["guest"], "does not allow guest to do this"),
    ):
        as_user(name, password)
        for words in (TINY, ["-m", "seed=0,1", *TINY], ["task=report"]):
            outcome = cvexp(*words)
            assert outcome.code == 1
            assert re.fullmatch(r"cvexp: error: [^\n]+\n?", outcome.message), outcome.message
            assert words_of_message in outcome.message
            assert password not in outcome.message
    assert server.query("SELECT count(*) FROM runs") == recorded


def record_of(server: Server, run_id: str) -> dict[str, Any]:
    """Return what a run recorded besides times and names: keys, the values that follow from the seed, and files."""
    metrics = server.query("SELECT key, step, value FROM metrics WHERE run_uuid = %s ORDER BY 1, 2, 3", run_id)
    artifacts = server.folder / "artifacts"
    (folder,) = artifacts.glob(f"*/{run_id}/artifacts")
    files = sorted(re.sub(r"[0-9a-f-]{36}|\d{13}", "", str(path.relative_to(folder))) for path in folder.rglob("*"))
    return {
        "params": server.query("SELECT key, value FROM params WHERE run_uuid = %s ORDER BY 1", run_id),
        "tags": server.query("SELECT key FROM tags WHERE run_uuid = %s ORDER BY 1", run_id),
        "metrics": [metric for metric in metrics if not metric[0].startswith(OF_THE_MACHINE)],
        "speed": sorted({metric[0] for metric in metrics if metric[0].startswith(OF_THE_MACHINE)}),
        "files": files,
        "inputs": len(server.query("SELECT 1 FROM inputs WHERE destination_id = %s", run_id)),
        "status": server.query("SELECT status FROM runs WHERE run_uuid = %s", run_id),
    }


def test_eight_runs_at_once_record_as_much_as_one_alone(
    cvexp: Callable[..., Outcome], server: Server, as_user: Callable[[str, str], None]
) -> None:
    as_user("anna", server.passwords["anna"])
    tiny = [setting for setting in TINY if not setting.startswith("trainer.max")]
    settings = [*tiny, *EPOCH, "tracking.folder=outputs"]
    assert cvexp(*settings, "name=alone").code == 0
    finish(start_at_once([[*settings, "name=together"] for _ in range(NUM_AT_ONCE)]))
    ((alone,),) = server.query("SELECT run_uuid FROM runs WHERE name = 'alone'")
    together = server.query("SELECT run_uuid FROM runs WHERE name = 'together'")
    assert len(together) == NUM_AT_ONCE
    expected = record_of(server, alone)
    expected["params"] = [(key, "together" if key == "name" else value) for key, value in expected["params"]]
    assert expected["status"] == [("FINISHED",)]
    assert len(expected["metrics"]) > 30
    assert {"config.yaml", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= set(expected["files"])
    for (run_id,) in together:
        assert record_of(server, run_id) == expected


def test_artifacts_go_to_s3(
    cvexp: Callable[..., Outcome],
    server: Server,
    as_user: Callable[[str, str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    moto = pytest.importorskip("moto.server", reason="needs a server of S3: pip install 'moto[server]'")
    import boto3
    import mlflow

    as_user("anna", server.passwords["anna"])
    s3 = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    s3.start()
    address = "http://{}:{}".format(*s3.get_host_and_port())
    client = boto3.client(
        "s3", endpoint_url=address, aws_access_key_id="KEY", aws_secret_access_key="SECRET", region_name="us-east-1"
    )
    client.create_bucket(Bucket="bucket")
    block = START_WITH_S3.replace("http://127.0.0.1:9000", address).replace("BUCKET", "bucket")
    with running(block, server.folder, server.environment) as port:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{port}")
        outcome = cvexp(*TINY, "trainer.max_steps=1", "name=in-s3")
        assert outcome.code == 0, outcome.message
        ((run_id,),) = server.query("SELECT run_uuid FROM runs WHERE name = 'in-s3'")
        keys = [entry["Key"] for entry in client.list_objects_v2(Bucket="bucket")["Contents"]]
        assert {key.partition(f"{run_id}/artifacts/")[2] for key in keys} >= {"config.yaml", "checkpoints/best.ckpt"}
        assert not list(server.folder.glob(f"artifacts/*/{run_id}"))
        path = mlflow.artifacts.download_artifacts(
            run_id=run_id, artifact_path="checkpoints/last.ckpt", tracking_uri=f"http://127.0.0.1:{port}"
        )
        assert Path(path).stat().st_size > 1_000_000
    s3.stop()


def test_a_backup_has_every_run_and_its_artifacts(server: Server, postgres: dict[str, str]) -> None:
    admin = {**server.environment, "PGUSER": postgres["PGUSER"]}
    bash(BACK_UP, server.folder, server.environment)
    bash(RESTORE, server.folder, admin)
    runs = "SELECT run_uuid, artifact_uri, name, status FROM runs ORDER BY run_uuid"
    with psycopg.connect(host=server.socket, user="mlflow", dbname="restored") as connection:
        assert connection.execute(runs).fetchall() == server.query(runs)
        assert sorted(connection.execute("SELECT username FROM users")) == [("admin",), ("anna",), ("guest",)]
    with tarfile.open(server.folder / "artifacts.tar") as archive:
        packed = {name.removeprefix("artifacts").lstrip("/") for name in archive.getnames()}
    artifacts = server.folder / "artifacts"
    assert packed >= {str(path.relative_to(artifacts)) for path in artifacts.rglob("*.ckpt")}
