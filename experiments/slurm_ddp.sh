#!/bin/bash
# Train one model on several machines with Slurm, recorded as a single run.
#
# Start it in the environment that has cvexp, from a folder that all machines share. The arguments are those of
# `python -m cvexp`. All processes, one for each GPU of each machine, share each batch of loader.batch_size images:
#     sbatch --nodes=2 --gpus-per-node=4 experiments/slurm_ddp.sh dataset=coco dataset.root=PATH loader.batch_size=256
# PROCESSES_PER_NODE=2 sbatch ... starts another number of processes on each machine, such as on machines without a GPU.
#
# If Slurm requeues the job, because of a job with priority or a broken machine, the run goes on by itself: its folder is
# named after the job, and contains its id. Before the time limit, the run stops after a step, and the job requeues itself.
# Go on with a run that has failed, on any number of machines, with:
#     sbatch --nodes=1 --gpus-per-node=4 experiments/slurm_ddp.sh resume=RUN_ID
#
#SBATCH --job-name=cvexp
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

per_node=${PROCESSES_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
outputs=outputs
is_new=true
for argument in "$@"; do
    case $argument in
        tracking.folder=*) outputs=${argument#*=} ;;
        resume=*) is_new=false ;;
    esac
done
if $is_new; then
    folder=$outputs/runs/slurm-$SLURM_JOB_ID
    set -- "hydra.run.dir=$folder" "$@"
    if [ "$((SLURM_NNODES * per_node))" -gt 1 ]; then
        set -- trainer=ddp "$@"
    fi
    if [ -f "$folder/run_id" ]; then # the job was requeued
        set -- "$@" "resume=$(cat "$folder/run_id")"
    fi
fi

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
status=0
srun torchrun \
    --nnodes="$SLURM_NNODES" \
    --nproc-per-node="$per_node" \
    --rdzv-backend=c10d \
    --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}" \
    --rdzv-endpoint="$first:$((20000 + SLURM_JOB_ID % 10000))" \
    -m cvexp "$@" || status=$?
# A run that was told to stop, and did so before Slurm stopped the job, would count as failed.
if [ "$status" != 0 ] && $is_new && [ -f "$folder/stopped" ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
