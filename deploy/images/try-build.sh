#!/bin/sh
# Tests the build steps of the images without a container engine: runs install.sh in an empty directory, then 'understudy'
# from there as user 65532 without capabilities, who can write only to /tmp. With --twice it also checks that a second
# build gives the same bytes. It needs root (to change the user), a package index, and in PYTHON a Python that other
# users may run. It does not test the base image and the syntax of the Dockerfile.
set -eu
source=$(CDPATH='' cd -- "$(dirname -- "$0")/../.." && pwd)
PYTHON=${PYTHON:-/usr/bin/python3}
room=$(mktemp -d -p /var/tmp understudy-image.XXXXXX)
trap 'rm -rf "$room"' EXIT INT TERM
chmod 755 "$room"
target="$room/understudy"
export PYTHON PIP_NO_CACHE_DIR=0

digest() { tar -C "$target" --sort=name --numeric-owner --owner=0 --group=0 -cf - . | sha256sum | cut -d' ' -f1; }

sh "$source/deploy/images/install.sh" "$source" "$target"
first=$(digest)
echo "built: $(du -sm "$target" | cut -f1) MB, $first"
if [ "${1:-}" = --twice ]; then
    rm -rf "$target"
    sh "$source/deploy/images/install.sh" "$source" "$target"
    [ "$(digest)" = "$first" ] || { echo "a second build differs: $(digest)" >&2; exit 1; }
    echo "built again: the same bytes"
fi

# As in a container: a read-only root, its own /tmp and environment, and a user without rights.
as_container() {
    unshare --mount sh -c '
        mount --make-rprivate / && mount -o remount,ro,bind / && mount -t tmpfs -o mode=1777 tmpfs /tmp && cd /tmp
        exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --bounding-set -all \
            env -i PATH="$0/bin:/usr/bin:/bin" PYTHONDONTWRITEBYTECODE=1 "$@"' "$target" "$@"
}
# shellcheck disable=SC2016 # the inner shell expands it
as_container sh -c '! touch "$(dirname "$(command -v understudy)")/x" 2>/dev/null && touch /tmp/x'
for command in control sidecar injector apply status; do
    if as_container understudy "$command" --help >"$room/output" 2>&1; then
        echo "understudy $command --help: $(sed -n 1p "$room/output")"
    else
        cat "$room/output" >&2
        exit 1
    fi
done
as_container python -c 'import understudy.deploy.examples.cart, understudy.deploy.kubernetes.webhook.injector, understudy.proxy.sidecar.sidecar, understudy.xds.control.server; print("all parts are imported")'
