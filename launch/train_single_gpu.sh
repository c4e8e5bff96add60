#!/usr/bin/env bash
# Trains on one GPU: bash launch/train_single_gpu.sh CONFIG [options of tubesynth train]
#   bash launch/train_single_gpu.sh stage_1_3d_f4 --epochs 100 data.root=/data/imagecas
# in 16-mixed, as the published script does, unless the options name another --precision.
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
config=${1:?usage: train_single_gpu.sh CONFIG [options of tubesynth train]}
shift
exec python -m tubesynth.train --config "$config" --gpus 1 --precision 16-mixed "$@"
