"""No password reaches a file that a run leaves, MLflow, or the console."""

import json
import logging
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from cvexp.redaction import VARIABLE, Formatter, for_terminal, hide_secrets
from tests.helpers import TINY, Outcome, finish, runs, start, write_coco

pytestmark = pytest.mark.slow  # most of these tests train, or start servers or processes


PASSWORD = "dl_lab"  # of the course's archive
NO_CLASSES = [argument for argument in TINY if not argument.startswith("dataset.")]


@pytest.fixture(autouse=True)
def _no_password_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.mark.parametrize(
    ("text", "hidden"),
    [
        ("http://me:hunter2@host:5000/api failed", "http://***@host:5000/api failed"),
        ("postgresql://me:a@b@host/db", "postgresql://***@host/db"),
        ("models:/net@champion and runs:/1/x@y", "models:/net@champion and runs:/1/x@y"),
        ("https://host/a@b", "https://host/a@b"),
        ("s3.host/x?X-Amz-Date=1&X-Amz-Signature=ab12&y=2", "s3.host/x?X-Amz-Date=1&X-Amz-Signature=***&y=2"),
        ("'https://h/a?sig=abc%3D' failed", "'https://h/a?sig=***' failed"),
        ("http://h/a?AWSAccessKeyId=AK&Signature=cd#x", "http://h/a?AWSAccessKeyId=***&Signature=***#x"),
        ("postgresql://host/db?user=me&password=a", "postgresql://host/db?user=me&password=***"),
        ("sqlite:///a/mlflow.db?timeout=120", "sqlite:///a/mlflow.db?timeout=120"),
    ],
)
def test_user_info_and_signatures_are_hidden(text: str, hidden: str) -> None:
    assert hide_secrets(text) == hidden


@pytest.mark.parametrize("password", ["hunter2", "a@b/c", "50%25"])
def test_the_password_of_the_server_is_hidden_wherever_it_is(monkeypatch: pytest.MonkeyPatch, password: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://someone:{password}@host")
    assert password not in hide_secrets(f"refused someone:{password}, {password} and http://someone:{password}@host/x")


SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws/precious1",
    "AWS_SESSION_TOKEN": "precious2==",
    "HF_TOKEN": "hf_precious3",
    "WANDB_API_KEY": "0precious4",
    "PGPASSWORD": "pg precious5",
    "MLFLOW_TRACKING_PASSWORD": "precious6",
    VARIABLE: "precious7",
}


def test_secrets_of_the_environment_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "OTHER_TOKEN": "disk", "OTHER": "square_triangle"}.items():
        monkeypatch.setenv(name, value)
    assert "precious" not in hide_secrets(" ".join(SECRETS.values()))
    assert hide_secrets("disk square_triangle") == "disk square_triangle"


def test_what_is_printed_controls_no_terminal() -> None:
    record = logging.LogRecord("cvexp", logging.INFO, "", 0, "a\x1b]0;x\x07b\r\tc\nd", None, None)
    assert Formatter().format(record) == for_terminal(record.msg) == "a]0;xb\tc\nd"


