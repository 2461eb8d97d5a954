#!/usr/bin/env bash
# Does each stage of training help? From the untrained model to GRPO with gold, over seeds, on the same held-out clips.
#
#   bash launch/compare.sh --corpus crema_d --root path/to/CREMA-D     human votes, three seeds
#   bash launch/compare.sh --seeds "1" --limit 20 --steps 2            the embedded corpus, to see every stage work
#
#   --seeds "S ..."      seeds of training (default "1 2 3")     --fold F    whose speakers are held out (default 0)
#   --limit N            evaluate so many test clips only        --steps N   shorten every training to N steps
#   --ablate STAGE.KEY=V1,V2    also train a stage with --KEY V1, then V2; repeatable. STAGE is sft, think, dpo, grpo, or
#                        pairs: other pairs, and DPO on them
#   --name NAME          the folder is runs/NAME (default: compare_CORPUS)
#   --page FILE.md       write the page here, its plot beside it (default: results.md in the folder)
#   --with DIR           compare with evaluations of other seeds too, as `equivox unpack --out DIR` makes them
#
# What is finished is kept: run it again after an interruption, or with more seeds, and it goes on where it stopped.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/stages.sh"

main() {
    read_options "$@"
    heading "Environment"
    source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
    cd "$EQUIVOX_HOME"
    export TOKENIZERS_PARALLELISM=false MPLBACKEND=Agg

    check_ablations

    data="data/$corpus" model=models/seed runs="runs/$name" evaluations=() swaps=()
    traces="$runs/traces/traces.parquet"
    heading "Corpus: clips and their votes"
    equivox prepare "$corpus" ${root:+--root "$root"} --out "$data"
    heading "Model: Whisper's encoder, a projector, SmolLM2"
    equivox seed --out "$model"
    stage "Traces: reasoning that was checked against the sound" "$runs/traces" \
        equivox prepare cot --data "$data" --out "$traces"

    # Untrained, the model writes no answers: only its label readout is worth the wait.
    run="$runs"
    evaluate base label
    for seed in $seeds; do
        run="$runs/seed$seed"
        reinforce=(--level think --speakers 0.7:1 --adapter "$run/think" --max_completion_length 320 --kl_weight 0
            "${batch[@]}" --rewards rewards.distribution:closeness rewards.format:format rewards.grounding:grounding
            --reward_weights 1.0 0.2 0.0)
        # From answers to reasoning: a trace is long, and few steps of it leave Shares that do not add up.
        teach=(--speakers 0:0.7 --level think --traces "$traces" --adapter "$run/sft"
            --num_train_epochs 6 --learning_rate 6e-4)
        follow=(--level think --adapter "$run/think")
        # SFT hears some speakers; pairs and rollouts are about the others, whom it has not learned by heart.
        train sft sft --speakers 0:0.7
        train think sft "${teach[@]}"
        # The same weights, asked to answer at once.
        evaluate "think+no_think@$seed" label,verbalized --adapter "$run/think"
        # What the others' votes bring without pairs or rewards: a gain of DPO or GRPO may be no more than that.
        train think+sft sft --speakers 0.7:1 --level think --traces "$traces" --adapter "$run/think"
        prefer think+dpo pairs
        train think+grpo grpo "${reinforce[@]}"
        train think+grpo+gold grpo "${reinforce[@]}" --gold_traces "$traces" --share_parts 4 --share_floor 0.08
        train think+grpo+kl grpo "${reinforce[@]}" --kl_weight 0.2
        ablate
        swap_traces
        write_page # after every seed, of the seeds so far
    done
    printf '\n== Done\nPage: %s\n' "$page"
}

write_page() {
    local compare=(equivox compare "${evaluations[@]}" ${elsewhere[@]+"${elsewhere[@]}"} --data "$data"
        --swaps "${swaps[@]}" --out "$runs/comparison" --markdown "$page" --made-by "bash launch/compare.sh $given")
    again "$runs/comparison" "${compare[@]}"
    stage "Comparison: which stages help, which only sharpen" "$runs/comparison" "${compare[@]}"
}

train() { # NAME COMMAND OPTIONS...: one stage of training with this seed, then its evaluation
    local name="$1" command="$2" asked=()
    shift 2
    # Options after the config win over it, and the last of two that are alike wins.
    stage "Seed $seed: $name" "$run/$name" \
        equivox "$command" --config "launch/configs/$command.yaml" --model_name_or_path "$model" --data "$data" \
        --fold "$fold" --seed "$seed" ${short[@]+"${short[@]}"} "$@" \
        --output_dir "$run/$name"
    [[ " $* " != *" --level think "* ]] || asked=(--level think --max-new-tokens 320)
    evaluate "$name@$seed" label,verbalized --adapter "$run/$name" ${asked[@]+"${asked[@]}"}
}

evaluate() { # SYSTEM READOUTS OPTIONS...: the fold's held-out speakers, heard by one system
    local system="$1" readouts="$2" out="$run/eval_${1%@*}"
    shift 2
    stage "Evaluation of $system on speakers never trained on" "$out" \
        equivox evaluate --model "$model" "$@" --data "$data" --fold "$fold" --name "$system" --out "$out" \
        --readouts "$readouts" --controls none --dev-readouts none --no-probe --dtype bfloat16 ${some[@]+"${some[@]}"}
    evaluations+=("$out") # in the order of training: a stage is compared with the one before it
}

