"""A picture from a prompt: ``python generate.py BUNDLE PROMPT OUT``."""

from __future__ import annotations

import argparse

import sfumato


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("prompt")
    parser.add_argument("out")
    args = parser.parse_args()

    with sfumato.load(args.bundle) as system:
        (edit,) = system.generate(args.prompt, seed=1)

    edit.save(args.out)  # a PNG holds the parameters that make it again
    for stage, seconds in edit.timings.items():
        print(f"{stage:>16}  {seconds['calls']:3d} x {1e3 * seconds['mean']:8.2f} ms")


if __name__ == "__main__":
    main()
