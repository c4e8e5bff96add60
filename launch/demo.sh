#!/usr/bin/env bash
# The whole pipeline on small data: phantoms, stage 1 in two phases, stage 2, reconstruction, synthesis, scores, pictures.
#   bash launch/demo.sh            everything goes to demo/; a second run reuses the files in it
# Takes 4 to 9 minutes on 2 free CPU cores after .venv exists; faster on a GPU.

# OpenMP threads spin while they wait: a training step is a quarter faster on an idle machine, but takes twice as long on
# a busy machine, where they must sleep. Busy: the cores (/proc/stat) are idle for less than half of one second.
idle_and_all() { awk '/^cpu / { print $5 + $6, $2 + $3 + $4 + $5 + $6 + $7 + $8 + $9; exit }' /proc/stat 2>/dev/null; }
before=$(idle_and_all)
sleep 1
busy=$(echo "$before $(idle_and_all)" | awk '{ print (NF == 4 && 2 * ($3 - $1) < $4 - $2) }')
if [ "$busy" = 1 ]; then export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-PASSIVE}; fi

source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

step() { printf '\n== %s\n' "$*"; }
runs=demo/runs
validation=demo/data/validation

step "1/7  A procedural data set of coronary CT angiograms"
python -m tubesynth.phantom --output-dir demo/data --cases 40 --validation-fraction 0.1 --seed 1 \
    --resolution 64 64 48 --spacing 2.1 2.1 2.3 --workers "$(python -c 'import os; print(os.cpu_count())')"

step "2/7  Stage 1, phase 1: the autoencoder on random crops"
python -m tubesynth.train --stage 1 --config configs/demo/stage_1_crops.yml --run-dir $runs/stage_1_crops

step "3/7  Stage 1, phase 2: the autoencoder on whole volumes"
python -m tubesynth.train --stage 1 --config configs/demo/stage_1_full.yml --run-dir $runs/stage_1_full \
    --resume $runs/stage_1_crops/checkpoints/last.ckpt

step "4/7  Stage 2: flow matching in its latents, conditioned on the label map"
python -m tubesynth.train --stage 2 --config configs/demo/stage_2_flow.yml --run-dir $runs/stage_2_flow --latent-mode flow

step "5/7  Reconstruct the validation cases"
python -m tubesynth.reconstruct --input-dir $validation/images --output-dir demo/reconstruction \
    --model $runs/stage_1_full/checkpoints/last.ckpt

step "6/7  Synthesize new CTs from the validation label maps"
python -m tubesynth.synthesize --input-dir $validation/labels --output-dir demo/synthesis --seed 0 \
    --model $runs/stage_2_flow/checkpoints/last.ckpt

step "7/7  Scores and pictures"
python -m tubesynth.evaluate --real $validation/images --labels $validation/labels \
    --reconstruction demo/reconstruction --synthesis demo/synthesis --output-dir demo/evaluation \
    --training-log $runs/stage_1_crops/metrics.jsonl $runs/stage_1_full/metrics.jsonl $runs/stage_2_flow/metrics.jsonl
