"""Compares the numbers of two versions of the package: kernels, spectra, brackets, curves, posteriors.

    PYTHONPATH=OLD python benchmarks/same_numbers.py write old.npz
    PYTHONPATH=NEW python benchmarks/same_numbers.py write new.npz
    python benchmarks/same_numbers.py compare old.npz new.npz

The exit status is 1 if a float64 number differs by more than 1e-13, or a float32 number by more than 1e-6. Differences
are relative to the largest number of an array.
"""

import argparse
import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

import nngp_dag as nd

CODES = ("2", "2_21_112", "1_01_222")
ACTIVATIONS = (
    *("relu", "leaky_relu", "abs", "erf", "gelu", "sin", "cos", "rbf", "gaussian", "sign", "tanh", "softplus"),
    nd.activations.Sin(1.3, 0.7, 0.3),
    nd.activations.Polynomial((0.1, 0.5, 0.2)),
    nd.activations.RectifiedMonomial(2),
    nd.activations.Erf(0.5, 2.0, 0.3),
    nd.activations.Gaussian(2.0, -0.3),
)
SETTINGS = {"aggregation": ("sum", "mean", "scaled-sum"), "order": ("linear-act", "act-linear"), "b_std": (None, 0.1)}
LIMITS = {"float64": 1e-13, "float32": 1e-6}


def numbers() -> Iterator[tuple[str, Any]]:
    """Yields (name, array) of all numbers that are compared."""
    rng = np.random.default_rng(0)
    x, z, images = rng.normal(size=(6, 8)), rng.normal(size=(4, 8)), rng.normal(size=(3, 5, 5, 2))
    y = np.sign(rng.normal(size=(6, 1)))

    def kernels(name: str, *args: Any, **options: Any) -> Iterator[tuple[str, Any]]:
        k = nd.kernel(*args, **options)
        yield f"{name}: nngp", k.nngp
        yield f"{name}: ntk", k.ntk

    for code, activation in itertools.product(CODES, ACTIVATIONS):
        yield from kernels(f"{code}, {activation}", code, x / 2, activation=activation, b_std=0.3)
    for activation in ACTIVATIONS:
        yield from kernels(f"ladder, {activation}", nd.zoo.ladder(9), x / 2, activation=activation, w_std=1.1)
    for chosen in itertools.product(*SETTINGS.values(), ("ntk", "standard")):
        options = dict(zip((*SETTINGS, "parameterization"), chosen, strict=True))
        yield from kernels(f"2_21_112, {options}", "2_21_112", x, width=64, **options)
    for readout, parameterization in itertools.product(("flatten", "global-average"), ("ntk", "standard")):
        layer = nd.Conv(filter_shape=(3, 3), activation="erf", b_std=0.2, order="act-linear")
        options = {"image_readout": readout, "parameterization": parameterization, "width": 32}
        yield from kernels(f"convolutions, {options}", "2_12", images, layer=layer, **options)
    for activation in ("relu", "erf", "leaky_relu", "gelu"):
        yield from kernels(
            f"float32, {activation}", "2_21_112", x.astype("f4"), z.astype("f4"), activation=activation, b_std=0.1
        )
    k, between, test = nd.kernel("2_21_112", x), nd.kernel("2_21_112", z, x), nd.kernel("2_21_112", z)
    yield "eigenvalues", [nd.spectrum(k.ntk).lambda_min, nd.spectrum(k.ntk).lambda_max]
    yield "brackets", [[b.lower, b.upper] for b in nd.lambda_min_bracket("2_21_112", x)]
    yield "loss", nd.expected_loss(k, y, learning_rate=0.01, steps=20)
    for kind in ("nngp", "ntk"):
        found = nd.posterior(k, between, test, y, kind=kind)
        yield f"posterior, {kind}", found.mean
        yield f"covariance, {kind}", found.covariance


def compare(old: str, new: str) -> None:
    """Prints the largest differences, and raises `SystemExit` if one is too large or a number is missing."""
    before, after = np.load(old), np.load(new)
    if missing := set(before.files) ^ set(after.files):
        raise SystemExit(f"Expected the same numbers in both files, got others: {sorted(missing)[:5]}")
    rows = []
    for name in before.files:
        one, other = before[name], after[name]
        gap = float(np.abs(one.astype(float) - other).max() / (np.abs(one).max() or 1))
        rows.append((gap / LIMITS[str(one.dtype)], gap, name, bool((one == other).all())))
    rows.sort(reverse=True)
    for _, gap, name, _ in rows[:10]:
        print(f"{gap:8.1e}  {name}")
    print(f"{len(rows)} arrays, {sum(row[-1] for row in rows)} equal to the bit")
    raise SystemExit(int(rows[0][0] > 1))


def main() -> None:
    """Writes or compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["write", "compare"], help="write the numbers of a version, or compare two")
    parser.add_argument("files", nargs="+", help="the .npz file to write, or the two to compare")
    options = parser.parse_args()
    if options.what == "compare":
        compare(*options.files)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arrays: dict[str, Any] = {name: np.asarray(value) for name, value in numbers()}
    np.savez(options.files[0], **arrays)


if __name__ == "__main__":
    main()
