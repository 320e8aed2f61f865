"""A part of a picture made anew: ``python inpaint.py BUNDLE PICTURE MASK PROMPT OUT``; the mask is white there."""

from __future__ import annotations

import argparse

import sfumato


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("mask")
    parser.add_argument("prompt")
    parser.add_argument("out")
    args = parser.parse_args()

    with sfumato.load(args.bundle) as system:
        (edit,) = system.inpaint(args.picture, args.mask, args.prompt, seed=1)

    edit.save(args.out)


if __name__ == "__main__":
    main()
