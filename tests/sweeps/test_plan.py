"""What a study runs first, and how long its runs are."""

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from cvexp import data
from cvexp.arguments import with_sweeper
from cvexp.composition import CONF, compose
from cvexp.errors import UserError
from cvexp.sweeps.clock import Clock
from cvexp.sweeps.lengths import Length, Measured, equal_time, fit, steps_in
from cvexp.sweeps.plan import Cell, Plan, join, spread_out
from cvexp.sweeps.study_jobs import StudyJobs, check_overrides, images_of, shared_overrides
from cvexp.tasks.study import Config

PLAN = Plan(("multiclass", "attention"), ("random", "dino"), (0.05, 0.1, 0.25, 0.5, 1.0), (0, 1, 2))


def test_the_ends_of_a_curve_come_first_and_then_the_largest_gaps() -> None:
    assert spread_out([0.5, 1.0, 0.05, 0.25, 0.1]) == [0.05, 1.0, 0.25, 0.1, 0.5]
    assert spread_out([0.3]) == [0.3]


def test_a_round_has_every_cell_of_its_seed_and_keeps_those_together_that_are_compared() -> None:
    groups = PLAN.round(1, settled=set(), doubts={})
    cells = [cell for group in groups for cell in group]
    assert len(set(cells)) == len(cells) == 2 * 2 * 5
    assert {cell.seed for cell in cells} == {1}
    assert [(cell.method, cell.start, cell.fraction) for cell in cells[:4]] == [
        ("multiclass", "random", 0.05),
        ("multiclass", "dino", 0.05),
        ("attention", "random", 0.05),
        ("attention", "dino", 0.05),
    ]
    assert all(len({(cell.method, cell.fraction) for cell in group}) == 1 for group in groups)


@pytest.mark.parametrize(("at_once", "sizes"), [(1, [2] * 10), (2, [2] * 10), (3, [6, 6, 6, 2]), (4, [4] * 5)])
def test_groups_are_joined_until_the_launcher_is_busy(at_once: int, sizes: list[int]) -> None:
    groups = PLAN.round(0, settled=set(), doubts={})
    batches = join(groups, at_once)
    assert list(map(len, batches)) == sizes
    assert [cell for batch in batches for cell in batch] == [cell for group in groups for cell in group]


def test_later_rounds_leave_out_what_is_settled_and_start_with_what_is_most_doubtful() -> None:
    groups = PLAN.round(2, settled={("attention", "dino")}, doubts={("multiclass", 0.5): 3.0, ("attention", 0.1): 9.0})
    assert groups[0] == [Cell("attention", "random", 0.1, 2)]
    assert [cell.fraction for cell in groups[1]] == [0.5, 0.5]
    assert Cell("attention", "dino", 0.05, 2) not in [cell for group in groups for cell in group]


def test_each_job_of_a_study_has_its_own_number() -> None:
    jobs = StudyJobs(_study(), ["dataset=coco"], PLAN, ["dino"])
    numbers = [jobs.pretraining("dino", seed).number for seed in PLAN.seeds]
    numbers += [jobs.on_labels(cell).number for seed in PLAN.seeds for g in PLAN.round(seed, set(), {}) for cell in g]
    jobs.study.at_once = 2
    numbers += [job.number for task in ("dino", "multiclass", "attention") for job in jobs.benchmarks(task)]
    assert sorted(numbers) == list(range(3 + 60 + 3 * 2))


def test_a_job_has_the_overrides_of_its_task_of_all_and_of_its_cell() -> None:
    jobs = StudyJobs(_study(), ["dataset=coco"], PLAN, ["dino"])
    jobs.lengths = {"attention": Length(100, 10).overrides()}
    job = jobs.on_labels(Cell("attention", "dino", 0.05, 1), source="abc")
    assert job.overrides == (
        "task=attention",
        "dataset=coco",
        "+experiment=demo",
        "trainer.max_steps=100",
        "trainer.steps_per_epoch=10",
        "trainer.max_epochs=10",
        "backbone.weights=runs:/abc/checkpoints/best.ckpt",
        "dataset.fraction=0.05",
        "seed=1",
        "name=attention-dino-5%-seed1",
    )
    assert "backbone.weights=null" in jobs.on_labels(Cell("multiclass", "random", 0.05, 1)).overrides
    jobs.plan = PLAN._replace(starts=("it's/a weight.pth",))
    odd = jobs.on_labels(Cell("multiclass", "it's/a weight.pth", 1.0, 0)).overrides
    assert "backbone.weights='it\\'s/a weight.pth'" in odd


