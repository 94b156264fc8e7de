#!/usr/bin/env bash
# Writes the lock files, with the hashes of all files and no index address. What two of them need is written once:
# deploy/serving.lock is what serving needs with and without a GPU; cpu.lock and gpu.lock name it, and hold what only they need;
# requirements.lock names cpu.lock, and holds what testing and training need beside it.
# torchvision, torchaudio and torchcodec are left out: their CUDA builds break `import transformers` beside torch's CPU wheel,
# and nothing here needs them; nor triton, which has no CPU backend. torch carries the hashes of both its CPU and its plain wheels (see `make setup`).
set -euo pipefail
cd "$(dirname "$0")/.."
export LC_ALL=C
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

pin=("${UV:-.venv/bin/uv}" pip compile --quiet --generate-hashes --python-version 3.11 --no-emit-index-url --no-emit-find-links
  --no-annotate --no-header)

# Each requirement in one line, with its hashes behind tabs.
in_lines() {
  sed --null-data 's/ \\\n */\t/g'
}

write() {
  sed 's/\t/ \\\n    /g' > "$1.new"
  mv "$1.new" "$1"
}

for unwanted in torchvision torchaudio torchcodec triton; do echo "$unwanted; sys_platform == 'never'"; done > "$work/overrides"
echo "torch==2.13.0+cpu" > "$work/cpu.in"
echo "torch==2.13.0" > "$work/plain.in"
pin_without_cpu_wheels=(env --unset=UV_FIND_LINKS --unset=UV_EXTRA_INDEX_URL "${pin[@]}")
plain=$("${pin_without_cpu_wheels[@]}" --no-deps "$work/plain.in" | in_lines | cut --fields=2-)
pin_for_cpu() {
  "${pin[@]}" --overrides "$work/overrides" "$@" pyproject.toml "$work/cpu.in" | in_lines | sed "/^torch==/ s/\$/\t$plain/" | sort
}

pin_for_cpu --extra cpu --extra dev --extra train > "$work/all"
sed 's/\t.*//' "$work/all" > "$work/versions"
pin_for_cpu --extra cpu --constraint "$work/versions" > "$work/cpu"
"${pin_without_cpu_wheels[@]}" --python-platform x86_64-manylinux_2_28 --extra gpu pyproject.toml | in_lines | sort > "$work/gpu"

comm -12 "$work/cpu" "$work/gpu" | write deploy/serving.lock
(echo "-r serving.lock"; comm -23 "$work/cpu" "$work/gpu") | write deploy/cpu.lock
(echo "-r serving.lock"; comm -13 "$work/cpu" "$work/gpu") | write deploy/gpu.lock
(echo "-r deploy/cpu.lock"; comm -23 "$work/all" "$work/cpu") | write requirements.lock
