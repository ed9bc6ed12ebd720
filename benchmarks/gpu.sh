#!/bin/sh
# Checks and times the CUDA reader on one GPU, in under 9 minutes on an H200, and writes OUT/gpu.json.
# Usage, from the repository's root: benchmarks/gpu.sh [OUT]      A dry run on a CPU: python benchmarks/gpu.py --tiny
# Each part writes what it has found before the next begins, so a part that fails costs only itself.
set -u
out=${1:-.}
python=${PYTHON:-python3}
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$out"
tests="tests/cache/test_kernels.py tests/cache/test_kernels_arena.py -q -p no:cacheprovider"

echo '== the kernels against the softmax written out, compiled'
many=
"$python" -c 'import xdist' 2>/dev/null && many='-n 8'
timeout 120 "$python" -m pytest $tests $many 2>&1 | tail -n 30 | tee "$out/kernels.txt"

if command -v compute-sanitizer >/dev/null; then
    echo '== no access out of bounds, by the memory checker'
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 timeout 80 compute-sanitizer --tool memcheck --error-exitcode 3 \
        "$python" -m pytest $tests -k 'older or outside or device' 2>&1 | tail -n 8 | tee "$out/memcheck.txt"
fi

echo '== times'
timeout 330 "$python" benchmarks/gpu.py --out "$out/gpu.json"
