# Stages that are kept when they are finished: sourced by quickstart.sh and compare.sh, not run.

heading() { printf '\n== %s\n' "$*"; }

refuse() { echo "$(basename "$0" .sh): $*" >&2 && exit 2; }

stage() { # TITLE FOLDER COMMAND...: runs the command unless it has finished in this folder from the same inputs
    local title="$1" out="$2" began=$SECONDS inputs
    shift 2
    heading "$title"
    inputs="$(fingerprint "$out" "$@")"
    if [ ! -f "$out/finished" ]; then
        "$@"
        echo $((SECONDS - began)) >"$out/seconds"
        printf '%s\n' "$inputs" >"$out/finished"
        echo "   took $((SECONDS - began)) s"
    elif [ "$(cat "$out/finished")" = "$inputs" ]; then
        echo "   kept: $out is finished"
    else
        refuse "$out was made by another command, config, corpus or adapter (see $out/finished): delete it, or choose --name"
    fi
}

again() { # FOLDER COMMAND...: forgets that the folder is finished if it was made from other inputs; for what costs seconds
    local out="$1"
    shift
    [ "$(cat "$out/finished" 2>/dev/null)" = "$(fingerprint "$out" "$@")" ] || rm -f "$out/finished"
}

fingerprint() { # FOLDER COMMAND...: the command, and the checksums of what it reads; FOLDER is what it writes
    local out="$1" argument file
    shift
    printf '%s\n' "$*"
    for argument in "$@"; do
        case "$argument" in "$out" | "$out"/* | *.md) continue ;; esac
        for file in "$argument" "$argument"/{corpus.json,seed.json,adapter_model.safetensors,predictions.jsonl}; do
            case "$file" in
                *.yaml) [ ! -f "$file" ] || echo "$(sed 's/ *#.*//; /^$/d' "$file" | cksum) $file" ;; # comments may change
                # What was prepared, not from which copy: files that were moved or touched make the same clips.
                */corpus.json) [ ! -f "$file" ] || echo "$(grep -o '"clips_sha256": "[^"]*"' "$file") $file" ;;
                *) [ ! -f "$file" ] || cksum "$file" ;;
            esac
        done
    done
}
