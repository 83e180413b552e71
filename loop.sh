#!/bin/sh
# The outer loop of Sim2SG, Algorithm 1 of Prakash et al. 2021. `make loop` runs it, and `make -n loop`
# prints its commands.
#
#   make loop ENV=clevr PRESET=quick SEED=0 ITERATIONS=2 TARGET=/any/folder OUT=runs/clevr
#
# Data sets go to OUT/data, each row of the table to a folder of its own beside it. A stage is skipped if
# its result is there and not older than its inputs: an interrupted loop continues where it stopped.
# Paths are relative to the folder of this file.
# shellcheck disable=SC3013  # every sh has test -nt
set -eu
cd "$(dirname "$0")"

# --- options: variables of make or of the environment ----------------------------------------------

ENV=${ENV-clevr}
PRESET=${PRESET-quick}
SEED=${SEED-0}
# A folder of images, ideally with train/ and a labeled test/ or val/. Without it, a stand-in is
# rendered from DOMAIN.
TARGET=${TARGET-}
DOMAIN=${DOMAIN-target}
# paper: the source as in the paper; strong: everything that a scene graph does not hold is randomized,
# and colors are augmented.
PROTOCOL=${PROTOCOL-paper}
OUT=${OUT-runs/$ENV}
# For a KITTI TARGET. paper: the paper's camera, 90 degrees wide; empty: each image's own calib/.
CAMERA=${CAMERA-}
DEVICE=${DEVICE-auto}
# For every train.py, for instance --scratch where ImageNet weights are not available.
TRAIN_OPTIONS=${TRAIN_OPTIONS-}
# For every synthesize.py that lifts graphs, for instance --refine.
LIFT_OPTIONS=${LIFT_OPTIONS-}

python=${RUN-.venv/bin/python}
dry_run=${1-}

fail() {
    echo "Error: $*" >&2
    exit 2
}

# Wrong options are reported now, not after the first hour.
case $PRESET in quick | paper) [ -f "envs/$ENV.py" ] ;; *) false ;; esac ||
    fail "ENV=$ENV PRESET=$PRESET: expected a file of envs/ without its .py, and quick or paper"
echo "$PROTOCOL,$CAMERA,$SEED,${ITERATIONS-1}" |
    grep -Eqx '(paper|strong),(|calib|paper),[0-9]+,[1-9][0-9]*' ||
    fail "PROTOCOL=$PROTOCOL CAMERA=$CAMERA SEED=$SEED ITERATIONS=${ITERATIONS-}:" \
        "expected paper or strong, nothing or calib or paper, a whole number, and one from 1 on"
[ -z "$TARGET" ] || [ -d "$TARGET" ] ||
    fail "TARGET=$TARGET: no such folder, expected one of images"

# Numbers of the environment's preset. Each can be given as a variable instead.
if [ -z "$dry_run" ] || command -v "$python" >/dev/null; then
    numbers=$("$python" -m envs "$ENV" "$PRESET")
else
    echo "# .venv is not built yet: numbers are shown by their names, and a single iteration"
    numbers="ITERATIONS=1"
fi
number() {
    echo "$numbers" | sed -n "s/^$1=//p" | grep . || echo "$1"
}
given=  # those that were given belong to the options of OUT
for name in SOURCE_IMAGES TARGET_IMAGES LIFTED_IMAGES START_STEPS STEPS; do
    value=$(printenv "$name" || true)
    given="$given${value:+ $name=$value}"
done
: "${SOURCE_IMAGES:=$(number SOURCE_IMAGES)}" # random images of the source domain
: "${TARGET_IMAGES:=$(number TARGET_IMAGES)}" # images of the stand-in
: "${LIFTED_IMAGES:=$(number LIFTED_IMAGES)}" # images of one iteration
: "${START_STEPS:=$(number START_STEPS)}"     # training steps of the first network
: "${STEPS:=$(number STEPS)}"                 # training steps of each row that is fine-tuned from it
: "${ITERATIONS:=$(number ITERATIONS)}"

