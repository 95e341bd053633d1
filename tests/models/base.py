"""Tests that every network of the project passes, whatever it computes."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """A network to test.

    Attributes:
        make: Creates the network.
        inputs: Arguments of its `forward`.
        shapes: Expected shapes of the outputs.
        unused: Names of the parameters that do not affect the outputs.
        has_graph_breaks: Whether `torch.compile` can't capture the network in one graph.
    """

    make: Callable[[], nn.Module]
    inputs: tuple[Any, ...]
    shapes: Sequence[tuple[int, ...]]
    unused: frozenset[str] = frozenset()
    has_graph_breaks: bool = False

    def model(self, seed: int = 0) -> nn.Module:
        """Create the network in training mode, with statistics of batch norm that differ from the initial ones."""
        torch.manual_seed(seed)
        model = self.make()
        with torch.no_grad():
            model.train()(*self.inputs)
        return model


class ModelTest:
    """The tests. A subclass overrides the fixture `case`, which may have parameters."""

    @pytest.fixture
    def case(self) -> Case:
        raise NotImplementedError

    @pytest.mark.parametrize("is_training", [True, False])
    def test_outputs_have_the_expected_shapes_and_are_finite_float32(self, case: Case, is_training: bool) -> None:
        outputs = run(case.model().train(is_training), case)
        assert [tuple(output.shape) for output in outputs] == list(case.shapes)
        assert all(output.dtype == torch.float32 for output in outputs)
        assert all(output.isfinite().all() for output in outputs)

    def test_forward_and_backward_work_with_bfloat16_autocast(self, case: Case) -> None:
        model = case.model()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            outputs = run(model, case)
        loss(outputs).backward()
        assert [tuple(output.shape) for output in outputs] == list(case.shapes)
        assert all(gradient.isfinite().all() for gradient in gradients(model).values())

    def test_the_gradient_reaches_every_parameter(self, case: Case) -> None:
        model = case.model()
        loss(run(model, case)).backward()
        trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert trainable - gradients(model).keys() == case.unused

    def test_a_loaded_state_dict_gives_equal_outputs(self, case: Case) -> None:
        model, other = case.model(seed=0).eval(), case.model(seed=1).eval()
        expected = run(model, case)
        assert not any(torch.equal(*pair) for pair in zip(run(other, case), expected, strict=True))
        file = io.BytesIO()
        torch.save(model.state_dict(), file)
        file.seek(0)
        other.load_state_dict(torch.load(file, weights_only=True))
        assert_equal(run(other, case), expected)

    def test_evaluation_mode_is_deterministic_and_changes_nothing(self, case: Case) -> None:
        model = case.model().eval()
        state = copy.deepcopy(model.state_dict())
        random_state = torch.get_rng_state()
        assert_equal(run(model, case), run(model, case))
        assert_equal(list(model.state_dict().values()), list(state.values()))
        assert torch.equal(torch.get_rng_state(), random_state)

    def test_the_compiled_model_gives_equal_outputs_and_gradients(self, case: Case) -> None:
        model = case.model().eval()  # without dropout, whose random numbers may differ
        expected = run(model, case)
        loss(expected).backward()
        expected_gradients = gradients(model)
        model.zero_grad()
        torch.compiler.reset()
        compiled = torch.compile(model, backend="aot_eager", fullgraph=not case.has_graph_breaks)
        outputs = run(compiled, case)
        loss(outputs).backward()
        torch.testing.assert_close(outputs, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients(model), expected_gradients, rtol=1e-4, atol=1e-4)

    def test_the_exported_program_gives_equal_outputs_for_any_batch_size(self, case: Case) -> None:
        model = case.model().eval()
        batch = torch.export.Dim("batch")
        dynamic_shapes = map_tensors(lambda _: {0: batch}, case.inputs)
        program = torch.export.export(model, case.inputs, dynamic_shapes=dynamic_shapes).module()
        larger = case._replace(inputs=map_tensors(lambda x: torch.cat([x, x.flip(0), x]), case.inputs))
        for example in (case, larger):
            torch.testing.assert_close(run(program, example), run(model, example), rtol=1e-4, atol=1e-4)


def run(model: Callable[..., Any], case: Case) -> list[Tensor]:
    """Return all outputs of a model for the inputs of a case."""
    outputs = model(*case.inputs)
    return [outputs] if isinstance(outputs, Tensor) else list(outputs)


def map_tensors(function: Callable[[Tensor], Any], inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Apply a function to each tensor of the inputs, which are tensors or lists of tensors."""
    return tuple(function(x) if isinstance(x, Tensor) else [function(tensor) for tensor in x] for x in inputs)


def loss(outputs: list[Tensor]) -> Tensor:
    """Return a scalar to which all values of all outputs contribute differently."""
    generator = torch.Generator().manual_seed(0)
    return sum((output * torch.randn(output.shape, generator=generator)).mean() for output in outputs)  # type: ignore[return-value]


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Return the gradients of the parameters that have one, by the name of the parameter."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_equal(first: list[Tensor], second: list[Tensor]) -> None:
    """Fail unless two lists of tensors are bit-equal."""
    torch.testing.assert_close(first, second, rtol=0, atol=0)
