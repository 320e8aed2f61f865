"""Previews while a picture is made, and stopping early: ``python previews_and_cancel.py BUNDLE PROMPT OUT``."""

from __future__ import annotations

import argparse
from pathlib import Path

import sfumato
from sfumato.errors import Cancelled
from sfumato.runtime import image
from sfumato.runtime.systems.base import Progress


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("prompt")
    parser.add_argument("out", type=Path)
    parser.add_argument("--stop-after", type=int, default=10, help="steps until it is cancelled")
    args = parser.parse_args()

    previews = []

    def on_step(step: Progress) -> bool:
        previews.append(step.preview()[0])  # uint8 (h, w, 3) by a linear map: no decoder call
        return step.index + 1 < args.stop_after  # False stops between two steps

    with sfumato.load(args.bundle) as system:
        try:
            system.generate(args.prompt, seed=1, on_step=on_step)
        except Cancelled as reason:
            print(reason)

    image.write(args.out, image.contact_sheet(previews))


if __name__ == "__main__":
    main()