# --- folders ---------------------------------------------------------------------------------------

if [ -z "$TARGET" ]; then
    kitti=
    [ "$ENV" != drive ] || kitti=/kitti # the stand-in for KITTI is read as a KITTI folder
    train_images=$OUT/data/target/train$kitti
    test_images=$OUT/data/target/test$kitti
    stand_in=$OUT/data/target/test/dataset.json
else
    train_images=$TARGET
    [ ! -d "$TARGET/train" ] || train_images=$TARGET/train
    test_images=$train_images
    for split in val test; do
        # labels of KITTI, with or without its training/, or of a data set of this project
        for labels in training/label_2 label_2 graphs.jsonl; do
            [ ! -e "$TARGET/$split/$labels" ] || test_images=$(dirname "$TARGET/$split/$labels")
        done
    done
    stand_in=
fi

# A folder holds one loop: other options would mix its old stages with new ones.
options="ENV=$ENV ITERATIONS=$ITERATIONS PRESET=$PRESET SEED=$SEED TARGET=$TARGET DOMAIN=$DOMAIN"
options="$options PROTOCOL=$PROTOCOL TRAIN_OPTIONS=$TRAIN_OPTIONS LIFT_OPTIONS=$LIFT_OPTIONS"
options="$options${CAMERA:+ CAMERA=$CAMERA}$given"
if [ -e "$OUT/data" ]; then
    made_with=$(cat "$OUT/options.txt")
    [ "$options" = "$made_with" ] ||
        fail "$OUT was made with $made_with; choose another OUT or remove it"
elif [ -z "$dry_run" ]; then
    mkdir -p "$OUT"
    echo "$options" >"$OUT/options.txt"
fi

# --- stages ----------------------------------------------------------------------------------------

# todo COMMENT RESULT INPUT...: is the RESULT missing or older than an INPUT? Prints the COMMENT if so.
planned="|" # results of stages that this run has begun: a dry run does not make them
todo() {
    comment=$1 result=$2 outdated=
    shift 2
    [ -e "$result" ] || outdated=yes
    for input in "$@"; do
        case $planned in *"|$input|"*) outdated=yes ;; esac
        [ ! "$input" -nt "$result" ] || outdated=yes
    done
    [ -n "$outdated" ] || return 1
    planned="$planned$result|"
    echo
    echo "# $comment"
}

# Print a command, and run it unless this is a dry run.
run() {
    line=
    for word in "$@"; do
        case $word in *[!-A-Za-z0-9_./,:=]*) word="'$word'" ;; esac
        line="$line$word "
    done
    echo "${line% }"
    [ -z "$dry_run" ] || return 0
    "$@" &
    child=$!
    wait "$child"
}

# A signal ends the running stage, too, which then resumes with the next `make loop`.
stop() {
    kill -s TERM "$child" 2>/dev/null && wait "$child"
    exit "$1"
}
child=
trap 'stop 130' INT
trap 'stop 143' TERM

synthesize() {
    run "$python" synthesize.py --env "$ENV" --preset "$PRESET" --device "$DEVICE" --overwrite "$@"
}

train() {
    augment=
    [ "$PROTOCOL" != strong ] || augment="--augment strong"
    # shellcheck disable=SC2086  # several options
    run "$python" train.py --preset "$PRESET" --device "$DEVICE" --seed "$SEED" --overwrite \
        $TRAIN_OPTIONS $augment "$@"
}

# evaluate ROW: scores of its network on the labeled target images.
evaluate() {
    if todo "Score $1 on the target." "$OUT/$1/metrics.json" "$OUT/$1/model.pt" "$stand_in"; then
        run "$python" evaluate.py --device "$DEVICE" --overwrite \
            --checkpoint "$OUT/$1/model.pt" --data "$test_images" \
            ${CAMERA:+--camera "$CAMERA"} --out "$OUT/$1"
    fi
}

