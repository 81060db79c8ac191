"""`compare`: rate bound, exact expectation and measured training of several networks on one data set."""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex, Unpack

import numpy as np
import optax
from jaxtyping import ArrayLike, Float

from nngp_dag.architecture import Architecture, Network
from nngp_dag.architecture.document import to_document
from nngp_dag.architecture.named import Given, named_networks
from nngp_dag.errors import GraphError, InputError, as_path, check_callable, shown
from nngp_dag.graph import Dag, Dense, Op
from nngp_dag.graph.operations import as_number, check_flag, check_whole
from nngp_dag.kernels import Kernel, kernel
from nngp_dag.kernels.inputs import host_array
from nngp_dag.nets import DagNet, chosen_seeds, descend
from nngp_dag.report.compare_files import CompareDirectory
from nngp_dag.report.comparison import Comparison, Comparisons, lower_end
from nngp_dag.storage import check_config, check_exclusive, environment
from nngp_dag.theory import (
    Bracket,
    Brackets,
    PathBound,
    Spectrum,
    lambda_min_bracket,
    loss_curve,
    ntk_path_bound,
    path_bound,
    principal_minor_bound,
    rate_bound,
    rate_bound_holds_for,
    spectrum,
)
from nngp_dag.theory.symmetric import check_targets

LearningRate = float | str
Progress = Callable[[str, int, int], None]


def compare(
    networks: Given | Iterable[Given] | Mapping[str, Given],
    x: ArrayLike,
    y: ArrayLike,
    *,
    seeds: SupportsIndex | Sequence[int] = 5,
    steps: int = 100,
    learning_rate: LearningRate = "auto",
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    config: Mapping[str, Any] | None = None,
    on_progress: Progress | None = None,
    **architecture: Unpack[Architecture],
) -> Comparisons:
    """Compares bounds, exact expectation and measurement of full-batch gradient descent.

    Networks train in float32 on L = 0.5 ||y - f||^2, summed over samples and output columns. Kernels, spectra and
    expectations are computed in float64. Memory holds a few N x N matrices per network.

    Args:
      networks: One network, several, or several by name. Each is a `Network`, or its graph as a `Dag`, or as a code,
        name or cell that `Dag.parse` reads. Networks without names are named by their texts. All are fully connected,
        with one input and one output.
      x: Inputs, (N, d) with N >= 2.
      y: Targets, (N, C) or (N,); `nngp_dag.data.one_hot` turns labels into targets.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves. Each seed trains one network.
      steps: Number of steps of gradient descent.
      learning_rate: Learning rate eta on L. "auto" takes 1 / lambda_max(NTK) of each network, and "shared" takes the
        smallest of these for all networks.
      out: Folder for compare.json, curves.csv and compare.png; None writes nothing. Its folder `dags` keeps finished
        networks until all are done.
      resume: Whether to resume the comparison in `out`, which must have the same arguments, device and versions. The
        results equal those of an uninterrupted comparison.
      overwrite: Whether to replace the comparison in `out`. A folder that holds other files is refused.
      config: Entries to add to the configuration in compare.json, of JSON's types. The entry "dataset" names the data
        in the plot.
      on_progress: Function that is called with (name of the stage, steps done, steps in all).
      **architecture: Options of all networks, see `nngp_dag.kernel`: `width`, `order`, `parameterization`, ...

    Returns:
      A list, `Comparisons`, with one `Comparison` for each network, in the given order.

    Raises:
      GraphError: A text does not describe a graph, or a graph has several inputs or outputs.
      InputError: There are fewer than 2 inputs, or all are 0. Networks are equal, have equal names, have convolutions
        or lack a readout. Training diverges at the learning rate, or another argument is out of range.
      OutputError: `out` is not free, or cannot be written.
      CheckpointError: There is nothing to resume, or `out` holds another comparison.

    Examples:
      >>> import numpy as np, nngp_dag as nd
      >>> x = np.random.default_rng(0).normal(size=(4, 6))
      >>> chain, mixed = nd.compare(["2_02", "DAG#3"], x, np.eye(4), width=32, seeds=2, steps=3)
      >>> mixed.name, mixed.curves.shape, chain.learning_rate > mixed.learning_rate
      ('DAG#3', (2, 4), True)

    Reference: Chen et al., NeurIPS 2022, Section 3.3 (rate bound); Equations (16) to (18) of docs/mathematics.md.
    """
    named = _named(networks, architecture)
    x = _inputs(x)
    y = np.asarray(check_targets("y", y, len(x)))
    steps = check_whole("steps", steps, 1)
    chosen = chosen_seeds(seeds)
    learning_rate = _rate(learning_rate)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    folder = None if out is None else as_path("out", out)
    check_config(config)
    check_callable("on_progress", on_progress)
    check_exclusive(resume, overwrite)
    if resume and folder is None:
        raise InputError("Expected `out` to name the comparison to resume, got None; pass its folder")
    report = on_progress or (lambda task, done, total: None)

    settings = {
        **(config or {}),
        "dags": {name: str(network.dag) for name, network in named.items()},
        "networks": {name: to_document(network) for name, network in named.items()},
        "seeds": chosen,
        "steps": steps,
        "learning_rate": learning_rate,
        **environment(),
    }
    directory = None if folder is None else CompareDirectory(folder, settings["dags"])
    with contextlib.ExitStack() as stack:
        found: dict[str, Comparison] = {}
        if directory is not None:
            digests = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in (("x", x), ("y", y))}
            opened = directory.opened({**settings, "sha256": digests}, resume=resume, overwrite=overwrite)
            kept = stack.enter_context(opened)
            found = {name: Comparison(network=named[name], **fields) for name, fields in kept.items()}
        for result in _compared(named, found, x, y, chosen, steps, learning_rate, report):
            found[result.name] = result
            if directory is not None:
                directory.add(result)
        results = Comparisons(found[name] for name in named)
        if directory is not None:
            widths = ", ".join(map(str, dict.fromkeys(network.width for network in named.values())))
            trained = f"{len(chosen)} network{'s' if len(chosen) > 1 else ''} of width {widths}"
            what = f"{len(x)} inputs" + (f" of {settings['dataset']}" if "dataset" in settings else "")
            directory.finish(results, settings, f"{what}: bound, exact expectation, and {trained}")
    return results


