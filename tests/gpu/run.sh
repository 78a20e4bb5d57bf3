#!/usr/bin/env bash
# Tests and measures on a GPU, then prints all that was measured as one table.
#
#   tests/gpu/run.sh [OUT]        OUT: a folder for logs and JSON, default build/gpu
#
# What may be set:
#   PREPARED     what `python -m tests.gpu.prepare` made; without, it is made here in OUT/prepared
#   BUNDLE       a full-size bundle with variants for CUDA
#   CHECKPOINT   what it was exported from: transformers is measured beside it
#   VARIANTS     of BUNDLE, default all that are made for CUDA
#   BATCH        numbers of sequences, default 1,8,32
#   STAGES       some of "tests sample bundle kernels", default all; each has its own time limit
#   PYTHON       default python3; the packages are found as it finds them, PYTHONPATH included
set -uo pipefail
cd "$(dirname "$0")/../.."
out=${1:-build/gpu}
python=${PYTHON:-python3}
prepared=${PREPARED:-$out/prepared}
batch=${BATCH:-1,8,32}
stages=${STAGES:-tests bundle kernels sample}
export PYTHONUNBUFFERED=1
mkdir -p "$out"
failed=()

# A stage's name, its limit in seconds, its command.
stage() {
    local name=$1 limit=$2
    shift 2
    echo "== $name"
    local start=$SECONDS
    timeout "$limit" "$@" 2>&1 | tee "$out/$name.log" || failed+=("$name")
    echo "== $name: $((SECONDS - start)) s"
}

# A name, a limit, and the options of the benchmark.
measure() {
    local name=$1 limit=$2
    shift 2
    stage "$name" "$limit" "$python" -m samples.benchmark "$@" --device cuda --json "$out/$name.json"
}

wanted() { [[ " $stages " == *" $1 "* ]]; }

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
"$python" -c 'from paligemma_edge.runtime.device.ort import ort; print(ort.__file__, ort.__version__, ort.get_available_providers())'
[ -d "$prepared" ] || stage prepare 120 "$python" -m tests.gpu.prepare "$prepared"

if wanted tests; then
    # A warning of another version of a package is no failure of a GPU.
    stage tests 300 "$python" -m pytest tests/gpu --prepared "$prepared" -q -p no:cacheprovider \
        -W default
fi
if wanted bundle && [ -n "${BUNDLE:-}" ]; then
    against=()
    [ -z "${CHECKPOINT:-}" ] || against=(--against transformers --checkpoint "$CHECKPOINT")
    # shellcheck disable=SC2086 - several variants are several words
    measure bundle 420 "$BUNDLE" ${VARIANTS:+--variant $VARIANTS} --max-batch-size "$batch" --cuda-graph \
        --steps 32 --runs 3 ${against[@]+"${against[@]}"}
fi
if wanted kernels; then
    measured=${BUNDLE:-$prepared/narrow.bundle}
    for xqa in 0 1; do
        # shellcheck disable=SC2086
        ORT_ENABLE_XQA=$xqa measure "xqa-$xqa" 90 "$measured" --variant ${VARIANTS:-cuda-fp16} \
            --max-batch-size "$batch" --cuda-graph --steps 32 --runs 3
    done
fi
if wanted sample; then
    measure sample 120 "$prepared/shapes.bundle" --max-batch-size "$batch" --cuda-graph --steps 32 --runs 3
fi

records=("$out"/*.json)
[ -e "${records[0]}" ] && "$python" -m samples.benchmark.table "${records[@]}"
grep -h -A200 '= figures =' "$out/tests.log" 2>/dev/null | grep -v '^SKIPPED'
[ ${#failed[@]} -eq 0 ] || { echo "failed: ${failed[*]}"; exit 1; }
