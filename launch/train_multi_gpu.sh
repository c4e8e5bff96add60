#!/usr/bin/env bash
# Trains on several GPUs of this machine: GPUS=4 bash launch/train_multi_gpu.sh CONFIG [options of tubesynth train]
#   GPUS=4 bash launch/train_multi_gpu.sh stage_2_3d_f4_lfm_base data.root=/data/imagecas
# Without GPUS it uses all of them. On a machine without a GPU, GPUS=2 trains in two processes on the CPU (gloo).
source "$(dirname "${BASH_SOURCE[0]}")/venv.sh"
config=${1:?usage: train_multi_gpu.sh CONFIG [options of tubesynth train]}
shift
gpus=${GPUS:-$(python -c 'import torch; print(max(1, torch.cuda.device_count()))')}
exec python -m tubesynth.train --config "$config" --gpus "$gpus" "$@"
