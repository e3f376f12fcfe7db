"""Take ``docs/report.png``, the picture of a run's HTML report, with a headless Chromium.

``python -m docs.screenshot`` after ``make run``; needs Debian's package ``chromium`` or a Chrome. The picture shows the
top of the page, in 64 colours: as small as a picture of text can be.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

from PIL import Image

from tripletune.errors import UserError
from tripletune.store.runs import read_run
from tripletune.summary import summarise_run

PICTURE = Path(__file__).parent / "report.png"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
SIZE = (1200, 1055)
"""Width and height of the window, in pixels: the verdicts and the figures below them."""
COLOURS = 64


def find_browser() -> str | None:
    """Path of the first of ``BROWSERS`` that is installed."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def photograph(page: Path, picture: Path, size: tuple[int, int] = SIZE) -> None:
    """Write a PNG of the top of a local HTML page.

    Raises:
        UserError: no browser is installed, or it wrote no picture.
    """
    browser = find_browser()
    if browser is None:
        raise UserError(f"no browser found (looked for {', '.join(BROWSERS)}); install Debian's package chromium")
    with tempfile.TemporaryDirectory() as scratch:
        taken = Path(scratch) / "page.png"
        # a profile of its own, so that neither a running browser nor a missing home matters
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        command += [f"--user-data-dir={scratch}/profile", f"--window-size={size[0]},{size[1]}"]
        command += [f"--screenshot={taken}", page.resolve().as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        if not taken.is_file():
            raise UserError(f"{browser} took no picture of {page}: {done.stderr.strip().splitlines()[-1:]}")
        with Image.open(taken) as image:
            image.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(picture, optimize=True)


def main() -> None:
    """Photograph the report of a run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--artifacts", type=Path, default=Path("artifacts"), help="the artifact root")
    parser.add_argument("--run", default="", help="name of a run; empty: the latest that has a report")
    given = parser.parse_args()
    record = read_run(given.artifacts, given.run, needs="evaluate")
    photograph(summarise_run(record, given.artifacts).page, PICTURE)
    print(f"{PICTURE}: {PICTURE.stat().st_size / 1024:.0f} KiB, of {record.name}")


if __name__ == "__main__":
    main()