def test_overrides_of_a_task_replace_shared_ones_only_if_both_are_given_on_the_command_line() -> None:
    study = _study("task.overrides={dino: ['loader.batch_size=256']}")
    for is_last, size in ((True, "256"), (False, "16")):
        jobs = StudyJobs(study, ["loader.batch_size=16"], PLAN, ["dino"], are_own_last=is_last)
        values = [word for word in jobs.overrides("dino") if word.startswith("loader.batch_size=")]
        assert values[-1] == f"loader.batch_size={size}"


def test_an_experiment_for_all_runs_is_joined_with_that_of_a_task() -> None:
    jobs = StudyJobs(
        _study("task.overrides={all: ['+experiment=voc6_dino'], dino: ['+experiment=demo']}"), [], PLAN, []
    )
    (word,) = [word for word in jobs.overrides("dino") if "experiment" in word]
    assert word == "+experiment=[demo,voc6_dino]"
    assert compose(word, "dataset.root=somewhere").dataset.name == "voc"  # that for all runs counts
    assert "+experiment=voc6_dino" in jobs.overrides("multiclass")


@pytest.mark.parametrize("words", ["dino: ['seed=1']", "all: ['dataset.fraction_seed=0']", "probe: ['name=mine']"])
def test_overrides_that_a_study_would_replace_are_refused(words: str) -> None:
    task = words.partition(":")[0]
    with pytest.raises(UserError, match=rf"task\.overrides\.{task}: a study (sets|does not use)"):
        check_overrides(_study(f"task.overrides={{{words}}}"))
    check_overrides(_study("task.overrides={dino: ['trainer.max_epochs=2']}"))


def test_shares_that_are_no_shares_are_refused(tmp_path: Path) -> None:
    config = compose("task=multiclass", "dataset.train_images=40", "dataset.val_images=4", "dataset.test_images=0")
    config.dataset.root = str(tmp_path)
    splits = data.load(config.dataset, "segmentation")
    assert images_of([1.0, 0.5], splits, config.dataset) == [40, 20]
    with pytest.raises(UserError, match=r"0\.05 of 40 training images are 2, but each class keeps .* makes 5; choose"):
        images_of([0.05, 1.0], splits, config.dataset)
    with pytest.raises(UserError, match=r"0\.5 and 0\.505 are the same 20 images"):
        images_of([0.5, 0.505], splits, config.dataset)


class _Runs:
    """Stands for a study's run, whose store has runs of ten minutes."""

    id = "study"

    def __init__(self, seconds: float) -> None:
        self.store = self.client = self
        self.tags = {"study.seconds": str(seconds)}

    def run(self, *_: str) -> SimpleNamespace:
        return SimpleNamespace(data=SimpleNamespace(tags=self.tags))

    def get_run(self, run_id: str) -> SimpleNamespace:
        tags = {"resumed": "true"} if run_id == "resumed" else {}
        info = SimpleNamespace(start_time=0, end_time=36_000_000 if tags else 600_000)
        return SimpleNamespace(info=info, data=SimpleNamespace(tags=tags))


def test_the_clock_counts_turns_and_ignores_runs_that_were_interrupted() -> None:
    clock = Clock(_Runs(0.0), hours=1.0, at_once=2)  # type: ignore[arg-type]
    clock.note("dino", "resumed")
    assert clock.needed(["dino"]) == 0
    clock.note("dino", "whole")
    clock.note("multiclass", "whole")
    assert clock.needed(["dino"] * 3) == 1200  # two turns
    assert clock.allows(["dino"] * 2, ["multiclass"] * 8)
    assert not clock.allows(["dino"] * 3, ["multiclass"] * 8)
    assert not Clock(_Runs(3601.0), hours=1.0, at_once=2).allows([])  # type: ignore[arg-type]


def _study(*overrides: str) -> Config:
    task = compose("task=study", "task.overrides={attention: ['+experiment=demo']}", *overrides).task
    assert isinstance(task, Config)
    return task


def test_all_but_the_keys_of_the_study_go_to_its_runs() -> None:
    given = ["task=study", "task.hours=2", "+experiment=shapes_study", "dataset=folder", "dataset.classes=[a,b]"]
    assert shared_overrides(given) == ("dataset=folder", "dataset.classes=[a,b]")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=3", "seed: a study sets it for each of its runs; set task.seeds"),
        ("backbone.weights=timm", "set task.starts"),
        ("dataset.fraction=0.1", "set task.fractions"),
        ("trainer.max_steps=10", "set task.steps"),
        ("name=x", "name: a study does not use it"),
        ("dataset=coco,voc", "dataset: a study takes one value"),
    ],
)
def test_keys_that_a_study_sets_itself_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        shared_overrides(["task=study", override])


