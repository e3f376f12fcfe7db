"""Add the stage of the guide to a copy of the checkout, and run it: ``python -m docs.example_stage``."""

from __future__ import annotations

from docs.checkout import with_example


def main() -> str:
    """What the new stage prints, what ``plan`` says of it, and how many existing lines it took."""
    with with_example("stage") as checkout:
        parts = [
            checkout.tripletune("ingest"),
            checkout.tripletune("split"),
            checkout.tripletune("activity"),
            checkout.tripletune("plan"),
            checkout.changed_lines(),
        ]
    return "\n".join(parts)


if __name__ == "__main__":
    print(main())
