#!/usr/bin/env bash
# Runs the tests and the benchmarks that need a GPU, in under 8 minutes, on random inputs: first the tests, then the
# benchmarks, the most important first. Each writes its JSON file when it ends, so that a timeout loses little.
#
#     benchmarks/gpu.sh [FOLDER OF RESULTS]
set -uo pipefail
cd "$(dirname "$0")/.."
results=${1:-benchmarks/results}
mkdir -p "$results"
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" NNGP_DAG_TEST_XLA=default # the compiler options of users
failed=()

step() { # NAME SECONDS COMMAND...
  local name=$1 seconds=$2
  shift 2
  echo "== $name (at $SECONDS s)"
  timeout "$seconds" "$@" || failed+=("$name")
}

python -c 'import jax, sys; device = jax.devices()[0]; print(device.device_kind); sys.exit(device.platform == "cpu")' ||
  { echo "Expected a GPU, got a CPU; nothing to do"; exit 2; }
step tests 120 python -m pytest -n 0 -q -p no:cacheprovider tests/kernels/test_pallas.py tests/kernels/test_choose.py
step one_kernel 100 python benchmarks/one_kernel.py --n 1024 4096 16384 50000 --out "$results/one_kernel_gpu.json"
step sweep 70 python benchmarks/sweep.py --n 256 1024 --out "$results/sweep_gpu.json"
step gradient 50 python benchmarks/gradient.py --n 1000 4000 --out "$results/gradient_gpu.json"
step scaling 50 python benchmarks/scaling.py --n 1024 4096 16384 --out "$results/scaling_gpu.json"
step many_rows 80 env XLA_PYTHON_CLIENT_MEM_FRACTION=0.9 python benchmarks/many_rows.py --n 100000 --devices 1 --out "$results/many_rows_gpu.json"
((${#failed[@]} == 0)) || { echo "failed: ${failed[*]}"; exit 1; }
