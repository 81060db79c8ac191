"""Claim: on CPU a training step takes less time than PyTorch's, and a short run of eight seeds less than eight runs.

The networks are those of Chen et al. at width 1024 (784 inputs, 10 classes, biases), for their three DAGs. They train
by plain SGD on the cross entropy of batches of 128. Both sides get the same images and weights in one run. First each
has one thread, pinned to one core where the system allows it; then both have all cores. They take turns, each in a
process of its own. Before any timing, the benchmark checks that both sides have the same loss and, after one step, the
same parameters, to 1e-5. It also checks that seed 0 trains in the same way alone and among eight seeds.

- ours: the time of an epoch of `nngp_dag.training.program.Program`, divided by the number of its steps. It includes
  shuffling, metrics and the choice of the best state, and the evaluation on parts of 16 examples.
- PyTorch bare: the time of shuffle, gather, forward pass, backward pass and `SGD.step`, without metrics.
- PyTorch loader: the time of a loop as in the published trainer, with `DataLoader`, `loss.item()` and the accuracy of
  every class on every batch. It reads a `TensorDataset` in its own process, while the published trainer decodes and
  normalizes images one by one.

A product of 2048 x 2048 matrices measures the rate of the cores, and so the shortest possible time of a step. A step
counts as three forward passes, without the gradient of the inputs. Last, `nngp_dag.train` trains eight seeds in one
process, and then in eight processes one after another. These times are those of whole processes, with data,
compilation and evaluation.

PyTorch is not a dependency. The options name the Python of an environment that has it, or a folder for a new one. The
settings of pip, such as PIP_INDEX_URL, choose the build. Without PyTorch, its rows are left out.

    python benchmarks/train_step.py --torch-python PYTHON [--data-dir TFDS] [--out benchmarks/results/train_step.json]
"""

import argparse
import contextlib
import datetime
import importlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

# The child processes run this file too, some of them with a Python that has PyTorch and NumPy only. So JAX, PyTorch,
# rich and the package are imported where they are used.

CODES = ("2_02_002", "1_01_222", "2_21_112")
BATCH, CLASSES, RATE = 128, 10, 1e-5
TOLERANCE = 1e-5
# Learning rate of the check, so large that float32 resolves the change of the weights in one step.
CHECK_RATE = 1.0
# Bound on the speed-up over PyTorch on one thread.
ASKED = 1.8
SIDE = 2048
EVALUATED, EVALUATED_IN_RUNS = 16, 1000
RUN_EPOCHS = 2
# The key of a time: the DAG, the side that trains it, and the number of seeds.
Key = tuple[str, str, int]
OURS, BARE, LOADER = "ours", "PyTorch bare", "PyTorch loader"


def network_of(code: str, width: int) -> Any:
    """Returns the network that both sides train, in the standard parameterization with biases that start at 0."""
    import nngp_dag as nd

    return nd.Network(code, layer=nd.Dense(b_std=0.0), parameterization="standard", width=width)


