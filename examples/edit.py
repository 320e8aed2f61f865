"""A picture led towards a prompt (img2img): ``python edit.py BUNDLE PICTURE PROMPT OUT``."""

from __future__ import annotations

import argparse

import sfumato


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("prompt")
    parser.add_argument("out")
    args = parser.parse_args()

    with sfumato.load(args.bundle) as system:
        # strength: how far along the noise the picture is carried before it is led back, 0 to 1
        (edit,) = system.edit(args.picture, args.prompt, strength=0.6, seed=1)

    edit.save(args.out)


if __name__ == "__main__":
    main()
