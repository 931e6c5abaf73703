#!/bin/bash
# Submits the winning system of the VQualA 2025 engagement challenge: three VideoLLaMA2.1-AV runs (other seeds; 8, 8 and 5
# frames) and one Qwen2.5-VL run as parallel jobs, a prediction job behind each, and the ensemble behind all four.
#
#   TRAIN_DATA=train.csv EVAL_DATA=val.csv TEST_DATA=test.csv VIDEO_DIR=videos TEST_VIDEO_DIR=test_videos \
#       launch/slurm/ecnu_sjtu.sh --partition=gpu --account=me
#
# Arguments are passed on to every sbatch. The last line printed is the id of the ensemble's job. A job that fails takes the
# jobs behind it out of the queue; submit again and finished work is not repeated: trainings go on from their last checkpoint,
# predictions with the rows that are missing, and a finished prediction is recognised while model, table and clips are the
# same. After a change of those set PREDICT=--force.
set -euo pipefail

REPO="${REPO:-$PWD}"                                          # the clone of this repository
OUTPUT="${OUTPUT:-runs/ecnu_sjtu}"                            # runs, predictions and the submission go here
TRAIN_DATA="${TRAIN_DATA:?the training table}"
EVAL_DATA="${EVAL_DATA:?the validation table}"
TEST_DATA="${TEST_DATA:?the table to score}"
VIDEO_DIR="${VIDEO_DIR:?the folder of the training and validation clips}"
TEST_VIDEO_DIR="${TEST_VIDEO_DIR:-$VIDEO_DIR}"
TRAIN_RESOURCES="${TRAIN_RESOURCES:---nodes=1 --gpus-per-node=8 --time=24:00:00}"
PREDICT_RESOURCES="${PREDICT_RESOURCES:---nodes=1 --gpus-per-node=1 --time=04:00:00}"
VIDEOLLAMA2="${VIDEOLLAMA2:---config recipes/configs/videollama2_1_7b_av.yaml --deepspeed deepspeed_configs/zero2.json}"
QWEN="${QWEN:---config recipes/configs/qwen2_5_vl_7b.yaml --deepspeed deepspeed_configs/zero2.json}"
PREDICT="${PREDICT:-}"                                        # more arguments of `lmm-ecr predict`

export REPO
cd "$REPO"
mkdir -p "$OUTPUT/logs"
common=("$@" --parsable --output="$OUTPUT/logs/%x-%j.log")
after=(--kill-on-invalid-dep=yes)
predictions=()
jobs=""

submit() {  # name, recipe, settings, further recipe arguments
    local name="$1" recipe="$2" settings="$3" train predict
    shift 3
    # Settings are lists of words.
    # shellcheck disable=SC2086
    train=$(sbatch "${common[@]}" $TRAIN_RESOURCES --job-name="train-$name" launch/slurm/train.sbatch "$recipe" $settings \
        --train_data "$TRAIN_DATA" --eval_data "$EVAL_DATA" --video_dir "$VIDEO_DIR" \
        --output_dir "$OUTPUT/$name" --run_name "$name" "$@")
    # shellcheck disable=SC2086
    predict=$(sbatch "${common[@]}" $PREDICT_RESOURCES --job-name="predict-$name" "${after[@]}" \
        --dependency="afterok:$train" launch/slurm/predict.sbatch --model "$OUTPUT/$name" --data "$TEST_DATA" \
        --video-dir "$TEST_VIDEO_DIR" --output "$OUTPUT/predictions/$name.csv" $PREDICT)
    echo "$name: training $train, prediction $predict"
    predictions+=("$OUTPUT/predictions/$name.csv")
    jobs="$jobs:$predict"
}

submit videollama2_8frames_seed1 recipes/videollama2_sft.py "$VIDEOLLAMA2" --num_frames 8 --seed 1
submit videollama2_8frames_seed2 recipes/videollama2_sft.py "$VIDEOLLAMA2" --num_frames 8 --seed 2
submit videollama2_5frames recipes/videollama2_sft.py "$VIDEOLLAMA2" --num_frames 5 --seed 3
submit qwen2_5_vl recipes/qwen_sft.py "$QWEN" --num_frames 8 --seed 4

ensemble=$(sbatch "${common[@]}" --job-name=ensemble "${after[@]}" --dependency="afterok$jobs" launch/slurm/run.sbatch \
    lmm-ecr ensemble "${predictions[@]}" --output "$OUTPUT/submission.csv" --force)
echo "ensemble: $ensemble, writes $OUTPUT/submission.csv"
echo "$ensemble"
