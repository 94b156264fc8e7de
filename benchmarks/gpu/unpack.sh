#!/usr/bin/env bash
# On the machine without a network, when all parts are in build/gpu-kit: installs the wheels, and the service, into build/gpu-kit/site.
# Then: PATH=$PWD/build/gpu-kit/site/bin:$PATH PYTHONPATH=$PWD/build/gpu-kit/site make bench-gpu BENCH_PYTHON=python3
set -euo pipefail
cd "${1:-.}" # the repository
kit=build/gpu-kit
cat "$kit"/part.* | tar --extract --directory "$kit"
install=(python3 -m pip --disable-pip-version-check install --quiet --no-index --no-deps --no-cache-dir --upgrade --target "$kit/site")
for wheel in "$kit"/wheels/*.whl; do # one by one: what does not fit costs itself only
  "${install[@]}" "$wheel" || echo "not installed: $wheel"
done
"${install[@]}" --no-build-isolation . || echo "not installed: the service"
