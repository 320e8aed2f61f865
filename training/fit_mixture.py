"""Fitting the Gaussian mixture that cold generation starts from, by scikit-learn; stored as arrays.

Full covariances over the means of pictures' channels (``--side 1``) or over thumbnails of some pixels, as in section 5
of the paper. The file has the arrays of `runtime.cold_generation.GaussianMixture`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import cast

import numpy as np

from ..engines.binding import Array
from ..errors import MissingDependency
from ..runtime.cold_generation import GaussianMixture
from ..runtime.degradations.resolution import resample_matrix
from . import command
from .pictures import EmojiPictures, FolderPictures, Pictures

__all__ = ["fit", "thumbnails", "write"]

log = logging.getLogger(__name__)


def thumbnails(pictures: Array, side: int) -> Array:
    """Means of areas, float32 (N, C side side) of pictures (N, C, H, W); `side` 1 gives the means of channels."""
    rows, columns = (resample_matrix(n, side, "area").astype(np.float32) for n in pictures.shape[2:])
    return np.asarray((rows @ pictures @ columns.T).reshape(len(pictures), -1))


def fit(features: Array, clusters: int = 1, *, regularisation: float = 1e-4, seed: int = 0) -> GaussianMixture:
    """The mixture of `clusters` Gaussians with full covariances of features (N, D).

    Arguments:
        features: What `thumbnails` gives.
        clusters: K; the original's default is 10, its published commands have 1.
        regularisation: Added to the covariances' diagonals.
        seed: Of the first guess.

    Raises:
        MissingDependency: scikit-learn is not installed.
    """
    try:
        from sklearn.mixture import GaussianMixture as Fitted
    except ImportError as error:
        raise MissingDependency("sklearn", "train", "fitting a mixture") from error
    found = Fitted(clusters, covariance_type="full", tol=1e-3, reg_covar=regularisation, random_state=seed)
    found.fit(features.astype(np.float64))
    weights, means, covariances = (
        cast(Array, np.asarray(a, dtype=np.float64)) for a in (found.weights_, found.means_, found.covariances_)
    )
    return GaussianMixture(weights, means, covariances)


def write(mixture: GaussianMixture, path: Path) -> None:
    """Write the safetensors file that ``sfumato export cold-diffusion --mixture`` takes."""
    from safetensors.numpy import save

    arrays = {"weights": mixture.weights, "means": mixture.means, "covariances": mixture.covariances}
    path.write_bytes(save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def main(argv: list[str] | None = None) -> None:
    """``python -m sfumato.training.fit_mixture --data FOLDER --out mixture.safetensors``."""
    parser = command.parser(__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of npm's node_modules, or of pictures")
    parser.add_argument("--pictures", choices=("emoji", "folder"), default="emoji", help="what --data holds")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--size", type=int, default=64, help="side of the pictures in pixels")
    parser.add_argument("--side", type=int, default=1, help="side of the thumbnails, 1 for means")
    parser.add_argument("--clusters", type=int, default=1, help="Gaussians to fit")
    parser.add_argument("--count", type=int, default=5000, help="augmented pictures to fit")
    parser.add_argument("--seed", type=int, default=0, help="of the pictures and the first guess")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    command.outputs(args.out)
    source: Pictures = (EmojiPictures if args.pictures == "emoji" else FolderPictures)(args.data, args.size)
    drawn = source.draw(args.count, np.random.default_rng(args.seed))
    mixture = fit(thumbnails(drawn, args.side), args.clusters, seed=args.seed)
    write(mixture, args.out)
    log.info("%d Gaussians of %d numbers, weights %s", *mixture.means.shape, np.round(mixture.weights, 3).tolist())


if __name__ == "__main__":
    raise SystemExit(command.run(main))
