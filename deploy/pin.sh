#!/bin/sh
# Pins everything that the image installs in constraints.txt. It needs uv. Then set the version of Beam in Dockerfile to the pin.
set -eu
cd "$(dirname "$0")/.."
uv pip compile setup.py deploy/gpu.in --extra gcp --upgrade --python-version 3.11 --python-platform x86_64-manylinux_2_28 \
    --no-header --no-annotate --output-file deploy/constraints.txt