def test_the_environment_is_in_no_file_and_on_no_console(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a training run and of jobs on it, whose artifacts others may see."""
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    printed = [cvexp(*TINY, "trainer.max_steps=1")]
    printed += [cvexp("task=report"), cvexp("task=export", "trainer.accelerator=cpu", "task.formats=[safetensors]")]
    assert [outcome.code for outcome in printed] == [0, 0, 0]
    assert b"precious" not in everything_below(Path("outputs")) + repr(printed).encode()


COCO = ["dataset=coco", "dataset.root=coco", "dataset.download=true"]


@pytest.mark.parametrize(
    ("key", "arguments"),
    [
        ("name", ["name=${oc.env:HF_TOKEN}"]),
        ("optimizer.args.betas", ["optimizer.args.betas=[0.9,'b-${oc.env:PGPASSWORD}']"]),
        ("optimizer.args.x", ["optimizer.args.x=${oc.env:WANDB_API_KEY}"]),
        ("backbone.weights", ["backbone.weights='https://me:precious@host/x.ckpt'"]),
        ("dataset.annotations_url", [*COCO, "dataset.annotations_url='http://me:precious@127.0.0.1:9/a.zip'"]),
        (
            "dataset.annotations_url",
            [*COCO, "dataset.annotations_url='http://127.0.0.1:9/a.zip?X-Amz-Signature=precious'"],
        ),
        ("dataset.url", ["dataset=course", "dataset.url='http://me:precious@127.0.0.1:9'"]),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]])
def test_settings_with_secrets_are_refused_before_they_are_recorded(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, key: str, arguments: list[str], sweep: list[str]
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    outcome = cvexp(*sweep, *NO_CLASSES, *arguments)
    assert outcome.code == 1
    assert f"{key}: got" in outcome.message
    assert "must not have secrets" in outcome.message
    assert "precious" not in outcome.message
    assert b"precious" not in everything_below(Path("outputs"))


def test_signed_addresses_of_images_are_not_in_the_record_of_what_was_left_out(cvexp: Callable[..., Outcome]) -> None:
    root = write_coco(Path("coco"))
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][2]["coco_url"] = "ftp://host/x.jpg?X-Amz-Signature=precious"
    path.write_text(json.dumps(content))
    (root / "train2017" / "train2.jpg").unlink()
    data = [*COCO, "dataset.strict=false", "dataset.classes=[cat,dog]"]
    outcome = cvexp("task=prepare", *data, "tracking.system_metrics=false", "tracking.folder=jobs")
    assert outcome.code == 0, outcome.message
    assert cvexp(*NO_CLASSES, *data, "dataset.image_size=64", "trainer.max_steps=1").code == 0
    left = everything_below(Path("outputs/artifacts")) + everything_below(Path("jobs/artifacts"))
    assert b"X-Amz-Signature=***" in left
    assert b"precious" not in left


@pytest.mark.parametrize(
    ("argument", "password"),
    [
        ("dataset.password=dl_lab", "dl_lab"),
        ("++dataset.password='a b'", "a b"),
        ('dataset.password="it\'s"', "it's"),
        ("dataset.password=0123", "0123"),
        ("dataset.password=a,b&c$(d)", "a,b&c$(d)"),
        ("dataset.password='", "'"),
    ],
)
def test_a_password_leaves_the_command_line(argument: str, password: str) -> None:
    from cvexp.arguments import for_hydra
    from cvexp.composition import CONF

    (rewritten,) = for_hydra([argument], CONF)
    assert rewritten.lstrip("+") == f"dataset.password=${{oc.env:{VARIABLE}}}"
    assert os.environ[VARIABLE] == password


def everything_below(folder: Path) -> bytes:
    return b"\0".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def course_copy(course: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in course.glob("*.zip"):
        shutil.copy(path, folder)
    return folder


@pytest.mark.parametrize("sweep", [False, True])
def test_the_password_of_the_data_is_in_no_file_and_on_no_console(course: Path, sweep: bool) -> None:
    """Of a run, a sweep, and the checkpoints of both; it is a word that nothing else contains."""
    root = course_copy(course, Path("course"))
    arguments = [*NO_CLASSES, "dataset=course", f"dataset.root={root}", "dataset.limit=12", "trainer.max_steps=1"]
    sweeping = ["-m", "seed=0,1"] if sweep else []
    output = finish(start(*sweeping, *arguments, f"dataset.password={PASSWORD}"))
    assert PASSWORD not in output
    finished = [run for run in runs() if run.info.status == "FINISHED"]
    assert len(finished) == (3 if sweep else 1)
    for run in finished:  # Hydra escapes the words of a sweep's jobs
        words = shlex.split(run.data.tags["command"])
        assert "dataset.password=${oc.env:CVEXP_PASSWORD}" in [word.replace("\\", "") for word in words]
    left = everything_below(Path("outputs"))
    assert b"CVEXP_PASSWORD" in left  # what was searched has the command
    assert PASSWORD.encode() not in left
    assert list(Path("outputs").rglob("best.ckpt"))


def test_a_password_from_a_configuration_file_is_not_copied(course: Path) -> None:
    root = course_copy(course, Path("course"))
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/own.yaml").write_text(
        f"# @package _global_\ndefaults:\n  - override /dataset: course\ndataset:\n  password: {PASSWORD}\n"
    )
    arguments = [*NO_CLASSES, f"dataset.root={root}", "dataset.limit=12", "trainer.max_steps=1"]
    finish(start("--config-dir", "conf", "-m", "+experiment=own", "seed=0,1", *arguments))
    assert PASSWORD.encode() not in everything_below(Path("outputs"))


def test_a_wrong_password_is_not_repeated(course: Path, cvexp: Callable[..., Outcome]) -> None:
    root = course_copy(course, Path("course"))
    outcome = cvexp(*NO_CLASSES, "dataset=course", f"dataset.root={root}", "dataset.password=correct-horse")
    assert outcome.code == 1
    assert "dataset.password" in outcome.message
    assert "correct-horse" not in outcome.message + runs()[0].data.tags["error"] + runs()[0].data.tags["command"]


def test_user_info_of_the_server_is_nowhere(
    cvexp: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A server that goes away, with its address in the errors of MLflow."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:hunter2@127.0.0.1:9")
    outcome = cvexp(*TINY)
    assert "127.0.0.1:9" in outcome.message
    assert "hunter2" not in outcome.message
    assert "someone" not in outcome.message
    monkeypatch.delenv("MLFLOW_TRACKING_URI")

    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("http://someone:hunter2@127.0.0.1:9 is wrong")

    monkeypatch.setattr("cvexp.training.pretraining.fit", fail)
    with pytest.raises(ZeroDivisionError):
        cvexp(*TINY)
    assert runs()[0].data.tags["error"] == "ZeroDivisionError: http://***@127.0.0.1:9 is wrong"


def test_a_traceback_hides_user_info() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "from cvexp import app\n"
        "try: app.main()\n"
        "except SystemExit: pass\n"
        "raise RuntimeError('http://someone:hunter2@host is wrong')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "RuntimeError: http://***@host is wrong" in result.stderr
