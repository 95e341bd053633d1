"""The messages that docs/errors.md quotes are those of the code: nothing is made up, and nothing is out of date."""

import ast
import re
import shlex
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers import Outcome, code_blocks

PACKAGE = Path(__file__).parents[1] / "cvexp"
PREFIX = "cvexp: error: "
SMALL = ("dataset.train_images=4", "dataset.val_images=4", "dataset.test_images=0")  # makes the images quickly
HOME = "/home/me"  # stands for the folder in which commands are started
LEAST_LITERAL = 12  # characters of a message in the code, without its placeholders; shorter ones say too little
LEAST_SHARE = 0.5  # of a quoted message that must be literally in the code; the rest are names, numbers and paths


def entries() -> Iterator[tuple[str | None, str]]:
    """Yield each quoted message, on one line, with the command that leads to it, or None."""
    for block in code_blocks("errors.md", "console"):
        joined = re.sub(r" \\\n +|\n +", " ", block)  # lines that continue are indented
        command = None
        for line in joined.splitlines():
            if line.startswith("$ python -m cvexp "):
                command = line.removeprefix("$ python -m cvexp ")
            else:
                yield command, line.removeprefix(PREFIX)
                command = None


RUN = [(command, message) for command, message in entries() if command is not None]
QUOTED = [message for command, message in entries() if command is None]


@pytest.mark.parametrize(("command", "message"), RUN)
def test_a_command_leads_to_its_message(cvexp: Callable[..., Outcome], command: str, message: str) -> None:
    words = shlex.split(command)
    outcome = cvexp(*words, *(SMALL if words[0].startswith("backbone.") else ()))
    assert outcome.code == 1
    got = next(line for line in outcome.message.splitlines() if line.startswith(PREFIX))
    assert got.removeprefix(PREFIX).replace(str(Path.cwd()), HOME) == message


@cache
def templates() -> list[re.Pattern[str]]:
    """Return an expression for each text in the code, whose groups are what is literal in it."""
    found = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            parts = node.values if isinstance(node, ast.JoinedStr) else [node]
            texts = [part.value if isinstance(part, ast.Constant) else None for part in parts]
            literal = [text for text in texts if isinstance(text, str)]
            if sum(map(len, literal)) >= LEAST_LITERAL and len(literal) == len([text for text in texts if text]):
                found.append("".join(f"({re.escape(text)})" if isinstance(text, str) else ".*?" for text in texts))
    return [re.compile(expression) for expression in dict.fromkeys(found)]


def literal_share(message: str) -> float:
    """Return which share of a message is literally in texts of the code that it has as a whole."""
    literal: set[int] = set()
    for template in templates():
        if match := template.search(message):
            for group in range(1, template.groups + 1):
                literal.update(range(*match.span(group)))
    return len(literal) / len(message)


@pytest.mark.parametrize("message", QUOTED)
def test_a_quoted_message_is_in_the_code(message: str) -> None:
    assert literal_share(message) >= LEAST_SHARE


def test_the_page_quotes_what_it_should() -> None:
    assert len(RUN) >= 20
    assert len(QUOTED) >= 20
    blocks = "".join(code_blocks("errors.md", "console"))
    assert blocks.count(PREFIX) == len(RUN) + len(QUOTED)
    assert not code_blocks("errors.md", "bash")


@pytest.mark.parametrize(
    "message",
    [
        "the training loss exploded in step 12, in epoch 2; choose a smaller learning rate and start again",
        "resume: the run RUN_ID ended already; there is nothing to do",
        "dataset: the train split of /data/photos lacks masks, so only pretraining can use it",
    ],
)
def test_a_made_up_message_is_noticed(message: str) -> None:
    assert literal_share(message) < LEAST_SHARE
