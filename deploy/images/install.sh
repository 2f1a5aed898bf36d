#!/bin/sh
# The build steps of the images: SOURCE (a checkout) becomes TARGET (a virtual environment with 'understudy' in it).
# The Dockerfile runs this, and so does try-build.sh, which needs no container engine.
#
# Promises: only files whose digests are in the requirements are installed; the same sources give the same bytes in
# TARGET, whenever they are built (files have the time SOURCE_DATE_EPOCH).
set -eu
source=${1:?usage: install.sh SOURCE TARGET}
target=${2:?usage: install.sh SOURCE TARGET}
python=${PYTHON:-python3}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
export SOURCE_DATE_EPOCH PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR="${PIP_NO_CACHE_DIR:-1}" PIP_DISABLE_PIP_VERSION_CHECK=1
images="$source/deploy/images"
work="$target-build"

into() { # ENVIRONMENT, then what pip is to do there; the environment itself needs no pip
    environment=$1
    shift
    "$python" -m pip --quiet --python "$environment/bin/python" "$@"
}

"$python" -m venv --without-pip "$target"
into "$target" install --require-hashes --no-deps --only-binary :all: --no-compile -r "$images/requirements.txt"

# Our own wheel, built in a place of its own from a copy: a build leaves things behind.
"$python" -m venv --without-pip "$work"
into "$work" install --require-hashes --no-deps --only-binary :all: --no-compile -r "$images/build-requirements.txt"
mkdir "$work/source"
for part in pyproject.toml README.md LICENSE understudy xds proxy statesync telemetry deploy; do
    cp -R "$source/$part" "$work/source/"
done
find "$work/source" -name __pycache__ -prune -exec rm -rf {} +
into "$work" wheel --no-build-isolation --no-deps --no-index --wheel-dir "$work/wheel" "$work/source"
into "$target" install --no-deps --no-index --no-compile "$work"/wheel/understudy-*.whl
rm -rf "$work"

# Byte code is made here, since a container cannot write it; it is found valid without a look at the source's time.
"$target/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$target/lib"
find "$target" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