# lift DATA NETWORK: label alignment. The network infers scene graphs on target images; they are lifted
# to 3-D and rendered in the source's look, with exact labels.
lift() {
    if todo "Iteration $k: infer scene graphs on the target with $2, lift and render them." \
        "$OUT/data/$1/dataset.json" "$OUT/$2/model.pt" "$stand_in"; then
        # shellcheck disable=SC2086  # several options
        synthesize --checkpoint "$OUT/$2/model.pt" --target "$train_images" \
            --num "$LIFTED_IMAGES" --seed "$SEED" --randomize "$PROTOCOL" \
            $LIFT_OPTIONS ${CAMERA:+--camera "$CAMERA"} --out "$OUT/data/$1"
    fi
}

# fine_tune ROW DATA [METHODS]: train on SDR and one more data set, and score. Every row begins with the
# start, not with the last iteration's network, so that all take the same number of steps. SDR stays in
# the mix, or a network forgets what the lifted scenes lack.
fine_tune() {
    row=$1 data=$2 methods=${3-}
    if todo "Train $row on random scenes and $data${methods:+ with $methods alignment}." \
        "$OUT/$row/model.pt" "$OUT/start/model.pt" "$OUT/data/$data/dataset.json"; then
        train --source "$OUT/data/sdr" --source "$OUT/data/$data" \
            ${methods:+--target "$train_images" --align "$methods"} \
            --init "$OUT/start/model.pt" --steps "$STEPS" --out "$OUT/$row"
    fi
    evaluate "$row"
}

# --- Algorithm 1 -----------------------------------------------------------------------------------

algorithm_1() { # a function, so that this file is read whole first: it may change in the hours to come
    if [ -z "$TARGET" ] && todo "A stand-in for real images: train, val and a labeled test." \
        "$stand_in"; then # the same for every SEED
        synthesize --domain "$DOMAIN" --num "$TARGET_IMAGES" --seed 1 \
            ${kitti:+--export kitti} --out "$OUT/data/target"
    fi

    if todo "Random scenes of the source: structured domain randomization (SDR)." \
        "$OUT/data/sdr/dataset.json"; then
        synthesize --num "$SOURCE_IMAGES" --seed "$SEED" --randomize "$PROTOCOL" \
            --out "$OUT/data/sdr"
    fi

    if todo "Train the first network on them." \
        "$OUT/start/model.pt" "$OUT/data/sdr/dataset.json"; then
        train --source "$OUT/data/sdr" --steps "$START_STEPS" --out "$OUT/start"
    fi
    evaluate start

    # The baseline: as many further steps and images as any other row, but the images are random.
    if todo "More random scenes, for the baseline." "$OUT/data/more/dataset.json"; then
        synthesize --num "$LIFTED_IMAGES" --seed "$((SEED + 1000))" --randomize "$PROTOCOL" \
            --out "$OUT/data/more"
    fi
    fine_tune sdr more

    label=start      # the network that infers the next iteration's graphs: without,
    appearance=start # and with appearance alignment (discriminator D_a)
    for k in $(seq 1 "$ITERATIONS"); do
        lift "label$k" "$label"
        fine_tune "label$k" "label$k"
        label=label$k

        data=label1 # both begin with the graphs that the start infers
        if [ "$k" -gt 1 ]; then
            data=appearance$k
            lift "$data" "$appearance"
        fi
        fine_tune "appearance$k" "$data" appearance
        appearance=appearance$k
    done

    # The last iteration once more, with prediction alignment (D_c), too.
    fine_tune full "$data" appearance,prediction

    echo
    echo "# The table of all rows."
    run "$python" evaluate.py --summary "$OUT"
    echo
    echo "# The same with curves and images, as one HTML page."
    run "$python" evaluate.py report "$OUT" ||
        echo "The page could not be made; the table above is complete." >&2
}

algorithm_1; exit
