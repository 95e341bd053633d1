"""How the code is laid out: short modules, short functions, and names that hide nothing."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "cvexp"
MOST_LINES_OF_MODULE = 300
MOST_LINES_OF_FUNCTION = 50

Function = ast.FunctionDef | ast.AsyncFunctionDef


def modules() -> dict[str, str]:
    """Return the source of each module by its path."""
    return {str(path.relative_to(PACKAGE.parent)): path.read_text() for path in sorted(PACKAGE.rglob("*.py"))}


def functions(tree: ast.AST) -> list[Function]:
    return [node for node in ast.walk(tree) if isinstance(node, Function)]


def shadowing_parameters(source: str) -> list[str]:
    """Describe the parameters that have the name of a function, class or imported module of their module."""
    tree = ast.parse(source)
    taken = {node.name for node in tree.body if isinstance(node, Function | ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and getattr(node, "module", "") != "__future__":
            taken |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
    return [
        f"{function.name}({argument.arg})"
        for function in functions(tree)
        for argument in arguments(function.args)
        if argument.arg in taken
    ]


def arguments(of_function: ast.arguments) -> list[ast.arg]:
    more = [argument for argument in (of_function.vararg, of_function.kwarg) if argument is not None]
    return [*of_function.posonlyargs, *of_function.args, *of_function.kwonlyargs, *more]


def assert_none(offenders: list[str]) -> None:
    assert not offenders, "\n".join(["", *offenders])


def test_modules_are_short() -> None:
    lengths = {name: len(source.splitlines()) for name, source in modules().items()}
    assert len(lengths) > 50
    assert_none([f"{name}: {length} lines" for name, length in lengths.items() if length > MOST_LINES_OF_MODULE])


def test_functions_are_short() -> None:
    lengths = {
        f"{name}:{function.lineno} {function.name}": (function.end_lineno or 0) - function.lineno + 1
        for name, source in modules().items()
        for function in functions(ast.parse(source))
    }
    assert len(lengths) > 300
    assert_none([f"{name}: {length} lines" for name, length in lengths.items() if length > MOST_LINES_OF_FUNCTION])


def test_no_parameter_shadows_a_function_or_an_import_of_its_module() -> None:
    sources = modules()
    assert_none([f"{name}: {where}" for name in sources for where in shadowing_parameters(sources[name])])


def test_shadowing_is_noticed() -> None:
    source = (
        "import a.b\nfrom c import d as e\ndef f(a, /, e, *f, x): ...\nclass G:\n    def m(self, *, G=1, **d): ...\n"
    )
    assert shadowing_parameters(source) == ["f(a)", "f(e)", "f(f)", "m(G)"]
