"""One process of a regression, for the tests of several devices and processes.

Arguments: methods, or "kernels" for a sharded kernel and its largest eigenvalues; output directory or "-"; file for the
result; and for several processes the coordinator, their number and the number of this one.
"""

import sys
import time
from pathlib import Path

import jax
import numpy as np

import nngp_dag as nd
from nngp_dag.large import blocked, checkpoint, costs, landmarks


def data():
    random = np.random.default_rng(0)
    x, t = random.normal(size=(700, 8)), random.normal(size=(50, 8))
    return x, np.stack([np.sin(x[:, 0]), x[:, 1] * x[:, 2]], axis=1), t


def main(methods, out, result, coordinator="", processes="1", number="0"):
    if coordinator:
        jax.config.update("jax_cpu_collectives_implementation", "gloo")
        jax.distributed.initialize(coordinator, int(processes), int(number))
    for method in methods.split(","):
        run(method, out if out == "-" else f"{out}-{method}", f"{result}-{method}", bool(coordinator))


def run(method, out, result, several=False):
    # Checkpoints come as often as they can, so that a killed process leaves one.
    checkpoint.EVERY, landmarks.FLUSH, blocked._BLOCK = 0.0, 2, 64
    mesh = jax.make_mesh((len(jax.devices()),), ("rows",))
    costs._BLOCK = 64 // len(jax.devices())
    x, y, t = data()
    if method == "kernels":
        x = x.astype(np.float32)
        rows = nd.sharded_kernel("2_21_112", x, mesh=mesh)
        assert {part.data.shape for part in rows.addressable_shards} == {(len(x) // mesh.size, len(x))}
        leading = nd.leading_eigenvalues("2_21_112", x, 3, mesh=mesh, out=None if out == "-" else out)
        whole = jax.jit(lambda v: v, out_shardings=jax.NamedSharding(mesh, jax.P()))(rows)
        np.savez(result, kernel=np.asarray(whole), eigenvalues=leading.eigenvalues, vectors=leading.vectors)
        return
    seen = Path(f"{result}.seen")

    def report(task, done, total):
        # The test kills the process when it has seen enough; slowly, so that it can.
        if out != "-" and task in ("rows", "iterations") and not several:
            seen.write_text(f"{task} {done}")
            time.sleep(0.1)

    found = nd.solve(
        "2_21_112",
        x,
        y,
        1.0,
        method=method,
        landmarks=100,
        x_test=None if method == "landmarks" else t[:5],
        mesh=mesh,
        out=None if out == "-" else out,
        tolerance=1e-7,
        on_progress=report,
    )
    numbers = {name: getattr(found, name) for name in ("coefficients", "residual", "effective_dimension")}
    if found.posterior is not None:
        numbers["covariance"] = found.posterior.covariance
    np.savez(result, outputs=found.predict(t), **numbers)


if __name__ == "__main__":
    main(*sys.argv[1:])
