#!/usr/bin/env bash
# Makes the packaged model heart-phantom again from nothing: phantoms, stage 1, stage 2, vessel segmenter, export, scores.
#   bash launch/train_heart_phantom.sh
# Everything goes to heart_phantom/; a stopped script resumes when it is started again. Takes about four hours
# of one CPU core, 2 GB of memory and 2 GB of disk. docs/heart_phantom.md is the model card.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"

step() { printf '\n== %s\n' "$*"; }
folder=heart_phantom
configs=configs/heart_phantom
validation=$folder/data/validation
last() { echo "$folder/runs/$1/checkpoints/last.ckpt"; }

step "1/5  Phantoms"
tubesynth phantom --output-dir $folder/data --cases 600 --validation-fraction 0.04 --seed 2026 \
    --resolution 96 96 72 --spacing 1.25 1.25 1.25 --workers "$(python -c 'import os; print(os.cpu_count())')"

step "2/5  Stage 1 in three phases, stage 2 and the vessel segmenter"
tubesynth train --config $configs/stage_1.yml --run-dir $folder/runs/stage_1
tubesynth train --config $configs/stage_1_contrast.yml --run-dir $folder/runs/stage_1_contrast --resume "$(last stage_1)"
tubesynth train --config $configs/stage_1_decoder.yml --run-dir $folder/runs/stage_1_decoder \
    --resume "$(last stage_1_contrast)"
tubesynth train --config $configs/stage_2.yml --run-dir $folder/runs/stage_2
tubesynth train --config $configs/stage_2.yml --run-dir $folder/runs/stage_2_on --resume "$(last stage_2)" \
    train.epochs=17 train.learning_rate=1.0e-3 train.ema_half_life=200 "train.restart=[schedule, epochs, optimizers]" \
    flow.offset_noise=0.5
tubesynth segment train --config $configs/segmenter.yml --run-dir $folder/runs/segmenter

step "3/5  Export"
tubesynth export "$(last stage_2_on)" --output models/heart-phantom.safetensors --dtype float16
tubesynth export "$(last segmenter/seed_3)" --output models/heart-phantom-segmenter.safetensors --dtype float16

step "4/5  Reconstruct and synthesize the validation cases"
tubesynth reconstruct --model heart-phantom --input-dir $validation/images --labels $validation/labels \
    --output-dir $folder/reconstruction
tubesynth synthesize --model heart-phantom --input-dir $validation/labels --output-dir $folder/synthesis --seed 0

step "5/5  Scores"
tubesynth evaluate --real $validation/images --labels $validation/labels --reconstruction $folder/reconstruction \
    --synthesis $folder/synthesis --segmenter heart-phantom --output-dir $folder/evaluation
