"""Arguments `key=value`: what they make of a dataclass, and the line for each that makes nothing."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from fgpipe.config.arguments import MANY, by_key, load, merged, no_such_key, own_keys, parse
from fgpipe.errors import UserError


@dataclass
class Keys:
    count: int = 1
    share: float | None = None
    on: bool = False
    name: str = "a"
    sizes: list[int] = field(default_factory=list)
    of: dict[str, int] = field(default_factory=dict)


def test_values_have_the_types_of_the_fields() -> None:
    arguments = ["count=2", "share=1", "on=true", "name=b=c", "sizes=[3,4]", "count=3"]
    assert parse(arguments, Keys()) == Keys(3, 1.0, True, "b=c", [3, 4])
    assert parse(["name=2024_01"], Keys()).name == "2024_01" and parse(["name='1'"], Keys()).name == "1"
    assert by_key(arguments)["count"] == "3" and by_key(arguments)["name"] == "b=c"
    assert merged(Keys(count=5), ["of.x=6"]) == Keys(count=5, of={"x": 6})
    assert own_keys(["on=true", "other=1"], Keys()) == (Keys(on=True), ["other=1"])


@pytest.mark.parametrize(
    "argument, line", [
        ("count", "count: allowed: key=value"),
        ("count=many", "count=many: allowed: a whole number"),
        ("count=1.5", "count=1.5: allowed: a whole number"),
        ("share=half", "share=half: allowed: a number"),
        ("on=maybe", "on=maybe: allowed: true | false"),
        ("name=", "name=: allowed: text"),
        ("name=[1]", "name=[1]: allowed: text"),
        ("sizes=3", "sizes=3: allowed: a list of whole numbers"),
        ("sizes=[a]", "sizes=[a]: allowed: a list of whole numbers"),
        ("of=3", "of=3: Cannot assign int to Dict[str, int]"),
        ("cuont=1", "cuont=1: no such key; did you mean count?"),
        ("x=1", "x=1: no such key; allowed: count | share | on | name | sizes | of"),
    ],
)  # fmt: skip
def test_bad_arguments(argument: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        parse([argument], Keys())
    assert str(error.value) == line


def test_many_keys_are_not_listed() -> None:
    assert str(no_such_key("x=1", ["a key"] * (MANY + 1))) == "x=1: no such key; --help lists all"


def test_a_file_states_options(tmp_path: Path) -> None:
    path = tmp_path / "options.yaml"
    path.write_text("count: 4\n")
    assert load(Keys, path) == Keys(count=4)
    path.write_text("cuont: 4\n")
    with pytest.raises(UserError, match="Key 'cuont' not in 'Keys'"):
        load(Keys, path)
