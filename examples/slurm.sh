#!/bin/bash
#SBATCH --job-name=peftly
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append

# Trains on all GPUs of all nodes:  sbatch examples/slurm.sh config.yaml runs/name
# Five minutes before the end of its time the job writes a checkpoint and goes back to the queue, and continues from
# there. The folder of the run and the cache of the bases must be on a file system that all nodes share.
set -u
config=$1 out=$2

arguments=(train "$config" --out "$out")
if [ -e "$out/config.yaml" ]; then
    arguments=(train --resume "$out")
fi

# One torchrun on each node starts a process for each of its GPUs.
first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun \
    --nnodes "$SLURM_NNODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-1}" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first_node:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    --shutdown-timeout 240 \
    -m peftly "${arguments[@]}" &
srun=$!

stopped=
trap 'stopped=1; kill -USR1 "$srun"' USR1
wait "$srun"
status=$?
if [ -n "$stopped" ]; then # the signal has ended the first wait; the job waits for the checkpoint
    wait "$srun"
    status=$?
    [ "$status" -eq 0 ] || scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