def test_a_length_is_split_into_validations() -> None:
    assert Length(100, 10).overrides() == [
        "trainer.max_steps=100",
        "trainer.steps_per_epoch=10",
        "trainer.max_epochs=10",
    ]
    assert Length(101, 10).overrides()[1:] == ["trainer.steps_per_epoch=11", "trainer.max_epochs=10"]
    assert Length(3, 10).overrides()[1:] == ["trainer.steps_per_epoch=1", "trainer.max_epochs=3"]


def test_the_number_of_steps_fits_the_time() -> None:
    fast = Measured(images_per_second=100.0, batch_size=10, num_validated=300)
    slow = fast._replace(images_per_second=20.0)
    steps = steps_in(131.0, [fast], validations=10)
    assert 20 + (steps * 10 + 11 * 300 / 3) / 100 == pytest.approx(131.0, abs=0.2)
    steps = steps_in(400.0, [fast, slow], validations=10)
    total = sum(20 + (steps * 10 + 11 * 300 / 3) / speed for speed in (100, 20))
    assert total == pytest.approx(400.0, abs=0.7)
    assert steps_in(1.0, [fast], validations=10) == 50  # the fewest


@pytest.mark.parametrize(("at_once", "starts"), [(1, 2), (2, 2), (4, 2), (2, 3), (3, 2)])
def test_runs_fit_into_the_budget_however_many_run_at_a_time(at_once: int, starts: int) -> None:
    study = _study("task.hours=2", f"task.at_once={at_once}", "task.seeds=[0,1]", "task.fractions=[0.1,1]")
    study = replace(study, starts=["random", "dino", "simclr"][:starts])
    measured = dict.fromkeys(["dino", "simclr", "multiclass"], Measured(100.0, 10, 0))
    measured["attention"] = Measured(40.0, 10, 0)
    pretrainings = study.starts[1:]
    lengths = fit(2.0, study, measured, pretrainings, ["multiclass", "attention"])
    seconds = {task: 20 + length.steps * measured[task].step for task, length in lengths.items()}
    labels = math.ceil(4 * starts / at_once) * (seconds["multiclass"] + seconds["attention"]) / 2
    pretraining = math.ceil(len(pretrainings) / at_once) * seconds["dino"]
    assert 2 * (labels + pretraining) == pytest.approx(0.8 * (7200 - 4 * 90), rel=0.01)


def test_methods_that_train_equally_long_have_steps_by_their_speeds() -> None:
    lengths = {"multiclass": Length(100, 10), "attention": Length(100, 10)}
    measured = {"multiclass": Measured(200.0, 10, 0), "attention": Measured(50.0, 10, 0)}
    changed = equal_time(lengths, measured)
    seconds = {task: length.steps * 10 / measured[task].images_per_second for task, length in changed.items()}
    assert seconds["multiclass"] == pytest.approx(seconds["attention"], rel=0.01)
    assert changed["multiclass"].steps > 3.9 * changed["attention"].steps


def test_probes_of_all_starts_get_images_of_the_same_size_unless_told_otherwise() -> None:
    jobs = StudyJobs(_study(), [], PLAN._replace(methods=("probe",)), ["dino"])
    jobs.of_probes = ["task.eval_size=48"]
    for start in ("random", "dino"):
        assert "task.eval_size=48" in jobs.on_labels(Cell("probe", start, 1.0, 0), "abc").overrides
    task = compose("task=study", "task.overrides={probe: ['task.eval_size=64']}").task
    assert isinstance(task, Config)
    jobs.study = task
    overrides = jobs.overrides("probe")
    assert overrides.index("task.eval_size=64") > overrides.index("task.eval_size=48")  # the last one counts


@pytest.mark.parametrize(
    ("arguments", "is_sweep"),
    [
        (["task=study"], True),
        (["-m", "task=study"], True),
        (["+experiment=shapes_study", "task.stop=false"], True),
        (["+experiment=[demo,shapes_study]"], True),
        (["+experiment=shapes_study", "task=compare"], False),
        (["tracking.experiment=shapes_study"], False),
        (["task=compare", f"+experiment={'a' * 300}"], False),
        (["task=study", "--cfg", "job"], False),
        (["+experiment=demo"], False),
        (["-m", "seed=0,1"], False),
    ],
)
def test_a_study_has_a_sweeper_of_its_own(arguments: list[str], is_sweep: bool) -> None:
    rewritten = with_sweeper(arguments, CONF)
    assert ("hydra/sweeper=study" in rewritten) == is_sweep
    assert (("-m" in rewritten) and rewritten.count("-m") == 1) == (is_sweep or "-m" in arguments)
    assert [word for word in rewritten if word not in ("-m", "hydra/sweeper=study")] == [
        w for w in arguments if w != "-m"
    ]