class Ours:
    """The side of this package."""

    def __init__(self, options: dict[str, Any]):
        """Reads the examples."""
        import jax

        self.folder, self.width = Path(options["folder"]), options["width"]
        with np.load(self.folder / "data.npz") as data:
            self.x, self.labels = data["x"], data["labels"]
        self.programs: dict[tuple[str, int], Any] = {}
        self.states: dict[tuple[str, int], Any] = {}
        self.matrix, self.multiply = jax.random.normal(jax.random.key(0), (SIDE, SIDE)), jax.jit(jax.numpy.matmul)

    def make(self, code: str, examples: int, seeds: int, rate: float = RATE) -> tuple[Any, Any]:
        """Returns the trainer of the first examples, and these examples on the device."""
        from nngp_dag import Recipe
        from nngp_dag.data import Part, Splits
        from nngp_dag.training.program import Program, on_device
        from nngp_dag.training.tasks import DagTask

        evaluated = Part(self.x[:EVALUATED], self.labels[:EVALUATED])
        data = Splits("timing", Part(self.x[:examples], self.labels[:examples]), evaluated, evaluated, CLASSES)
        recipe = Recipe(batch_size=BATCH, learning_rate=rate)
        return Program(DagTask(network_of(code, self.width), recipe, data), seeds), on_device(data)

    def layers(self, code: str) -> Any:
        """Returns the layers with weights: the stem, weighted edges, the readout."""
        from nngp_dag.training import summary_of

        return summary_of(network_of(code, self.width), self.x.shape[1:], CLASSES).layers

    def step_gflop(self, code: str) -> float:
        """Returns the number of floating-point operations of a step, in units of 1e9."""
        stem, *others = (layer.flops for layer in self.layers(code))
        # The gradient of the inputs is not needed, so that the stem counts two passes instead of three.
        return BATCH * (2 * stem + 3 * sum(others)) / 1e9

    def check(self, code: str) -> float:
        """Trains on one batch, writes the parameters before and after the step, and returns the loss."""
        program, data = self.make(code, BATCH, 1, CHECK_RATE)
        state, best = program.draw([0])
        np.savez(self.folder / f"{code}-before.npz", **self.tensors(code, state.params))
        state, _, _, losses = program.run_epoch(state, best, [0], 1, data)
        np.savez(self.folder / f"{code}-after.npz", **self.tensors(code, state.params))
        return losses.item()

    def tensors(self, code: str, params: Any) -> dict[str, Any]:
        """Returns the parameters of the first seed, named and laid out as in `Theirs`."""
        edges = (params["edges"][i] for i in range(len(params["edges"])))
        of_layer = zip(self.layers(code), [params["stems"][0], *edges, params["readouts"][0]], strict=True)
        return {
            f"{layer.name}.{theirs}": np.asarray(values["linear"][ours][...])[0].T
            for layer, values in of_layer
            for ours, theirs in (("kernel", "weight"), ("bias", "bias"))
        }

    def compile(self, code: str, seeds: int) -> None:
        """Compiles the trainer of all examples."""
        self.programs[code, seeds] = self.make(code, len(self.x), seeds)
        self.programs[code, seeds][0].compile()

    def epoch(self, code: str, seeds: int, number: int) -> list[float]:
        """Trains an epoch; returns the losses of seed 0."""
        import jax

        program, data = self.programs[code, seeds]
        state, best = self.states.pop((code, seeds), None) or program.draw(range(seeds))
        state, best, _, losses = program.run_epoch(state, best, range(seeds), number, data)
        self.states[code, seeds] = jax.block_until_ready((state, best))
        return losses[:, 0].tolist()

    def product(self) -> None:
        """Multiplies large matrices."""
        self.multiply(self.matrix, self.matrix).block_until_ready()


