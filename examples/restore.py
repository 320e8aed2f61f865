"""A picture degraded and restored, by Cold Diffusion: ``python restore.py BUNDLE PICTURE OUT [SHEET]``."""

from __future__ import annotations

import argparse

import sfumato
from sfumato.runtime import image
from sfumato.runtime.systems.cold_diffusion import ColdDiffusion


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle")
    parser.add_argument("picture")
    parser.add_argument("out")
    parser.add_argument("sheet", nargs="?")
    args = parser.parse_args()

    with sfumato.load(args.bundle) as system:
        if not isinstance(system, ColdDiffusion):
            raise SystemExit(f"{args.bundle} restores nothing, it can {', '.join(system.verbs)}")
        # severity: how many steps of degradation, at most (and by default) system.settings.degradation.steps
        (made,) = system.restore(args.picture, algorithm=2)

    made.save(args.out)
    for name, found in made.quality.items():
        decibels = "equal" if found["psnr"] is None else f"{found['psnr']:.2f} dB"
        print(f"{name:10} {decibels}")
    if args.sheet is not None:
        image.write(args.sheet, made.sheet())


if __name__ == "__main__":
    main()