prefer() { # NAME PAIRS OPTIONS...: pairs of answers into the folder PAIRS, then DPO on them
    local name="$1" pairs="$run/$2"
    shift 2
    # Sampled as warmly as grpo.yaml's rollouts: hotter, most pairs tell no more than which sum is 1.
    stage "Seed $seed: pairs of answers" "$pairs" \
        equivox prepare preferences --data "$data" --fold "$fold" --model "$model" --adapter "$run/think" \
        --speakers 0.7:1 --level think --kinds own contrast grounding --traces "$traces" \
        --share-parts 4 --share-floor 0.08 --temperature 0.7 --max-new-tokens 320 --dtype bfloat16 --seed "$seed" \
        ${few[@]+"${few[@]}"} "$@" --out "$pairs/pairs.parquet"
    train "$name" dpo "${follow[@]}" --pairs "$pairs/pairs.parquet"
}

check_ablations() { # before hours of training, not after them
    local one of key command
    for one in ${ablations[@]+"${ablations[@]}"}; do
        read -r of key _ <<<"$one"
        case "$of" in think) command=sft ;; pairs) command="prepare preferences" ;; *) command="$of" ;; esac
        equivox $command --help | grep -qE -- "--$key( |,|\$)" || refuse "--ablate $key: equivox $command has no --$key"
    done
}

ablate() { # a stage with each value of --ablate, every one on top of it
    local one of key values value
    for one in ${ablations[@]+"${ablations[@]}"}; do
        read -r of key values <<<"$one"
        for value in ${values//,/ }; do
            case "$of" in
                dpo) train "think+dpo+$key=$value" dpo "${follow[@]}" --pairs "$run/pairs/pairs.parquet" "--$key" "$value" ;;
                pairs) prefer "think+dpo+$key=$value" "pairs+$key=$value" "--$key" "$value" ;;
                grpo) train "think+grpo+$key=$value" grpo "${reinforce[@]}" "--$key" "$value" ;;
                think) train "think+$key=$value" sft "${teach[@]}" "--$key" "$value" ;;
                sft) train "sft+$key=$value" sft --speakers 0:0.7 "--$key" "$value" ;;
            esac
        done
    done
}

swap_traces() {
    stage "Seed $seed: does a trace alone fix the answer?" "$run/swaps" \
        equivox diagnose --model "$model" --adapter "$run/think" --data "$data" --fold "$fold" --traces "$traces" \
        --dtype bfloat16 --out "$run/swaps/swaps.json" ${some[@]+"${some[@]}"}
    swaps+=("$run/swaps/swaps.json")
}

absolute() { case "$1" in /*) echo "$1" ;; *) echo "$PWD/$1" ;; esac }

read_options() {
    given="$*" corpus=studio root="" seeds="1 2 3" fold=0 name="" page=""
    short=() some=() few=() ablations=() elsewhere=()
    # grpo.yaml's 64 answers a step, of fewer at once: answers that think take 16 GB in its batches of 32.
    batch=(--per_device_train_batch_size 16 --gradient_accumulation_steps 4)
    while [ $# -gt 0 ]; do
        case "$1" in
            --corpus) corpus="${2:?--corpus takes studio or crema_d}" && shift 2 ;;
            --root) root="${2:?--root takes the folder of the corpus}" && shift 2 ;;
            --seeds) seeds="${2:?--seeds takes numbers}" && shift 2 ;;
            --fold) fold="${2:?--fold takes a number from 0 to 4}" && shift 2 ;;
            --limit) some=(--limit "${2:?--limit takes a number of clips}") && shift 2 ;;
            --steps)
                short=(--max_steps "${2:?--steps takes a number}" --save_steps "$2" --warmup_steps 0)
                batch=(--num_generations 4 --per_device_train_batch_size 8 --gradient_accumulation_steps 1)
                few=(--limit 16 --samples 2) && shift 2
                ;;
            --ablate)
                # A value becomes part of a system's name.
                [[ "${2-}" =~ ^(sft|think|pairs|dpo|grpo)\.([A-Za-z_]+)=([^/,@]+(,[^/,@]+)*)$ ]] ||
                    refuse "--ablate ${2-}: expected STAGE.KEY=VALUE,VALUE of sft, think, pairs, dpo or grpo, values without / or @"
                ablations+=("${BASH_REMATCH[*]:1:3}") && shift 2 # the stage, the key, the values
                ;;
            --name) name="${2:?--name takes a name for the run}" && shift 2 ;;
            # Files are named from the folder that the user is in.
            --page) page="$(absolute "${2:?--page takes a file}")" && shift 2 ;;
            --with)
                ls -d "${2:?--with takes a folder}"/*/*/evaluation.json >/dev/null 2>&1 ||
                    refuse "--with $2: expected a folder that equivox unpack wrote"
                for run in "$(absolute "$2")"/*/*/; do elsewhere+=("${run%/}"); done
                shift 2
                ;;
            -h | --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p;}' "${BASH_SOURCE[0]}" && exit 0 ;;
            *) refuse "unknown option $1; --help lists them" ;;
        esac
    done
    case "$corpus" in
        studio) [ -z "$root" ] || refuse "the studio corpus is made on the spot: --root belongs to --corpus crema_d" ;;
        crema_d) [ -d "$root" ] || refuse "--corpus crema_d needs --root, the folder with AudioWAV and processedResults" ;;
        *) refuse "unknown corpus $corpus: studio or crema_d" ;;
    esac
    given="${given/--root $root/--root CREMA-D}" # the page names no folder of this machine
    [ -z "$root" ] || root="$(cd "$root" && pwd -P)"
    name="${name:-compare_$corpus}"
    page="${page:-runs/$name/results.md}"
}

main "$@"
