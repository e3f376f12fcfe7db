"""The driver of ``make mutants``: its table names what is there, and its sample is seeded and spread."""

from __future__ import annotations

import pytest

from tests.mutants import PACKAGE, ROOT, TESTS, Mutant, draw, untried


@pytest.mark.parametrize("module", TESTS)
def test_the_table_names_modules_and_test_files_that_exist(module: str) -> None:
    assert (ROOT / PACKAGE / module).is_file()
    assert all((ROOT / "tests" / file).is_file() for file in TESTS[module])


def test_a_sample_is_repeated_by_its_seed_and_takes_every_place_before_a_second_mutant_of_one() -> None:
    mutants = [Mutant("operator", number, (line, 0)) for line in range(1, 6) for number in range(line)]
    order = draw(mutants, "0:module")
    assert order == draw(mutants, "0:module") != draw(mutants, "1:module")
    assert sorted(one.start[0] for one in order[:5]) == [1, 2, 3, 4, 5]
    assert sorted(one.start[0] for one in order[5:9]) == [2, 3, 4, 5]
    assert len(order) == len(mutants)
    assert set(order) == set(mutants)


def test_protocols_guards_of_zip_and_sizes_are_not_tried() -> None:
    source = (
        "BLOCK_USERS = 64\nROWS_AT_ONCE = 1 << 20\nBLOCKED = 3\n"
        "class Model(Protocol):\n    @property\n    def size(self) -> int: ...\n"
        "pairs = zip(a, b, strict=True)\nwrite(a, strict=True)\n"
    )
    starts = {start for start, _ in untried(source)}
    assert {(1, 0), (2, 0), (4, 0), (7, 25)} <= starts
    assert not {row for row, _ in starts} & {3, 8}


def test_annotations_and_flags_of_a_dataclass_are_not_tried() -> None:
    source = (
        "@dataclass(frozen=True)\nclass A:\n    x: int | None = 1\n\ndef f(a: B | C = 2) -> D | E:\n    return 3 | 4\n"
    )
    lines = source.splitlines()
    assert [lines[row - 1][first:last] for (row, first), (_, last) in untried(source)] == [
        "True",
        "D | E",
        "int | None",
        "B | C",
    ]
