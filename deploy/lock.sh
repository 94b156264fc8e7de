#!/usr/bin/env bash
# Prints requirements.lock; with the argument `cpu` or `gpu` deploy/cpu.lock or gpu.lock: what serving there needs, and no more.
# requirements.lock: the dependencies of every group but gpu, with the hashes of all their files and no index address; cpu.lock is a part of it.
# torchvision, torchaudio and torchcodec are left out: their CUDA builds break `import transformers` beside torch's CPU wheel,
# and nothing here needs them; nor triton, which has no CPU backend. torch comes first and carries the hashes of both its CPU and its plain wheels (see `make setup`).
set -euo pipefail
cd "$(dirname "$0")/.."
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
compile=("${UV:-.venv/bin/uv}" pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links
  --no-annotate --no-header)

if [ "${1:-}" = gpu ]; then
  exec "${compile[@]}" --python-platform x86_64-manylinux_2_28 --extra gpu pyproject.toml
fi

extras=(--extra cpu --extra dev --extra train)
if [ "${1:-}" = cpu ]; then extras=(--extra cpu --constraint requirements.lock); fi
for unwanted in torchvision torchaudio torchcodec triton; do echo "$unwanted; sys_platform == 'never'"; done > "$work/overrides"
echo "torch==2.13.0+cpu" > "$work/cpu.in"
echo "torch==2.13.0" > "$work/plain.in"
env --unset=UV_FIND_LINKS --unset=UV_EXTRA_INDEX_URL "${compile[@]}" --no-deps "$work/plain.in" > "$work/plain"
"${compile[@]}" "${extras[@]}" --overrides "$work/overrides" pyproject.toml "$work/cpu.in" > "$work/all"

awk '/^[a-z]/ { keep = /^torch==/ } keep' "$work/all" | sed '$ s,$, \\,'
tail --lines=+2 "$work/plain"
awk '/^[a-z]/ { keep = !/^torch==/ } keep' "$work/all"