def _compared(
    networks: Mapping[str, Network],
    found: Mapping[str, Comparison],
    x: Float[np.ndarray, "n d"],
    y: Float[np.ndarray, "n c"],
    seeds: list[int],
    steps: int,
    learning_rate: LearningRate,
    report: Progress,
) -> Iterator[Comparison]:
    """Yields the comparisons of the networks that are not in `found`."""
    left = {name: network for name, network in networks.items() if name not in found}
    nodes: dict[str, Kernel] = {}
    outputs: dict[str, Kernel] = {}
    spectra = {name: (result.nngp, result.ntk) for name, result in found.items()}
    for i, (name, network) in enumerate(left.items()):
        report("kernels", i, len(left))
        # The NNGP is the same in every parameterization, and `lambda_min_bracket` takes only this one.
        nodes[name] = kernel(network, x, readout=False, parameterization="ntk")
        outputs[name] = kernel(network, x)
        spectra[name] = spectrum(nodes[name].nngp), spectrum(outputs[name].ntk)
    report("kernels", len(left), len(left))
    rates = learning_rates({name: ntk for name, (_, ntk) in spectra.items()}, learning_rate)
    for name, eta in rates.items():
        limit = 2 / spectra[name][1].lambda_max
        if eta >= limit:
            raise InputError(
                f"Expected `learning_rate` between 0 and 2 / lambda_max(NTK) = {limit:.4g} of {name}, got {eta}; "
                "gradient descent diverges beyond"
            )

    for i, (name, network) in enumerate(left.items(), start=1):
        nngp, ntk = spectra[name]
        eta = rates[name]
        report(f"training {name}", 0, steps)
        run = descend(
            lambda rngs, network=network: DagNet(network, x.shape[1], y.shape[1], rngs=rngs),
            x.astype(np.float32),
            y.astype(np.float32),
            optimizer=optax.sgd(eta),
            steps=steps,
            seeds=seeds,
            on_progress=lambda done, total, name=name: report(f"training {name}", done, total),
        )
        curves = run.curve.astype(np.float64)
        report("bounds and expectations", i - 1, len(left))
        yield Comparison(
            name=name,
            network=network,
            nngp=nngp,
            ntk=ntk,
            nngp_bracket=_bracket(nodes[name], x).nngp,
            ntk_bracket=_bracket(outputs[name], x).ntk,
            **_path_bounds(network, x),
            learning_rate=eta,
            conditions_met=rate_bound_holds_for(lower_end(nngp), lower_end(ntk), ntk.lambda_max, eta),
            bound=rate_bound(lower_end(nngp), eta, steps, float(curves[:, 0].mean())),
            expected=loss_curve(outputs[name], y, eta, steps),
            curves=curves,
        )
        report("bounds and expectations", i, len(left))


