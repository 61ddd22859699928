"""Errors carry what programs ask for as attributes: nothing in the package takes an error's text apart."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest

from dynamo_fast import errors
from dynamo_fast.errors import InvalidAddress, InvalidRequest, RequestTooLarge, SerializationError
from scripts.architecture import PACKAGE, modules

# What an error says beside its text -----------------------------------------------------------------------------------


def test_the_text_is_the_problem_and_then_the_detail() -> None:
    error = InvalidAddress("no address 'a (b)'", "expected IP:PORT")
    assert (str(error), error.problem) == ("no address 'a (b)' (expected IP:PORT)", "no address 'a (b)'")
    assert (str(InvalidRequest("a (b)")), InvalidRequest("a (b)").problem) == ("a (b)", "a (b)")
    assert (str(InvalidRequest()), InvalidRequest().problem) == ("", "")


def test_the_place_in_a_value_is_an_attribute() -> None:
    error = SerializationError("unsupported type date", path="$.a", by_type=True)
    assert str(error) == "unsupported type date (at $.a)"
    assert (error.problem, error.path, error.by_type) == ("unsupported type date", "$.a", True)
    assert (SerializationError("no").path, SerializationError("no").by_type) == (None, False)


def test_both_numbers_of_a_limit_are_attributes() -> None:
    error = RequestTooLarge("Too large.", "It takes 5 bytes; the limit is 4.", size=5, limit=4)
    assert str(error) == "Too large. (It takes 5 bytes; the limit is 4.)"
    assert (error.problem, error.size, error.limit) == ("Too large.", 5, 4)


@pytest.mark.parametrize(
    "error",
    [
        InvalidAddress("p", "d"),
        SerializationError("p", path="$", by_type=True),
        RequestTooLarge("p", "d", size=5, limit=4),
        errors.InvalidLabel("p", label="l"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_the_attributes_survive_a_pickle_and_a_copy(error: InvalidRequest) -> None:
    for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):  # our own bytes
        assert type(again) is type(error)
        assert (str(again), vars(again)) == (str(error), vars(error))


# Nothing takes a text apart -------------------------------------------------------------------------------------------

CUTTING = {"split", "rsplit", "partition", "rpartition", "startswith", "endswith", "removeprefix", "removesuffix"}
CUTTING |= {"find", "index", "replace", "splitlines", "search", "match", "fullmatch", "findall"}
#: Function -> why it may. Texts of others, who give nothing but a text.
ALLOWED = {
    ("discovery/etcd_lease.py", "regain"): "etcd's code for it means any failed precondition; its text says which",
    ("wire/payload.py", "_load"): "msgspec tells where the first value ends in its text alone",
    ("net/nats_connection.py", "_why"): "nats-py puts its own name before every text, which is for people to read",
    ("ingress/nats_server.py", "_answer"): "only what the log shows is shortened",
    ("inspect/describe.py", "_value"): "msgspec tells which byte it could not read in its text alone",
}


class Function:
    """One function: which names in it are errors, and which expressions are texts of errors."""

    def __init__(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.name = node.name
        self.nodes = list(ast.walk(node))
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.errors = {each.arg for each in arguments if each.annotation and is_error_type(each.annotation)}
        self.errors |= {each.name for each in self.nodes if isinstance(each, ast.ExceptHandler) and each.name}
        self.texts: set[str] = set()
        for each in self.nodes:
            if isinstance(each, ast.Assign) and self.is_text(each.value):
                self.texts |= {target.id for target in each.targets if isinstance(target, ast.Name)}

    def is_text(self, node: ast.expr) -> bool:
        """Whether it is the text of an error: `str(error)`, `error.message`, `error.args[0]`, or a name of one of them."""
        if isinstance(node, ast.Name):
            return node.id in self.texts
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ("str", "repr", "text_of")
        ):
            return any(self.is_error(each) for each in node.args)
        if isinstance(node, ast.Subscript):
            return isinstance(node.value, ast.Attribute) and self.is_part(node.value, "args")
        return isinstance(node, ast.Attribute) and self.is_part(node, "message", "problem")

    def is_part(self, node: ast.Attribute, *names: str) -> bool:
        return node.attr in names and self.is_error(node.value)

    def is_error(self, node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in self.errors

    def cuts(self) -> Iterator[int]:
        """The lines on which a text of an error is taken apart."""
        for node in self.nodes:
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CUTTING:
                if any(self.is_text(each) for each in (node.func.value, *node.args)):
                    yield node.lineno
            elif isinstance(node, ast.Compare):
                if any(self.is_text(each) for each in (node.left, *node.comparators)):
                    yield node.lineno
            elif isinstance(node, ast.Subscript) and self.is_text(node.value):
                yield node.lineno


def is_error_type(annotation: ast.expr) -> bool:
    """Whether it names a class of exceptions, of this package or of Python."""
    names = {each.id for each in ast.walk(annotation) if isinstance(each, ast.Name)}
    return any(name in errors.__all__ or name.endswith(("Error", "Exception")) for name in names)


def cuts_of(path: Path) -> list[tuple[str, str, int]]:
    """File, function and line of each place that takes the text of an error apart."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    functions = [Function(each) for each in ast.walk(tree) if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))]
    name = path.relative_to(PACKAGE).as_posix()
    return [(name, function.name, line) for function in functions for line in function.cuts()]


def test_no_text_of_an_error_is_taken_apart() -> None:
    found = {(name, function): line for path in modules() for name, function, line in cuts_of(path)}
    assert {place: line for place, line in found.items() if place not in ALLOWED} == {}
    assert [place for place in ALLOWED if place not in found] == [], "allowed, but not needed any more"
