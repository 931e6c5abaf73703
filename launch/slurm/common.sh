# Sourced by the job scripts beside it: environment, launcher, and the requeue before the time limit or a preemption.
# shellcheck shell=bash

activate_environment() {
    cd "$REPO"
    set +u  # modules and environments are not written for it
    if [ -n "$MODULES" ]; then
        # shellcheck disable=SC2086
        module load $MODULES
    fi
    if [ -n "$CONDA_ENV" ]; then
        # shellcheck disable=SC1091
        source "$(conda info --base)/etc/profile.d/conda.sh"
        conda activate "$CONDA_ENV"
    fi
    if [ -n "$VENV" ]; then
        # shellcheck disable=SC1091
        source "$VENV/bin/activate"
    fi
    set -u
    if ! command -v accelerate >/dev/null; then
        echo "accelerate is not in PATH: set VENV, CONDA_ENV or MODULES (see the top of the job script)" >&2
        exit 2
    fi
    # What DeepSpeed and Triton compile goes to each node's own disk: in a shared home one lock holds up all nodes.
    local compiled="${TMPDIR:-/tmp}/lmm_ecr-$(id -u)"
    export TORCH_EXTENSIONS_DIR="${TORCH_EXTENSIONS_DIR:-$compiled/torch_extensions}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$compiled/triton}"
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-4}"
    export PYTHONUNBUFFERED=1  # the last words of a process that dies reach the log
}

# Sets the array `launcher`. One task per node starts accelerate, which starts PROCESSES_PER_NODE processes there.
# The single quotes keep SLURM_NODEID for the task. USR1 is ignored by the launcher and everything below it except the
# training and prediction processes themselves, which install their own handler: see launch/README.md.
build_launcher() {
    local nodes="${SLURM_JOB_NUM_NODES:-1}"
    local processes=$((nodes * PROCESSES_PER_NODE))
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
    MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
    launcher=(accelerate launch --num_machines "$nodes" --num_processes "$processes"
        --main_process_ip "$MASTER_ADDR" --main_process_port "$MASTER_PORT"
        --mixed_precision no --dynamo_backend no)  # precision is the recipe's business (--bf16)
    if [ "$processes" -gt 1 ]; then
        launcher+=(--multi_gpu)
    fi
    # shellcheck disable=SC2016
    step=(srun --ntasks="$nodes" --ntasks-per-node=1 --label --kill-on-bad-exit=1
        bash -c 'trap "" USR1; exec "${@:1:2}" --machine_rank "$SLURM_NODEID" "${@:3}"' launch)
    echo "job $SLURM_JOB_ID, run $((${SLURM_RESTART_COUNT:-0} + 1)), $(date -Is): $processes processes on $nodes nodes" \
        "($SLURM_JOB_NODELIST), rendezvous $MASTER_ADDR:$MASTER_PORT"
}

# Runs its arguments (a program for the launcher) and, when SIGUSR1 comes ahead of the end of the job's time, has it save and
# stop, and puts the job back into the queue.
run_and_requeue() {
    local command=("${step[@]}" "${launcher[@]}" "$@")
    printf 'runs:'
    printf ' %q' "${launcher[@]}" "$@"
    printf '\n'
    local stop_at=0 status=0
    trap 'stop_at=${stop_at/#0/$((SECONDS + GRACE_SECONDS))}; echo "SIGUSR1 at $(date -Is): asking the program to save and stop"' USR1
    "${command[@]}" &
    local pid=$!
    while :; do
        if [ "$stop_at" -eq 0 ]; then
            wait "$pid" && status=0 || status=$?
            if [ "$stop_at" -eq 0 ] || [ "$status" -ne 138 ]; then  # 138: the wait was interrupted by USR1
                break
            fi
        elif [ "$SECONDS" -ge "$stop_at" ]; then
            echo "the program has not stopped within $GRACE_SECONDS s; it will go on from its last checkpoint"
            status=1
            break
        elif kill -USR1 "$pid" 2>/dev/null; then  # again and again: while a model is loading it is ignored
            sleep 2
        else
            wait "$pid" && status=0 || status=$?
            break
        fi
    done
    if [ "$stop_at" -ne 0 ] && [ "$status" -ne 0 ]; then
        echo "requeueing job $SLURM_JOB_ID at $(date -Is)"
        if scontrol requeue "$SLURM_JOB_ID"; then
            sleep 60  # SLURM ends this script within moments
        fi
    fi
    exit "$status"
}