class Theirs:
    """The side of PyTorch."""

    def __init__(self, options: dict[str, Any]):
        """Reads the examples."""
        self.torch: Any = importlib.import_module("torch")
        self.torch.set_num_threads(options["threads"])
        self.folder, self.width = Path(options["folder"]), options["width"]
        data = self.read("data")
        self.x, self.labels = self.torch.from_numpy(data["x"]), self.torch.from_numpy(data["labels"])
        self.trained: dict[str, tuple[Any, Any]] = {}
        self.matrix = self.torch.randn(SIDE, SIDE)

    def about(self) -> dict[str, Any]:
        """Returns the facts that the results depend on."""
        blas = re.search(r"BLAS_INFO=(\w+)", self.torch.__config__.show())
        return {"torch": self.torch.__version__, "BLAS of torch": blas.group(1) if blas else None}

    def read(self, name: str) -> dict[str, np.ndarray]:
        """Reads named arrays."""
        with np.load(self.folder / f"{name}.npz") as arrays:
            return dict(arrays)

    def network(self, code: str) -> Any:
        """Builds the network of a code, with the weights that `Ours.check` starts from."""
        torch, width = self.torch, self.width
        blocks = [[int(digit) for digit in block] for block in code.split("_")]
        weighted = [f"{s} -> {t}" for t, block in enumerate(blocks, 1) for s, digit in enumerate(block) if digit == 2]

        class Network(torch.nn.Module):
            def __init__(self, in_features: int):
                super().__init__()
                layers = {name: torch.nn.Linear(width, width) for name in weighted}
                layers |= {"stem": torch.nn.Linear(in_features, width), "readout": torch.nn.Linear(width, CLASSES)}
                self.layers = torch.nn.ModuleDict(layers)
                self.relu = torch.nn.ReLU(inplace=True)

            def forward(self, x: Any) -> Any:
                nodes = [self.relu(self.layers["stem"](x))]
                for t, block in enumerate(blocks, 1):
                    arriving = [
                        nodes[s] if digit == 1 else self.relu(self.layers[f"{s} -> {t}"](nodes[s]))
                        for s, digit in enumerate(block)
                        if digit
                    ]
                    nodes.append(sum(arriving[1:], arriving[0]))
                return self.layers["readout"](nodes[-1])

        network = Network(self.x.shape[1])
        weights = self.read(f"{code}-before").items()
        network.layers.load_state_dict({name: torch.from_numpy(value) for name, value in weights})
        return network

    def check(self, code: str, loss: float) -> dict[str, float]:
        """Takes the same step as `Ours.check`, and returns the relative differences of loss, parameters and step."""
        self.prepare(code, CHECK_RATE)
        network, optimizer = self.trained[code]
        found = self.step(network, optimizer, self.x[:BATCH], self.labels[:BATCH])[0].item()
        before, after = self.read(f"{code}-before"), self.read(f"{code}-after")
        of_parameters, of_step = [], []
        for name, value in network.layers.state_dict().items():
            error = np.abs(value.numpy() - after[name]).max()
            of_parameters.append(float(error / np.abs(after[name]).max()))
            of_step.append(float(error / np.abs(after[name] - before[name]).max()))
        return {"loss": abs(found / loss - 1), "parameters": max(of_parameters), "step": max(of_step)}

    def prepare(self, code: str, rate: float) -> None:
        """Makes a network with the weights that `Ours.check` starts from, and its optimizer."""
        network = self.network(code)
        self.trained[code] = network, self.torch.optim.SGD(network.parameters(), rate)

    def step(self, network: Any, optimizer: Any, x: Any, labels: Any) -> tuple[Any, Any]:
        """Takes a step; returns loss and outputs."""
        outputs = network(x)
        loss = self.torch.nn.functional.cross_entropy(outputs, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, outputs

    def bare(self, code: str) -> None:
        """Trains an epoch without metrics."""
        for batch in self.torch.randperm(len(self.x)).split(BATCH):
            self.step(*self.trained[code], self.x[batch], self.labels[batch])

    def loader(self, code: str) -> None:
        """Trains an epoch with a loader, and with metrics of every batch."""
        torch = self.torch
        dataset = torch.utils.data.TensorDataset(self.x, self.labels)
        total, hits, examples = 0.0, torch.zeros(CLASSES), torch.zeros(CLASSES)
        for x, labels in torch.utils.data.DataLoader(dataset, batch_size=BATCH, shuffle=True):
            loss, outputs = self.step(*self.trained[code], x, labels)
            right = outputs.argmax(dim=1) == labels
            of_class = [labels == label for label in range(CLASSES)]
            hits += torch.tensor([right[chosen].sum() for chosen in of_class])
            examples += torch.tensor([chosen.sum() for chosen in of_class])
            total += loss.item() * len(labels)

    def product(self) -> None:
        """Multiplies large matrices."""
        self.torch.mm(self.matrix, self.matrix)


class Run:
    """One whole run of `nngp_dag.train`."""

    def __init__(self, options: dict[str, Any]):
        """Keeps the arguments of a run."""
        self.options = options

    def train(self, seeds: Sequence[int]) -> list[list[float]]:
        """Loads the data and trains; returns the training losses, (epochs + 1, seeds)."""
        import nngp_dag as nd

        data = load(self.options["data_dir"], self.options["examples"])
        recipe = nd.Recipe(epochs=RUN_EPOCHS, batch_size=BATCH, learning_rate=RATE)
        [trained] = nd.train(network_of(CODES[0], self.options["width"]), data, recipe, seeds=seeds)
        return trained.history.of("train", "loss").tolist()


def load(data_dir: str | None, examples: int) -> Any:
    """Returns images of MNIST as vectors, or points of a sphere without a folder."""
    from nngp_dag.data import Part, Splits, load_dataset, load_splits

    if data_dir is not None:
        whole = load_splits("mnist", subset=examples, data_dir=data_dir)
        parts = whole.train, whole.validation, whole.test
    else:
        points = load_dataset("sphere", subset=examples + EVALUATED_IN_RUNS, dimension=784)
        test = load_dataset("sphere", split="test", subset=EVALUATED_IN_RUNS, dimension=784)
        parts = (
            Part(points.images[:examples], points.labels[:examples]),
            Part(points.images[examples:], points.labels[examples:]),
            Part(test.images, test.labels),
        )
    sizes = examples, EVALUATED_IN_RUNS, EVALUATED_IN_RUNS
    cut = [Part(x[:n].reshape(n, -1), labels[:n]) for (x, labels), n in zip(parts, sizes, strict=True)]
    return Splits("sphere" if data_dir is None else "mnist", *cut, num_classes=CLASSES)


def serve(side: str, options: dict[str, Any]) -> None:
    """Answers calls, one per line, with the result, the seconds and the processor seconds."""
    if options["core"] is not None:
        os.sched_setaffinity(0, {options["core"]})
    methods = {"ours": Ours, "theirs": Theirs, "run": Run}[side](options)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        start, processor = time.perf_counter(), time.process_time()
        value = getattr(methods, name)(*arguments)
        times = time.perf_counter() - start, time.process_time() - processor
        print(json.dumps([value, times]), flush=True)


class Worker(contextlib.AbstractContextManager["Worker"]):
    """A side in a process of its own."""

    def __init__(self, python: str, side: str, options: dict[str, Any]):
        """Starts the process."""
        environment = os.environ | {"JAX_PLATFORMS": "cpu"}
        if options["threads"] == 1:
            flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
            environment["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"
            environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        command, pipe = [python, __file__, "--worker", side, json.dumps(options)], subprocess.PIPE
        self.side, self.process = side, subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)

    def call(self, method: str, *arguments: Any) -> tuple[Any, tuple[float, float]]:
        """Calls a method in the process, and returns its result, seconds and processor seconds."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(json.dumps([method, arguments]), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"the process of {self.side} ended with status {self.process.wait()} in `{method}`")
        return json.loads(line)

    def __exit__(self, *error: object) -> None:
        """Ends the process: after its current work, or at once after an error."""
        if error[0] is not None:
            self.process.kill()
        self.process.communicate()


def find_torch(options: argparse.Namespace) -> tuple[str | None, str | None]:
    """Returns the Python that has PyTorch, or the reason why there is none."""
    python = options.torch_python
    if options.install_torch is not None:
        python = options.install_torch / ("Scripts" if os.name == "nt" else "bin") / "python"
        steps = [
            [sys.executable, "-m", "venv", str(options.install_torch)],
            [str(python), "-m", "pip", "install", "--quiet", "torch", "numpy"],
        ]
        for command in steps:
            if subprocess.run(command).returncode != 0:
                return None, f"PyTorch could not be installed: `python {' '.join(command[1:3])}` failed"
    elif python is None:
        return None, "neither --torch-python nor --install-torch was given"
    try:
        found = subprocess.run([str(python), "-c", "import numpy, torch"], capture_output=True, text=True)
    except OSError as error:
        return None, f"the Python that was named does not start: {error.strerror}"
    if found.returncode != 0:
        return None, f"the Python that was named cannot import PyTorch and NumPy: {found.stderr.splitlines()[-1]}"
    return str(python), None


def check(ours: Worker, theirs: Worker | None) -> dict[str, dict[str, float]]:
    """Compares both sides on one step of every network; returns the differences."""
    found = {}
    for code in CODES:
        loss, _ = ours.call("check", code)
        if theirs is not None:
            found[code], _ = theirs.call("check", code, loss)
            if not max(found[code].values()) <= TOLERANCE:
                raise SystemExit(
                    f"{code}: nothing to time, the two sides differ by more than {TOLERANCE}: {found[code]}"
                )
    return found


def compare(ours: Worker, theirs: Worker | None, options: argparse.Namespace, threads: str) -> dict[str, Any]:
    """Compiles, warms up, and times both sides."""
    settings = [*((code, 1) for code in CODES), (CODES[0], options.seeds)]
    compile_s = {setting: ours.call("compile", *setting)[1][0] for setting in settings}
    losses = {setting: np.asarray(ours.call("epoch", *setting, 1)[0]) for setting in settings}
    alone, among = losses[CODES[0], 1], losses[CODES[0], options.seeds]
    if not np.abs(among / alone - 1).max() <= TOLERANCE:
        raise SystemExit(f"seed 0 trains otherwise among {options.seeds} seeds: losses {alone} and {among}")

    calls: dict[Key, tuple[Worker, str]] = {}
    for code, seeds in settings:
        calls[code, OURS, seeds] = ours, "epoch"
        if theirs is not None and seeds == 1:
            theirs.call("prepare", code, RATE)
            calls |= {(code, BARE, 1): (theirs, "bare"), (code, LOADER, 1): (theirs, "loader")}
    products = {"JAX": ours} | ({} if theirs is None else {"PyTorch": theirs})
    times: dict[Key, list[tuple[float, float]]] = {key: [] for key in calls}
    of_products: dict[str, list[tuple[float, float]]] = {name: [] for name in products}
    # The first round warms up. Our side draws the order of examples from the number of the epoch.
    for number in range(2, options.repeats + 3):
        for (code, who, seeds), (worker, method) in calls.items():
            arguments = (code, seeds, number) if who == OURS else (code,)
            times[code, who, seeds].append(worker.call(method, *arguments)[1])
        for name, worker in products.items():
            of_products[name].append(worker.call("product")[1])

    # The rate of one thread is per processor time, which other processes on the core do not lengthen. The processor
    # time of several threads counts threads that wait, so that their rate is per wall time.
    clock = 1 if threads == "one" else 0
    rates = {name: 2 * SIDE**3 / np.min(pairs[1:], axis=0)[clock] / 1e9 for name, pairs in of_products.items()}
    rows, peak = [], max(rates.values())
    for (code, who, seeds), pairs in times.items():
        seconds, base = np.array(pairs[1:]) / options.steps, np.array(times[code, OURS, 1][1:]) / options.steps
        median, fastest = np.median(seconds, axis=0), np.min(seconds, axis=0)
        ratio, ratio_of_fastest = median / np.median(base, axis=0) / seeds, fastest / np.min(base, axis=0) / seeds
        gflop = seeds * ours.call("step_gflop", code)[0]
        row = {
            "dag": code,
            "who": who,
            "seeds": seeds,
            "median_ms": 1e3 * median[0],
            "min_ms": 1e3 * fastest[0],
            "median_processor_ms": 1e3 * median[1],
            "ratio": ratio[0],
            "ratio_of_min": ratio_of_fastest[0],
            "ratio_of_processor_time": ratio[1],
            "gflop": gflop,
            "gflop_per_s": gflop / fastest[clock],
            "share_of_peak": gflop / fastest[clock] / peak,
            # Upper bound on the ratio: our side at the peak rate of the cores.
            "ratio_at_peak": fastest[clock] * peak / gflop,
        }
        rows.append(row)
    compiled = {f"{code}, seeds: {seeds}": seconds for (code, seeds), seconds in compile_s.items()}
    return {"product_gflop_per_s": rates, "compile_s": compiled, "rows": rows}


def whole_runs(options: dict[str, Any], seeds: int) -> dict[str, Any]:
    """Times runs of all seeds in one process, and of each seed in a process of its own."""

    def run(chosen: list[int]) -> tuple[float, np.ndarray]:
        start = time.perf_counter()
        with Worker(sys.executable, "run", options) as worker:
            losses, _ = worker.call("train", chosen)
        return time.perf_counter() - start, np.asarray(losses)

    # Half of the single runs come before the joint run and half after, so that a drift of the machine favors neither.
    singles = [run([seed]) for seed in range(seeds // 2)]
    together, losses = run(list(range(seeds)))
    singles += [run([seed]) for seed in range(seeds // 2, seeds)]
    difference = np.abs(np.concatenate([single for _, single in singles], axis=1) / losses - 1).max()
    if not difference <= TOLERANCE:
        raise SystemExit(f"losses of {seeds} runs and of the run of {seeds} seeds differ by {difference}")
    alone = [seconds for seconds, _ in singles]
    return {
        "dag": CODES[0],
        "seeds": seeds,
        "steps": RUN_EPOCHS * options["examples"] // BATCH,
        "one_process_s": together,
        "processes_s": alone,
        "ratio": sum(alone) / together,
    }


def show(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    caption = (
        "ms: median, for all seeds; CPU: median processor ms, of all threads; ratios: of these per seed, over ours of "
        "one seed; GFLOP/s: of the fastest repeat, on one thread by processor time; peak: the rate of the faster "
        "product; limit: the ratio if ours ran at the peak"
    )
    what = f"width {result['width']}, batch {BATCH}, {result['data']}, {result['machine']}"
    table = Table(title=f"A training step: {what}", caption=caption)
    for heading in ("threads", "DAG", "who"):
        table.add_column(heading, no_wrap=True)
    for heading in ("seeds", "ms", "min", "CPU", "ratio", "CPU ratio", "GFLOP/s", "of peak", "limit"):
        table.add_column(heading, justify="right", no_wrap=True)
    for threads, part in result["threads"].items():
        for row in part["rows"]:
            milliseconds = (f"{row[name]:.1f}" for name in ("median_ms", "min_ms", "median_processor_ms"))
            ratios = (f"{row[name]:.2f}" for name in ("ratio", "ratio_of_processor_time"))
            rate = f"{row['gflop_per_s']:.0f}", f"{row['share_of_peak']:.0%}"
            at_peak = "" if row["who"] == OURS else f"{row['ratio_at_peak']:.2f}"
            table.add_row(threads, row["dag"], row["who"], str(row["seeds"]), *milliseconds, *ratios, *rate, at_peak)
        for name, rate in part["product_gflop_per_s"].items():
            table.add_row(threads, "product", name, *[""] * 6, f"{rate:.0f}")
        table.add_section()
    Console(width=max(120, Console().width)).print(table)
    for threads, part in result["threads"].items():
        print(f"compilation, {threads}: " + "; ".join(f"{what}: {s:.1f} s" for what, s in part["compile_s"].items()))
    if (load := result["load_average_before"]) is not None and load > 0.5:
        print(f"The load average was {load:.1f} before: other work took part of the cores. Several threads of PyTorch")
        print("wait for each other at every operation and suffer most; go by the processor time of one thread.")
    if result["pytorch_left_out"] is not None:
        print(f"PyTorch was left out: {result['pytorch_left_out']}")
    else:
        bare = [row for row in result["threads"]["one"]["rows"] if row["who"] == BARE]
        for name, words in (
            ("ratio", "one thread: times as fast as PyTorch bare"),
            ("ratio_of_processor_time", "by processor time"),
            ("ratio_at_peak", "if ours ran at the peak"),
        ):
            values = [row[name] for row in bare]
            print(f"{words}: {min(values):.2f} to {max(values):.2f}")
        print(f"asked for: {ASKED}")
    for threads, part in result["threads"].items():
        [row] = (row for row in part["rows"] if row["seeds"] > 1)
        ratios = f"{row['ratio']:.2f} steps of one seed, {row['ratio_of_processor_time']:.2f} by processor time"
        print(f"a step of {row['seeds']} seeds, {threads}: costs per seed {ratios}")
    runs = result["whole_runs"]
    print(
        f"whole runs of {runs['dag']}, {runs['steps']} steps: {runs['seeds']} seeds in one process "
        f"{runs['one_process_s']:.1f} s, in {runs['seeds']} {sum(runs['processes_s']):.1f} s ({runs['ratio']:.2f} x)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--torch-python", type=Path, metavar="PATH", help="Python of an environment that has PyTorch")
    where.add_argument("--install-torch", type=Path, metavar="DIR", help="make a venv there and install PyTorch in it")
    parser.add_argument("--data-dir", type=Path, help="folder of tensorflow-datasets with MNIST; without it: a sphere")
    parser.add_argument("--width", type=int, default=1024, help="number of units of every node")
    parser.add_argument("--steps", type=int, default=12, help="number of steps per epoch")
    parser.add_argument("--seeds", type=int, default=8, help="number of networks in a run of several seeds")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed rounds")
    parser.add_argument("--out", type=Path, help="JSON file for the results; an existing one is replaced")
    options = parser.parse_args(arguments)
    if options.seeds < 2 or min(options.width, options.steps, options.repeats) < 1:
        parser.error("--seeds must be at least 2, and --width, --steps and --repeats at least 1")

    load_average = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    python, reason = find_torch(options)
    can_pin = hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if can_pin else list(range(os.cpu_count() or 1))
    data_dir = None if options.data_dir is None else str(options.data_dir)
    with tempfile.TemporaryDirectory(prefix="train-step-") as folder:
        data = load(data_dir, options.steps * BATCH)
        np.savez(Path(folder, "data.npz"), x=data.train.x, labels=data.train.labels)
        common = {"folder": folder, "width": options.width, "data_dir": data_dir, "examples": len(data.train.labels)}
        on_one = common | {"threads": 1, "core": cores[-1] if can_pin else None}
        on_all = common | {"threads": len(cores), "core": None}
        by_threads, about, differences = {}, {}, {}
        for name, setting in (("one", on_one), ("all", on_all)):
            with contextlib.ExitStack() as stack:
                ours = stack.enter_context(Worker(sys.executable, "ours", setting))
                theirs = None if python is None else stack.enter_context(Worker(python, "theirs", setting))
                if name == "one":
                    differences = check(ours, theirs)
                    about = {} if theirs is None else theirs.call("about")[0]
                by_threads[name] = compare(ours, theirs, options, name)
        runs = whole_runs(on_all, options.seeds)

    result = {
        "claim": "A training step takes less time than PyTorch's, and a short run of eight seeds less than eight",
        "date": datetime.date.today().isoformat(),
        "device": "cpu",
        "machine": f"{platform.machine()}, {len(cores)} cores",
        "load_average_before": load_average,
        "pinned": can_pin,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("nngp-dag", "jax", "jaxlib", "flax", "optax", "numpy")} | about,
        "pytorch_left_out": reason,
        "asked_ratio": ASKED,
        "data": data.name,
        "width": options.width,
        "batch_size": BATCH,
        "steps": options.steps,
        "repeats": options.repeats,
        "relative_differences": differences,
        "threads": by_threads,
        "whole_runs": runs,
    }
    show(result)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        temporary = options.out.with_suffix(".partial")
        temporary.write_text(json.dumps(result, indent=2) + "\n")
        os.replace(temporary, options.out)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(sys.argv[2], json.loads(sys.argv[3]))
    else:
        main()
