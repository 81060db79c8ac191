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
from nngp_dag.architecture.named import Given, named, named_networks
from nngp_dag.errors import GraphError, InputError, as_path, check_callable, shown
from nngp_dag.graph import Dag, Dense, Op
from nngp_dag.graph.operations import as_number, check_flag, check_whole
from nngp_dag.kernels import Kernel, kernel
from nngp_dag.kernels.inputs import host_array
from nngp_dag.nets import DagNet, chosen_seeds, descend, descend_from
from nngp_dag.report.compare_files import CompareDirectory
from nngp_dag.report.comparison import Comparison, Comparisons, lower_end
from nngp_dag.storage import check_config, check_exclusive, environment
from nngp_dag.theory import (
    Bracket,
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
from nngp_dag.tracing import Traced
from nngp_dag.tracing._finite import check_centered, readout_kernel, trainable
from nngp_dag.width import WidthEffects, width_effects
from nngp_dag.width.sampling import Training, noise_of_readouts

LearningRate = float | str
Progress = Callable[[str, int, int], None]

# From this width on, losses at finite width are predicted by default. Networks of smaller widths cost as little to
# train as those that the prediction is made from.
_WORTH_PREDICTING = 256


def compare(
    networks: Given | Iterable[Given] | Mapping[str, Given],
    x: ArrayLike,
    y: ArrayLike,
    *,
    seeds: SupportsIndex | Sequence[int] = 5,
    steps: int = 100,
    learning_rate: LearningRate = "auto",
    predict_width: bool | None = None,
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

    A model that `nngp_dag.trace` has read takes the place of a network. Each seed then draws and trains the model
    itself, in its own parameterization and at its own width. A factory, an `init` and a linen module draw it; the
    parameters of a module that was given with its numbers are drawn from their distributions. K(H) is the part of the
    NTK that the readout's weights contribute. With it, too, the rate bound is that of a part of the NTK, and whether it
    holds is checked by the same condition. What needs a graph is left empty for models that are no `Network`.

    Args:
      networks: One network, several, or several by name. Each is a `Network`, or its graph as a `Dag`, or as a code,
        name or cell that `Dag.parse` reads; or a traced model. Networks without names are named by their texts, and
        models by their names. Networks are fully connected, with one input and one output. Outputs of models are
        Gaussian with mean 0 at initialization, as after a matrix product.
      x: Inputs, (N, d) with N >= 2. Traced models take inputs of their own shape, (N, ...), which are made flat for
        networks beside them.
      y: Targets, (N, C) or (N,); `nngp_dag.data.one_hot` turns labels into targets.
      seeds: A number S, for the seeds 0 to S - 1, or the seeds themselves. Each seed trains one network.
      steps: Number of steps of gradient descent.
      learning_rate: Learning rate eta on L. "auto" takes 1 / lambda_max(NTK) of each network, and "shared" takes the
        smallest of these for all networks.
      predict_width: Whether to predict the mean loss at the network's width from smaller networks, by `width_effects`.
        None does so for widths of at least 256, where it can. For True, an error is raised where it cannot.
      out: Folder for compare.json, curves.csv and compare.png; None writes nothing. Its folder `dags` keeps finished
        networks until all are done.
      resume: Whether to resume the comparison in `out`, which must have the same arguments, device and versions. The
        results equal those of an uninterrupted comparison.
      overwrite: Whether to replace the comparison in `out`. A folder that holds other files is refused.
      config: Entries to add to the configuration in compare.json, of JSON's types. The entry "dataset" names the data
        in the plot.
      on_progress: Function that is called with (name of the stage, steps done, steps in all).
      **architecture: Options of all networks, see `nngp_dag.kernel`: `width`, `order`, `parameterization`, ... Traced
        models keep their own; `traced.with_options` changes them.

    Returns:
      A list, `Comparisons`, with one `Comparison` for each network, in the given order.

    Raises:
      GraphError: A text does not describe a graph, or a graph has several inputs or outputs.
      InputError: There are fewer than 2 inputs, or all are 0. Networks are equal, have equal names, have convolutions
        or lack a readout. Inputs or targets do not fit a traced model, or its parameters cannot be drawn again.
        Training diverges at the learning rate, or another argument is out of range.
      ModelError: The NTK of a traced model has no limit, or its outputs are not Gaussian with mean 0.
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
    given = _named(networks, architecture)
    models = {name: one for name, one in given.items() if isinstance(one, Traced)}
    x = _inputs(x, models)
    y = np.asarray(check_targets("y", y, len(x)))
    for name, model in models.items():
        _check_model(name, model, x, y)
    steps = check_whole("steps", steps, 1)
    chosen = chosen_seeds(seeds)
    learning_rate = _rate(learning_rate)
    resume, overwrite = check_flag("resume", resume), check_flag("overwrite", overwrite)
    folder = None if out is None else as_path("out", out)
    predict_width = predict_width if predict_width is None else check_flag("predict_width", predict_width)
    check_config(config)
    check_callable("on_progress", on_progress)
    check_exclusive(resume, overwrite)
    if resume and folder is None:
        raise InputError("Expected `out` to name the comparison to resume, got None; pass its folder")
    report = on_progress or (lambda task, done, total: None)

    settings = {
        **(config or {}),
        "dags": {name: "" if network.dag is None else str(network.dag) for name, network in given.items()},
        "networks": {
            name: network.description() if isinstance(network, Traced) else to_document(network)
            for name, network in given.items()
        },
        "seeds": chosen,
        "steps": steps,
        "learning_rate": learning_rate,
        "predict_width": predict_width,
        **environment(),
    }
    directory = None if folder is None else CompareDirectory(folder, settings["dags"])
    with contextlib.ExitStack() as stack:
        found: dict[str, Comparison] = {}
        if directory is not None:
            digests = {name: hashlib.sha256(a.tobytes()).hexdigest() for name, a in (("x", x), ("y", y))}
            opened = directory.opened({**settings, "sha256": digests}, resume=resume, overwrite=overwrite)
            kept = stack.enter_context(opened)
            found = {name: Comparison(network=given[name], **fields) for name, fields in kept.items()}
        for result in _compared(given, found, x, y, chosen, steps, learning_rate, predict_width, report):
            found[result.name] = result
            if directory is not None:
                directory.add(result)
        results = Comparisons(found[name] for name in given)
        if directory is not None:
            widths = ", ".join(map(str, dict.fromkeys(filter(None, map(_width, given.values())))))
            trained = f"{len(chosen)} network{'s' if len(chosen) > 1 else ''}{' of width ' * bool(widths)}{widths}"
            what = f"{len(x)} inputs" + (f" of {settings['dataset']}" if "dataset" in settings else "")
            directory.finish(results, settings, f"{what}: bound, exact expectation, and {trained}")
    return results


def _width(network: Network | Traced) -> int | None:
    return network.model.width if isinstance(network, Traced) else network.width


def _compared(
    networks: Mapping[str, Network | Traced],
    found: Mapping[str, Comparison],
    x: np.ndarray,
    y: Float[np.ndarray, "n c"],
    seeds: list[int],
    steps: int,
    learning_rate: LearningRate,
    predict_width: bool | None,
    report: Progress,
) -> Iterator[Comparison]:
    """Yields the comparisons of the networks that are not in `found`."""
    left = {name: network for name, network in networks.items() if name not in found}
    hidden: dict[str, Any] = {}
    outputs: dict[str, Kernel] = {}
    spectra = {name: (result.nngp, result.ntk) for name, result in found.items()}
    for i, (name, network) in enumerate(left.items()):
        report("kernels", i, len(left))
        inputs = _inputs_of(network, x)
        if isinstance(network, Traced):
            hidden[name] = readout_kernel(network, inputs)
        else:
            # The NNGP is the same in every parameterization, and `lambda_min_bracket` takes only this one.
            hidden[name] = kernel(network, inputs, readout=False, parameterization="ntk").nngp
        outputs[name] = kernel(network, inputs, dtype="float64")
        spectra[name] = spectrum(hidden[name]), spectrum(outputs[name].ntk)
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
        eta, inputs = rates[name], _inputs_of(network, x)
        report(f"training {name}", 0, steps)
        curves = _trained(
            network,
            inputs if inputs.dtype.kind in "iub" else inputs.astype(np.float32),
            y.astype(np.float32),
            {"optimizer": optax.sgd(eta), "steps": steps},
            seeds,
            lambda done, total, name=name: report(f"training {name}", done, total),
        )
        report("bounds and expectations", i - 1, len(left))
        nngp_bracket, ntk_bracket = _brackets(network, inputs, hidden[name], outputs[name])
        report("bounds and expectations", i, len(left))
        effects, reason = _predicted(network, inputs, y, steps, eta, predict_width, report)
        noise = None
        if effects is not None and isinstance(network, Network):
            exact = np.asarray(outputs[name].ntk, np.float64)
            training = Training(network, inputs.astype(np.float32), y, exact, eta, steps)
            noise = noise_of_readouts(training, network.width, seeds)
        yield Comparison(
            name=name,
            network=network,
            nngp=nngp,
            ntk=ntk,
            nngp_bracket=nngp_bracket,
            ntk_bracket=ntk_bracket,
            **_path_bounds(network, inputs),
            learning_rate=eta,
            conditions_met=rate_bound_holds_for(lower_end(nngp), lower_end(ntk), ntk.lambda_max, eta),
            bound=rate_bound(lower_end(nngp), eta, steps, float(curves[:, 0].mean())),
            expected=loss_curve(outputs[name], y, eta, steps),
            curves=curves,
            width_effects=effects,
            unpredicted=reason,
            readout_noise=noise,
        )


def _inputs_of(network: Network | Traced, x: np.ndarray) -> np.ndarray:
    """Returns the inputs as a network takes them: flat, or as a traced model does."""
    return network.read_inputs("x", x) if isinstance(network, Traced) else x.astype(np.float64).reshape(len(x), -1)


def _trained(
    network: Network | Traced,
    x: np.ndarray,
    y: np.ndarray,
    options: Mapping[str, Any],
    seeds: list[int],
    report: Callable[[int, int], None],
) -> Float[np.ndarray, "seeds steps"]:
    """Returns the losses of finite networks before the first step and after each one, in float64."""
    if isinstance(network, Network):
        create = lambda rngs: DagNet(network, x.shape[1], y.shape[1], rngs=rngs)  # noqa: E731
        return descend(create, x, y, **options, seeds=seeds, on_progress=report).curve.astype(np.float64)
    curves = np.empty((len(seeds), options["steps"] + 1))
    for group in trainable(network, seeds, x):
        of_group = [seeds[place] for place in group.places]
        run = descend_from(group.apply, group.params, x, y, **options, seeds=of_group, on_progress=report)
        curves[group.places] = run.curve
    return curves


def _predicted(
    network: Network | Traced,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    eta: float,
    wanted: bool | None,
    report: Progress,
) -> tuple[WidthEffects | None, str]:
    """Returns the prediction at the network's width, or None with the reason."""
    width = _width(network)
    if wanted is False or (wanted is None and width is not None and width < _WORTH_PREDICTING):
        return None, ""
    known = network if isinstance(network, Network) else network.network
    try:
        if known is None or width is None:
            lacks = "a graph" if known is None else "layers of one width"
            why = f" ({network.reason})" if isinstance(network, Traced) and known is None else ""
            raise InputError(f"Expected models with {lacks}, got one without{why}; leave `predict_width` out")
        known, flat = dataclasses.replace(known, width=width), x.reshape(len(x), -1)
        return width_effects(known, flat, y, steps=steps, learning_rate=eta, on_progress=report), ""
    except InputError as error:
        if wanted:
            raise
        return None, str(error)


def _brackets(network: Network | Traced, x: np.ndarray, hidden: Any, output: Kernel) -> tuple[Bracket, Bracket]:
    """Returns brackets on lambda_min of K(H) and of the NTK, with a lower end of 0 where no theorem is known."""
    nngp, ntk = Bracket(0.0, principal_minor_bound(hidden)), Bracket(0.0, principal_minor_bound(output.ntk))
    if isinstance(network, Network):
        with contextlib.suppress(InputError):
            nngp = lambda_min_bracket(dataclasses.replace(network, readout=False, parameterization="ntk"), x).nngp
    if (known := network if isinstance(network, Network) else network.network) is not None:
        with contextlib.suppress(InputError):
            ntk = lambda_min_bracket(known, x.reshape(len(x), -1)).ntk
    return nngp, ntk


def _path_bounds(network: Network | Traced, x: np.ndarray) -> dict[str, PathBound | None]:
    """Returns the published path formulas, or None for networks that they do not describe."""
    if isinstance(network, Traced):
        return {"path_bound": None, "ntk_path_bound": None}
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


def _named(
    networks: Given | Iterable[Given] | Mapping[str, Given], architecture: Architecture
) -> dict[str, Network | Traced]:
    given = named(networks)
    models = {name: one for name, _, one in given if isinstance(one, Traced)}
    if given and all(isinstance(one, Traced) for _, _, one in given):
        if architecture:
            raise InputError(
                f"Expected no options of networks beside traced models alone, got `{next(iter(architecture))}`; "
                "`traced.with_options` changes their own"
            )
        found: dict[str, Any] = models
    else:
        plain = {name: one for name, _, one in given if name not in models}
        read = named_networks(networks if not models else plain, architecture, compare)
        found = {name: models[name] if name in models else read[name] for name, _, _ in given}
    if len(found) < len(given):
        names = ", ".join(name for name, _, _ in given)
        raise InputError(f"Expected networks whose texts differ, got {names}; pass {{name: network}}")
    if len({*found.values()}) < len(found):
        raise InputError(f"Expected distinct networks, got {', '.join(found)}; pass every network once")
    for name, network in found.items():
        if isinstance(network, Network):
            _check_network(name, network)
        else:
            check_centered(network)
    return found


def _check_model(name: str, model: Traced, x: np.ndarray, y: np.ndarray) -> None:
    """Raises an error for inputs or targets that do not fit a traced model."""
    model.read_inputs("x", x)
    if model.units != y.shape[1]:
        raise InputError(
            f"Expected `y` with {model.units} column{'s' if model.units > 1 else ''}, the outputs of the model {name}, "
            f"got {y.shape[1]}"
        )


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


def _inputs(x: ArrayLike, models: Mapping[str, Traced]) -> np.ndarray:
    """Returns the inputs in float64, checked for shape and content; whole numbers for models that take them."""
    array = host_array("x", x)
    if not any(model.discrete for model in models.values()):
        array = array.astype(np.float64)
    if (array.ndim != 2 and not models) or array.ndim < 2 or not array.size:
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
