#!/bin/sh
# The build steps of the images: makes TARGET, a virtual environment with 'understudy', from SOURCE, a checkout.
# The Dockerfile runs this script. So does try-build.sh, which needs no container engine.
#
# It installs only files whose digests are in the requirements. The same sources always give the same bytes in TARGET
# (all files have the time SOURCE_DATE_EPOCH).
set -eu
source=${1:?usage: install.sh SOURCE TARGET}
target=${2:?usage: install.sh SOURCE TARGET}
python=${PYTHON:-python3}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-0}
export SOURCE_DATE_EPOCH PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR="${PIP_NO_CACHE_DIR:-1}" PIP_DISABLE_PIP_VERSION_CHECK=1
images="$source/deploy/images"
work="$target-build"

into() { # ENVIRONMENT, then the arguments for pip; the environment itself needs no pip
    environment=$1
    shift
    "$python" -m pip --quiet --python "$environment/bin/python" "$@"
}

"$python" -m venv --without-pip "$target"
into "$target" install --require-hashes --no-deps --only-binary :all: --no-compile -r "$images/requirements.txt"

# The wheel of Understudy, built from a copy in another directory, because a build leaves files behind.
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

# Byte code is made here, because a container cannot write it. Python does not compare it with the source's time.
"$target/bin/python" -m compileall -q --invalidation-mode unchecked-hash "$target/lib"
find "$target" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
