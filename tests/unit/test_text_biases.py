"""The benchmark of text biases: its changes by hand, and biases that are planted are found."""

from __future__ import annotations

import pytest
import torch

from tests.benchmark_scripts import benchmark_script

HEAT = "Heat (1995). Action, Crime. Michael Mann. Al Pacino, Robert De Niro"


@pytest.fixture(scope="module")
def script():
    with benchmark_script("text_biases") as module:
        yield module


def test_the_changes_by_hand(script):
    assert script.reversed_facts(HEAT) == "Heat (1995). Al Pacino, Robert De Niro. Michael Mann. Action, Crime"
    assert script.title_last(HEAT) == "Action, Crime. Michael Mann. Al Pacino, Robert De Niro. Heat (1995)"
    assert script.title_alone(HEAT) == "Heat (1995)"
    assert script.plain_letters("Amélie (Le fabuleux…)") == "Amelie (Le fabuleux...)"
    assert script.article_first("Matrix, The (1999). Action") == "The Matrix (1999). Action"
    assert script.article_first("Stay Hungry, Theo (1976)") == "Stay Hungry, Theo (1976)"
    assert script.family_name_first(HEAT) == "Heat (1995). Action, Crime. Mann, Michael. Pacino, Al, Robert De Niro"


def rows(lines: list[str]) -> dict[str, list[str]]:
    cells = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| "))
    return {name: values for name, *values in cells}


def by_letters(texts: list[str]) -> torch.Tensor:
    """Counts of letters, of which neither order nor length changes the direction."""
    return torch.tensor([[float(text.count(letter)) for letter in "abcdefghijklmnopqrstuvwxyz"] for text in texts])


def test_only_an_order_that_counts_is_found(script):
    texts = [f"{letter * 9}. {'xyz'[number % 3] * (number + 1)}" for number, letter in enumerate("abcdefghij")]
    fair = rows(script.measure(texts, by_letters))
    assert fair["title last"] == ["10", "1.000", "1.000", "100.0%"]
    assert fair["everything twice"] == ["10", "1.000", "1.000", "100.0%"]
    assert float(fair["title alone"][1]) < 1

    def first_letter(texts: list[str]) -> torch.Tensor:
        return by_letters([text[0] for text in texts])

    assert float(rows(script.measure(texts, first_letter))["title last"][1]) < 0.9


def test_texts_of_several_films_are_left_out(script):
    texts = ["abc. x", "abd. y", "abe. z", "same", "same", ""]
    assert script.measure(texts, by_letters)[0] == "3 films with a text of their own."
