#!/usr/bin/env bash
# What only a GPU can show, in at most 8 minutes, into one JSON file ($OUT/gpu.json, else ./gpu.json):
#
#     bash benchmarks/gpu.sh [--dry-run] [--out FILE] [--parts NAME ...]
#
# Takes the first of $PYTHON, .venv and the usual ones whose torch sees a GPU, and installs into it what is missing, from
# wheels in .whl/ and from a package registry where there is one: meant for a machine that is thrown away. Where none
# sees a GPU that is there, everything goes into a new environment. --dry-run installs nothing.
set -u
cd "$(dirname "$0")/.." || exit 1
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1 PIP_BREAK_SYSTEM_PACKAGES=1

recent() { command -v "$1" >/dev/null && "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; }
sees_gpu() { "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null; }
# names of packages that cannot be imported, of MODULE or MODULE=PACKAGE
missing() {
    "$python" -c 'import sys; from importlib.util import find_spec
print(*(name.split("=")[-1] for name in sys.argv[1:] if find_spec(name.split("=")[0]) is None))' "$@"
}
# SECONDS PACKAGE...: nothing that is there is replaced by another build of torch
install() {
    local limit=$1
    shift
    echo "installing $*"
    "$python" -m pip freeze 2>/dev/null | grep -i '^torch==' >"$constraint"
    timeout "$limit" "$python" -m pip install --quiet --retries 0 --timeout 10 --constraint "$constraint" "$@" 2>&1 |
        tail -n 3
}

dry=
case " $* " in *" --dry-run "*) dry=1 ;; esac
python=
for candidate in ${PYTHON:-} .venv/bin/python python3.11 python3 python3.12 python3.13; do
    recent "$candidate" || continue
    python=${python:-$candidate}
    if [ -n "$dry" ]; then break; fi
    if sees_gpu "$candidate"; then
        python=$candidate
        break
    fi
done
if [ -z "$python" ]; then
    echo "no Python 3.11 or newer here" >&2
    exit 1
fi
if [ -z "$dry" ]; then
    work=$(mktemp -d)
    constraint=$work/constraint
    if ! command -v nvidia-smi >/dev/null; then
        echo "missing: an NVIDIA driver"
    elif ! sees_gpu "$python"; then
        echo "no Python here has a torch that sees the GPU: making an environment that has"
        "$python" -m venv "$work/venv" && python=$work/venv/bin/python && install 200 torch
    fi
    if ! "$python" -m pip --version >/dev/null 2>&1; then
        echo "missing: pip, so that nothing can be installed"
    else
        if compgen -G '.whl/*.whl' >/dev/null; then
            "$python" -m pip install --quiet --no-index --no-deps .whl/*.whl
        fi
        packages=$(missing networkx numpy onnx onnxscript onnx_ir=onnx-ir onnxruntime safetensors typer rich \
            pytest hypothesis timm transformers)
        if [ -n "$packages" ]; then install 90 $packages; fi # unquoted: several words
        for builder in tensorrt tensorrt_rtx=tensorrt-rtx; do
            package=$(missing "$builder")
            if [ -n "$package" ]; then install 60 "$package"; fi
        done
    fi
    sees_gpu "$python" || echo "missing: a torch that sees a GPU; the parts that need one will fail"
    echo "set up in $SECONDS s: $(command -v "$python")"
fi
exec "$python" -m benchmarks.gpu --limit $((470 - SECONDS)) "$@"
