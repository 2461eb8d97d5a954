#!/usr/bin/env bash
# The main job, end to end: votes in, a trained and honestly scored model out. No GPU and no model hub needed.
#
#   bash launch/quickstart.sh                                           the embedded corpus, made on the spot
#   bash launch/quickstart.sh --corpus crema_d --root path/to/CREMA-D   human speech and human votes, fold 0 of 5
#   bash launch/quickstart.sh --corpus crema_d --root DIR --folds 5     every speaker is held out once; folds are pooled
#
#   --fold F       this fold only (default 0)        --folds N   folds 0 to N-1
#   --name NAME    the run's folder is runs/NAME (default: the corpus's name)
#   --readouts R   what the last two are asked (default label,verbalized; guided_mean asks for eight answers a clip)
#   --readme       write the results table into README.md
#
# What is finished is kept: run it again after an interruption and it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

main() {
    read_options "$@"
    local began=$SECONDS
    heading "Environment"
    source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
    cd "$EQUIVOX_HOME"
    export TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

    local data="data/$corpus" model=models/seed runs="runs/$name" fold run evaluations=()
    heading "Corpus: clips and their votes"
    equivox prepare "$corpus" ${root:+--root "$root"} --out "$data"
    heading "Model: Whisper's encoder, a projector, SmolLM2"
    equivox seed --out "$model"

    # The embedded corpus has a fifth of the clips: more epochs over them, and fewer steps of GRPO.
    local sft=() grpo=()
    [ "$corpus" != studio ] || { sft=(--num_train_epochs 5) && grpo=(--max_steps 5 --save_steps 5); }
    for fold in $folds; do
        run="$runs/fold$fold"
        stage "Fold $fold, SFT: answers, and the KL to the votes" "$run/sft" \
            equivox sft --config launch/configs/sft.yaml --model_name_or_path "$model" --data "$data" --fold "$fold" \
            --output_dir "$run/sft" ${sft[@]+"${sft[@]}"}
        # A pass over the clips in which the Shares are what the label readout says by now: docs/train.md, "Own shares".
        stage "Fold $fold, SFT of own shares: Shares as the label readout has them" "$run/own" \
            equivox sft --config launch/configs/sft.yaml --model_name_or_path "$model" --data "$data" --fold "$fold" \
            --adapter "$run/sft" --share_target readout --train_projector false --num_train_epochs 1 \
            --learning_rate 2e-4 --warmup_steps 5 --output_dir "$run/own"
        stage "Fold $fold, GRPO: sampled answers rewarded for closeness to the votes" "$run/grpo" \
            equivox grpo --config launch/configs/grpo.yaml --model_name_or_path "$model" --data "$data" --fold "$fold" \
            --adapter "$run/own" --output_dir "$run/grpo" ${grpo[@]+"${grpo[@]}"}
        # The linear probe hears the same frozen encoder in every system, so one evaluation runs it, and the controls.
        # Untrained, the model writes no answers: only its label readout is worth the wait.
        evaluate base --no-probe --controls none --readouts label
        evaluate sft --adapter "$run/sft" --no-probe --controls none --readouts label,verbalized
        evaluate sft+own --adapter "$run/own" --no-probe --controls none --readouts "$readouts"
        evaluate grpo --adapter "$run/grpo" --readouts "$readouts"
    done

    local score=(equivox score "${evaluations[@]}" --out "$runs/report" ${readme:+--markdown README.md})
    # A report costs seconds: with more folds, or a fold made anew, it is written again.
    again "$runs/report" "${score[@]}"
    stage "Report: systems, baselines and human reference points" "$runs/report" "${score[@]}"
    farewell $((SECONDS - began))
}

evaluate() { # SYSTEM [OPTIONS]: the fold's held-out speakers, heard by one system
    local system="$1" out="$run/eval_$1"
    shift
    local evaluate=(equivox evaluate --model "$model" "$@" --data "$data" --fold "$fold" --name "$system" --out "$out")
    # It goes on by itself: answers that are there stay, those to other readouts are added.
    again "$out" "${evaluate[@]}"
    stage "Fold $fold, evaluation of $system on speakers never trained on" "$out" "${evaluate[@]}"
    evaluations+=("$out") # in the order of training: the report compares later with earlier and opens with the last
}

read_options() {
    corpus=studio root="" folds=0 name="" readouts=label,verbalized readme=""
    while [ $# -gt 0 ]; do
        case "$1" in
            --corpus) corpus="${2:?--corpus takes studio or crema_d}" && shift 2 ;;
            --root) root="${2:?--root takes the folder of the corpus}" && shift 2 ;;
            --fold) folds="${2:?--fold takes a number from 0 to 4}" && shift 2 ;;
            --folds) folds="$(seq -s ' ' 0 $((${2:?--folds takes a number from 1 to 5} - 1)))" && shift 2 ;;
            --name) name="${2:?--name takes a name for the run}" && shift 2 ;;
            --readouts) readouts="${2:?--readouts takes names of readouts}" && shift 2 ;;
            --readme) readme=yes && shift ;;
            -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit 0 ;;
            *) refuse "unknown option $1; --help lists them" ;;
        esac
    done
    name="${name:-$corpus}"
    case "$corpus" in
        studio) [ -z "$root" ] || refuse "the studio corpus is made on the spot: --root belongs to --corpus crema_d" ;;
        crema_d) [ -d "$root" ] || refuse "--corpus crema_d needs --root, the folder with AudioWAV and processedResults" ;;
        *) refuse "unknown corpus $corpus: studio or crema_d" ;;
    esac
    [ -z "$root" ] || root="$(cd "$root" && pwd -P)"
}

farewell() {
    cat <<END

== Done in $(($1 / 60)) min $(($1 % 60)) s
Report:     $EQUIVOX_HOME/$runs/report/report.html
Scores:     $EQUIVOX_HOME/$runs/report/scores.json
Hear one:   .venv/bin/equivox predict YOUR.wav --model $model --adapter $run/grpo
Go on:      change launch/configs/sft.yaml or grpo.yaml and run again with --name NEW
END
    if [ "$corpus" = studio ]; then
        cat <<END
The corpus was synthetic speech with simulated raters: it shows that everything works, not how people are heard.
Human votes: git clone https://github.com/CheyneyComputerScience/CREMA-D (git-lfs), then
            bash launch/quickstart.sh --corpus crema_d --root CREMA-D
END
    fi
}

main "$@"
