#!/usr/bin/env bash
# On the machine without a network, when all parts are in build/gpu-kit: unpacks the wheels, and a command blsp, into build/gpu-kit/site.
# Then: PATH=$PWD/build/gpu-kit/site/bin:$PATH PYTHONPATH=$PWD/build/gpu-kit/site make bench-gpu BENCH_PYTHON=python3
set -euo pipefail
cd "${1:-.}" # the repository
kit=build/gpu-kit
cat "$kit"/part.* | tar --extract --directory "$kit"
rm -rf "$kit/site"
for wheel in "$kit"/wheels/*.whl; do # whatever system they were made for: pip would refuse all for one
  python3 -m zipfile --extract "$wheel" "$kit/site"
done
for part in "$kit"/site/*.data/{purelib,platlib}; do
  if [ -d "$part" ]; then cp --recursive "$part/." "$kit/site"; fi
done
cp --recursive "$kit"/wheels/*.dist-info "$kit/site" # by which vLLM finds the service's plugin
mkdir -p "$kit/site/bin"
printf '%s\n' '#!/usr/bin/env python3' 'from service.cli import main' 'if __name__ == "__main__":' '    main()' > "$kit/site/bin/blsp"
chmod +x "$kit/site/bin/blsp"