def _bracket(k: Kernel, x: Float[np.ndarray, "n d"]) -> Brackets:
    """Returns brackets on lambda_min of NNGP and NTK, with a lower end of 0 where no theorem is known."""
    assert k.network is not None
    try:
        return lambda_min_bracket(k.network, x)
    except InputError:
        return Brackets(*(Bracket(0.0, principal_minor_bound(v)) for v in (k.nngp, k.ntk)))


def _path_bounds(network: Network, x: Float[np.ndarray, "n d"]) -> dict[str, PathBound | None]:
    """Returns the published path formulas, or None for networks that they do not describe."""
    layer = Dense(order=network.layer.order)
    codes = all(isinstance(edge.op, Op) for edge in network.dag.live_edges)
    if not codes or network != dataclasses.replace(network, layer=layer, stem=None, aggregation="sum"):
        return {"path_bound": None, "ntk_path_bound": None}
    stem = kernel(dataclasses.replace(network, dag=Dag.from_code("1"), parameterization="ntk", readout=False), x)
    in_ntk = network.parameterization == "ntk"
    return {
        "path_bound": path_bound(network.dag, stem.nngp, order=layer.order),
        "ntk_path_bound": ntk_path_bound(network.dag, stem, order=layer.order) if in_ntk else None,
    }


def learning_rates(spectra: Mapping[str, Spectrum], learning_rate: LearningRate) -> dict[str, float]:
    """Returns the learning rate of every network.

    Args:
      spectra: Spectrum of the NTK of every network.
      learning_rate: "auto" for 1 / lambda_max(NTK) of each network, "shared" for the smallest of these, or a number.

    Raises:
      InputError: An NTK is 0.
    """
    if zero := [name for name, s in spectra.items() if s.lambda_max == 0]:
        raise InputError(
            f"Expected lambda_max(NTK) of {zero[0]} above 0, got 0, at which nothing trains; rescale the inputs"
        )
    if learning_rate == "auto":
        return {name: 1 / s.lambda_max for name, s in spectra.items()}
    if learning_rate == "shared":
        return dict.fromkeys(spectra, min(1 / s.lambda_max for s in spectra.values()))
    return dict.fromkeys(spectra, float(learning_rate))


def _named(networks: Given | Iterable[Given] | Mapping[str, Given], architecture: Architecture) -> dict[str, Network]:
    found = named_networks(networks, architecture, compare)
    if len({*found.values()}) < len(found):
        raise InputError(f"Expected distinct networks, got {', '.join(found)}; pass every network once")
    for name, network in found.items():
        _check_network(name, network)
    return found


def _check_network(name: str, network: Network) -> None:
    """Raises an error for a network that `compare` does not take."""
    inputs, outputs = network.dag.num_inputs, len(network.dag.outputs)
    if inputs > 1 or outputs > 1:
        raise GraphError(
            f"Expected graphs with one input and one output to compare, got {inputs} and {outputs} in {name}"
        )
    if network.image_operations:
        raise InputError(
            "Expected networks without convolutions and pooling to compare, got "
            f"{network.image_operations[0].describe()} in {name}; they can be trained only"
        )
    if not network.readout:
        raise InputError(f"Expected networks with a readout to compare, got {name} without; leave `readout` True")


def _inputs(x: ArrayLike) -> Float[np.ndarray, "n d"]:
    """Returns the inputs in float64, checked for shape and content."""
    array = host_array("x", x).astype(np.float64)
    if array.ndim != 2 or not array.shape[1]:
        raise InputError(
            f"Expected `x` to have shape (N, d), got {array.shape}; flatten images to x.reshape(len(x), -1)"
        )
    if len(array) < 2:
        raise InputError(f"Expected at least 2 inputs to compare, got {len(array)}; take a larger subset")
    if not np.isfinite(array).all():
        raise InputError("Expected `x` to be finite, got NaN or infinity; drop or repair those inputs")
    if not array.any():
        raise InputError("Expected `x` to hold an input that is not 0, got only zeros; check how it was read")
    return array


def _rate(learning_rate: LearningRate) -> LearningRate:
    if isinstance(learning_rate, str):
        if learning_rate not in ("auto", "shared"):
            raise InputError(f"Expected `learning_rate` to be 'auto', 'shared' or a number, got {shown(learning_rate)}")
        return str(learning_rate)
    if (rate := as_number("learning_rate", learning_rate)) <= 0:
        raise InputError(f"Expected `learning_rate` to be finite and above 0, got {shown(learning_rate)}")
    return float(rate)
