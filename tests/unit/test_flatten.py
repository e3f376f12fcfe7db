"""Nested tables become dotted names."""

from tripletune.flatten import flatten


def test_names_are_dotted_values_kept_and_empty_tables_dropped():
    table = {"b": 1, "a": {"x": None, "y": {"z": [{"kept": 1}]}}, "none": {}}
    assert list(flatten(table).items()) == [("b", 1), ("a.x", None), ("a.y.z", [{"kept": 1}])]
    assert flatten({"x": 1}, "fields.") == {"fields.x": 1}
