"""Claim: time and accuracy of `nd.solve` beside EigenPro with its published settings, on the same MNIST digits.

EigenPro is that of scikit-learn-extra: stochastic gradient descent with a preconditioner, on a Gaussian kernel of
gamma = 0.02, two passes, as in its comparison on MNIST. It runs in an environment of its own, since it needs an older
NumPy; `--peer` names its Python:

    python -m venv peer && peer/bin/pip install "scikit-learn-extra" "scikit-learn<1.6" "scipy<1.14" "numpy<2"
    python benchmarks/eigenpro.py --data-dir TFDS --peer peer/bin/python [--n 10000] [--out FILE.json]

The two kernels differ, so that accuracies compare whole methods and not solvers. Times include predictions of the
10,000 test images, and of `nd.solve` also compilation.
"""

import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import finding, parser_of, save, show

import nngp_dag as nd

# Runs in the environment of the peer.
PEER = """
import json, sys, time
import numpy as np
from sklearn_extra.kernel_methods import EigenProClassifier
data = np.load(sys.argv[1])
start = time.perf_counter()
model = EigenProClassifier(n_epoch=2, gamma=0.02, random_state=0).fit(data["x"], data["y"])
found = model.predict(data["x_test"])
print(json.dumps({"seconds": time.perf_counter() - start, "accuracy": float(np.mean(found == data["y_test"]))}))
"""


def images(data_dir: Path, split: str, count: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Returns pixels between 0 and 1, (n, 784), float32, and labels."""
    data = nd.data.load_dataset("mnist", subset=count, split=split, data_dir=data_dir)
    return data.images.reshape(len(data.labels), -1).astype(np.float32), np.asarray(data.labels)


def peer(python: Path, **arrays: np.ndarray) -> dict[str, Any]:
    """Runs EigenPro."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "data.npz")
        np.savez(path, allow_pickle=False, **arrays)
        run = subprocess.run([str(python), "-c", PEER, str(path)], stdout=subprocess.PIPE, text=True, check=True)
    return {"method": "EigenPro, Gaussian kernel", **json.loads(run.stdout)}


def own(method: str, train: tuple, test: tuple, **options: Any) -> dict[str, Any]:
    """Solves by the NTK of DAG#3."""
    start = time.perf_counter()
    targets = np.eye(10)[train[1]] - 0.1
    solution = nd.solve("2_21_112", train[0], targets, 0.01, method=method, memory_budget="16 GiB", **options)
    outputs = solution.predict(test[0])
    seconds = time.perf_counter() - start
    accuracy = float(np.mean(outputs.argmax(axis=1) == test[1]))
    return {"method": f"nd.solve, {method}", "seconds": seconds, "accuracy": accuracy, "residual": solution.residual}


def main() -> None:
    """Measures and prints."""
    parser = parser_of(__doc__, [10000])
    parser.add_argument("--peer", type=Path, required=True, help="Python of the environment with scikit-learn-extra")
    given = parser.parse_args()
    test, rows = images(given.data_dir, "test", None), []
    for n in given.n:
        train = images(given.data_dir, "train", n)
        found = [
            peer(given.peer, x=train[0], y=train[1], x_test=test[0], y_test=test[1]),
            own("dense", train, test, dtype="float64"),
            own("landmarks", train, test, landmarks=2048),
        ]
        rows += [{"n": n, **row} for row in found]
    show("MNIST", rows, {"n": "{:,}", "method": "{}", "seconds": "{:.1f}", "accuracy": "{:.4f}", "residual": "{:.1e}"})
    findings = []
    for n in given.n:
        first, *others = (row for row in rows if row["n"] == n)
        for row in others:
            what = f"N = {n:,}: time of EigenPro over that of {row['method']}"
            findings.append(finding(what, first["seconds"] / row["seconds"]))
            what = f"N = {n:,}: errors of {row['method']} over those of EigenPro"
            findings.append(finding(what, (1 - row["accuracy"]) / (1 - first["accuracy"])))
    save(given.out, "time and accuracy of regression on MNIST beside EigenPro", rows, findings)


if __name__ == "__main__":
    main()
