#!/bin/sh
# Installs the image's Python packages. Usage: install.sh PYTHON SDIST CONSTRAINTS [options of pip install, such as --dry-run]
set -eu
python=$1 sdist=$2 constraints=$3
shift 3
"$python" -m pip install --no-cache-dir --constraint "$constraints" "$@" "${sdist}[gcp]" 'tensorflow[and-cuda]'
"$python" -m pip check
