#!/usr/bin/env bash
# The whole pipeline on small data: phantoms, a first synthesis, both stages trained on from the packaged model
# heart-phantom, reconstruction, synthesis, scores, pictures.
#   bash launch/demo.sh                   everything goes to demo/; a second run reuses the files in it
#   bash launch/demo.sh --from-scratch    both stages start from nothing; as short a training is worse then
# Makes .venv on its first call. After that it takes 2 to 5 minutes on 2 CPU cores, and 2 GB of memory; faster on a GPU.

# OpenMP threads spin while they wait: a training step is a quarter faster on an idle machine, but takes twice as long on
# a busy machine, where they must sleep. Busy: the cores (/proc/stat) are idle for less than half of one second.
idle_and_all() { awk '/^cpu / { print $5 + $6, $2 + $3 + $4 + $5 + $6 + $7 + $8 + $9; exit }' /proc/stat 2>/dev/null; }
before=$(idle_and_all)
sleep 1
busy=$(echo "$before $(idle_and_all)" | awk '{ print (NF == 4 && 2 * ($3 - $1) < $4 - $2) }')
if [ "$busy" = 1 ]; then export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}; fi

results=demo start=(--resume heart-phantom) settings_1=() settings_2=()
case "${1:-}" in
"") ;;
--from-scratch)
    results=demo/from_scratch start=()
    settings_1=(train.epochs=60 train.learning_rate=2.0e-3)
    settings_2=(train.epochs=20 train.learning_rate=2.0e-3 flow.offset_noise=0.1
        "latents.autoencoder=$results/runs/stage_1/checkpoints/last.ckpt")
    ;;
*)
    echo "error: unknown option $1: bash launch/demo.sh [--from-scratch]" >&2
    exit 2
    ;;
esac

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

echo "Seven steps, in a few minutes on an idle machine"
step() { printf '\n== %s\n' "$*"; }
validation=demo/data/validation runs=$results/runs

step "1/7  A procedural data set of coronary CT angiograms"
tubesynth phantom --output-dir demo/data --cases 16 --validation-fraction 0.25 --seed 1 \
    --resolution 96 96 72 --spacing 1.25 1.25 1.25 --workers "$(python -c 'import os; print(os.cpu_count())')"

step "2/7  A first synthesis by the packaged model"
tubesynth synthesize --model heart-phantom --output-dir demo/first_synthesis

step "3/7  Stage 1: the autoencoder"
tubesynth train --config configs/demo/stage_1.yml --run-dir $runs/stage_1 "${start[@]}" "${settings_1[@]}"

step "4/7  Stage 2: flow matching in its latents, conditioned on label map and vessels"
tubesynth train --config configs/demo/stage_2.yml --run-dir $runs/stage_2 "${start[@]}" "${settings_2[@]}"

step "5/7  Reconstruct the validation cases"
tubesynth reconstruct --input-dir $validation/images --labels $validation/labels --output-dir $results/reconstruction \
    --model $runs/stage_1/checkpoints/last.ckpt

step "6/7  Synthesize new CTs from the validation label maps"
tubesynth synthesize --input-dir $validation/labels --output-dir $results/synthesis --seed 0 \
    --model $runs/stage_2/checkpoints/last.ckpt

step "7/7  Scores and pictures"
tubesynth evaluate --real $validation/images --labels $validation/labels --segmenter heart-phantom \
    --reconstruction $results/reconstruction --synthesis $results/synthesis --output-dir $results/evaluation \
    --training-log $runs/stage_1/metrics.jsonl $runs/stage_2/metrics.jsonl
