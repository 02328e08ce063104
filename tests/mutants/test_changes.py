"""Each kind of change, at the place of its code."""

from __future__ import annotations

import pytest

from tests.mutants.changes import changes, is_valid


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("x = a <= b", {"x = a < b"}),
        ("x = a is not b", {"x = a is b"}),
        ("x = 'ü' < a in (b)", {"x = 'ü' <= a in (b)", "x = 'ü' < a not in (b)"}),
        ("x = a and b\nx += a", {"x = a or b\nx += a", "x = a and b\nx -= a"}),
        ("x = not (a)", {"x = (a)"}),
        ("x = a - 1", {"x = a + 1", "x = a - 0"}),
        ("x = f(True)", {"x = f(False)"}),
        ("f(\n  x\n)", {"pass"}),
        ("await f()", {"pass"}),
        ("x.y = a", {"pass"}),
        ("if x:\n  raise y", {"if not x:\n  raise y", "if x:\n  pass"}),
        ("try: x\nexcept (A, B): y", {"try: x\nexcept (A,): y", "try: x\nexcept (B): y"}),
        ("with suppress(A, b.C, D): y", {f"with suppress({left}): y" for left in ("b.C, D", "A, D", "A, b.C")}),
        (
            "try: x\nfinally:\n  del a\n  b()",
            {f"try: x\nfinally:\n  {left}" for left in ("pass\n  b()", "del a\n  pass", "pass")},
        ),
    ],
)
def test_changes_cover_all_kinds(source: str, changed: set[str]) -> None:
    found = {change.apply(source.encode()).decode() for change in changes(source.encode())}

    assert {text.replace(", )", ")").replace("( ", "(") for text in found} == changed


def test_uncompilable_is_invalid() -> None:
    assert is_valid(b"x = 1")
    assert not is_valid(b"x = ")
