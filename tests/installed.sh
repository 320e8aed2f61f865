#!/usr/bin/env bash
# The torch-free tests against a wheel, installed with base + cpu only into an environment of its own; then the bundle
# is verified and a picture made by the installed command.
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-python3}
BUNDLE=${BUNDLE:-bundles/emoji-ldm}
ROOT=$PWD
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT

"$PYTHON" -m venv "$WORK/venv"
BIN=$WORK/venv/bin
rm -rf build ./*.egg-info # setuptools would pack what it finds in build/
"$BIN/python" -m pip wheel -qq --disable-pip-version-check --no-deps -w "$WORK/wheel" .
rm -rf build ./*.egg-info
"$BIN/python" -m pip install -qq --disable-pip-version-check -c constraints.txt "$(ls "$WORK"/wheel/*.whl)[cpu]"

SITE=$("$BIN/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
SIZE=$(du -sm "$SITE" | cut -f1)
echo "site-packages with base + cpu: $SIZE MB"
[ "$SIZE" -le 400 ] || { echo "more than the 400 MB that were promised"; exit 1; }
for heavy in torch diffusers transformers onnx onnxruntime; do
    [ ! -e "$SITE/$heavy" ] || { echo "$heavy must not come with base + cpu"; exit 1; }
done

"$BIN/python" -m pip install -qq --disable-pip-version-check -c constraints.txt pytest pytest-timeout hypothesis onnx psutil
unset PYTHONPATH
(cd "$WORK" && "$BIN/python" -I -c "import sfumato; assert sfumato.__file__.startswith('$SITE'), sfumato.__file__")
PATH="$BIN:$PATH" "$BIN/pytest" -m 'not slow and not gpu' tests

if [ -f "$BUNDLE/manifest.json" ]; then
    cd "$WORK"
    export SFUMATO_CACHE=$WORK/cache
    "$BIN/sfumato" verify "$ROOT/$BUNDLE"
    "$BIN/sfumato" generate "$ROOT/$BUNDLE" "a red apple" --seed 1 --steps 25 -o a.png
    "$BIN/sfumato" generate "$ROOT/$BUNDLE" "a red apple" --seed 1 --steps 25 -o b.png
    cmp a.png b.png
fi
