#!/usr/bin/env bash
# What is to be measured on one GPU, in at most nine minutes: bash tests/gpu/measure.sh OUT [--smoke]
#
# OUT/lines.jsonl (a line each, as soon as it is measured), OUT/log.txt, OUT/failed.txt (what failed or found no time),
# and of the training: OUT/heart-phantom.safetensors, OUT/training.tar (logs, metrics, panels).
# Runs from a checkout with torch, NumPy, SciPy and PyYAML; the training also needs nibabel and tqdm.
# --smoke does the same on the CPU with tiny sizes, so that no minute of a GPU is spent on a typing error.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
out=$(realpath -m "$1") smoke=${2:-}
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out"
work=$(mktemp -d)
trap 'kill $(jobs -p) 2>/dev/null; rm -rf "$work"' EXIT
deadline=$((SECONDS + 530)) cases=400 batches=(8 16)
if [ -n "$smoke" ]; then
    device=cpu cases=8 batches=(1 1)
    export CUDA_VISIBLE_DEVICES=""
else
    device=cuda
    export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"
fi

# run SECONDS WHAT COMMAND...: its JSON lines go to lines.jsonl; SECONDS or the deadline ends it.
run() {
    local seconds=$1 what=$2 left=$((deadline - SECONDS))
    shift 2
    [ "$left" -lt "$seconds" ] && seconds=$left
    if [ "$seconds" -lt 5 ]; then
        echo "$what: no time left" >>"$out/failed.txt"
        return
    fi
    echo "== $(date +%T) $what" | tee -a "$out/log.txt"
    timeout "$seconds" "$@" >"$work/stdout" 2>>"$out/log.txt" || echo "$what: exit code $?" >>"$out/failed.txt"
    grep '^{' "$work/stdout" >>"$out/lines.jsonl"
    grep -v '^{' "$work/stdout" >>"$out/log.txt"
}

bench() { # bench SECONDS WHAT ARGUMENTS...
    local seconds=$1 what=$2
    shift 2
    run "$seconds" "$what" python tests/bench/bench.py "$@" --device "$device"
}

# Phantoms for the training are made on the CPU meanwhile.
data=(--resolution 96 96 72 --spacing 1.25 1.25 1.25)
tiny=() side=8192 codes=() attention=() evaluations=(1 2 4 10 30)
if [ -n "$smoke" ]; then
    data=(--resolution 32 32 24 --spacing 4 4 4)
    tiny=("data.resolution=[32, 32, 24]" data.crop=null)
    side=64 codes=(--latent 8 8 8 --codes 64) attention=(--size 8 8 4 --tokens 20) evaluations=(1 2)
fi
python -m tubesynth phantom --output-dir "$work/data" --cases "$cases" --validation-fraction 0.1 --seed 2026 \
    "${data[@]}" --workers 4 >>"$out/phantoms.txt" 2>&1 &
phantoms=$!

run 120 "tests" python -m pytest -p no:cacheprovider -n 0 tests/gpu
for precision in 32 bf16-mixed; do
    bench 40 "ceilings, $precision" ceiling --precision $precision --side $side
done

step() { # step CONFIG SETTINGS...
    bench 60 "a step of $*" step --case step --config "$1" --repeats 5 --set "${@:2}" "${tiny[@]}"
}
bf16=train.precision=bf16-mixed
configs=(stage_1_3d_f4_full stage_2_3d_f4_lfm_base stage_2_3d_f4_lfm_crossattn stage_3_3d_f4_controlnet)
[ -n "$smoke" ] && configs=(demo/stage_1 demo/stage_2 demo/stage_2_crossattn demo/stage_3_controlnet)
for config in "${configs[@]}"; do
    step "$config" $bf16
done
if [ -z "$smoke" ]; then # minutes on a CPU
    step "${configs[1]}" $bf16 train.compile=true
    step "${configs[0]}" $bf16 train.compile=true
fi

bench 60 "codes" codebook "${codes[@]}"
for precision in 32 bf16-mixed; do
    bench 40 "vessel attention, $precision" vessel_attention --precision $precision "${attention[@]}"
done
synthesis=("${configs[@]:1:2}")
for config in "${synthesis[@]}"; do
    for batch in 1 4; do
        bench 60 "synthesis of $batch by $config" synthesis --config "$config" --set train.epochs=1 "${tiny[@]}" \
            --evaluations "${evaluations[@]}" --batch-size $batch --precision bf16-mixed --repeats 2
    done
done

# The recommended stage 1, then stage 2 on it. A training that is stopped saves, and ends with 75.
wait $phantoms || echo "phantoms: exit code $?" >>"$out/failed.txt"
train_seconds=$(((deadline - SECONDS - 50) / 2)) # the rest, but for the last two steps
[ -n "$smoke" ] && train_seconds=30
common=("data.root=$work/data" "data.cache_dir=$work/cache" train.epochs=1000 data.num_workers=4 "${tiny[@]}")
[ -n "$smoke" ] && common+=("data.spacing=[4, 4, 4]" train.log_every=1)
train() { # train NAME SETTINGS...
    echo "== $(date +%T) training of $1" | tee -a "$out/log.txt"
    timeout -s TERM $train_seconds python -m tubesynth train --config "heart_phantom/$1" --run-dir "$work/$1" --device $device \
        "${common[@]}" "${@:2}" >>"$out/log.txt" 2>&1
    tail -n 1 "$work/$1/metrics.jsonl" >>"$out/lines.jsonl" 2>/dev/null
}
train stage_1 "data.batch_size=${batches[0]}"
train stage_2 "data.batch_size=${batches[1]}" $bf16 "latents.autoencoder=$work/stage_1/checkpoints/last.ckpt"
run 60 "export" python -m tubesynth export "$work/stage_2/checkpoints/last.ckpt" \
    --output "$out/heart-phantom.safetensors" --dtype float16
run 60 "synthesis of the trained model" python -m tubesynth synthesize --model "$out/heart-phantom.safetensors" \
    --input-dir "$work/data/validation/labels" --output-dir "$work/synthesis"
tar -C "$work" --exclude '*.ckpt' --ignore-failed-read -cf "$out/training.tar" stage_1 stage_2 synthesis 2>>"$out/log.txt"
echo "== $(date +%T) done; $(wc -l <"$out/lines.jsonl") lines" | tee -a "$out/log.txt"
[ ! -s "$out/failed.txt" ] || cat "$out/failed.txt"
