#!/usr/bin/env bash
# Downloads what a machine with a GPU, Python 3.12 and torch, but without a network, lacks of deploy/gpu.lock: wheels, in build/gpu-kit, and
# the same as parts of at most 60 MiB there, to be carried one by one. Beside the parts on that machine, unpack.sh joins and installs them.
# The first argument is a file with what is there already (`pip list --format=freeze`; default: there.txt), the second a pattern of what is
# left out (default: kernels that a Llama on Hopper has no use for, and what is only for vLLM's other modalities and commands).
# The encoder's parts need no more than ONLY='^(annotated-types|gguf|pydantic|pydantic-core|typing-inspection)==' (3 MB; all: 420).
set -euo pipefail
cd "$(dirname "$0")/../.."
there=${1:-benchmarks/gpu/there.txt}
without=${2:-'^(flashinfer|nvidia-|cuda-|nccl|tilelang|apache-tvm|z3|tokenspeed|quack|humming|torchcodec|pynvvideo|torch-c-|fastsafetensors|instanttensor|sentry|fastapi-|supervisor|mcp|anthropic)'}
python=${PYTHON:-.venv/bin/python}
kit=build/gpu-kit
rm -rf "$kit"/wheels "$kit"/part.*
mkdir -p "$kit"/wheels
platforms=$(printf -- '--platform manylinux_2_%d_x86_64 ' 17 24 26 27 28 31 34 35)
grep --no-filename --only-matching --extended-regexp '^[A-Za-z0-9._-]+==[^ \\]+' deploy/serving.lock deploy/gpu.lock \
  | awk -F == 'function name(x) { x = tolower(x); gsub(/[._]/, "-", x); return x } NR == FNR { have[name($1)]; next } !(name($1) in have)' "$there" - \
  | { grep --invert-match --extended-regexp "$without" || true; } | { grep --extended-regexp "${ONLY:-.}" || true; } | while read -r wanted; do
    # shellcheck disable=SC2086
    "$python" -m pip --disable-pip-version-check download --quiet --no-deps --only-binary :all: --python-version 3.12 \
      --implementation cp $platforms --platform manylinux2014_x86_64 --dest "$kit"/wheels "$wanted" || echo "not to be had: $wanted"
  done
"$python" -m pip --disable-pip-version-check install --quiet --no-deps --no-build-isolation --target "$kit"/own . # for what it says of itself
mv "$kit"/own/*.dist-info "$kit"/wheels
rm -rf "$kit"/own build/lib build/bdist.*
cp benchmarks/gpu/unpack.sh "$kit"
tar --create --directory "$kit" wheels | split --bytes 60M --numeric-suffixes - "$kit"/part.
ls -l "$kit"
