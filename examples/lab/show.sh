#!/usr/bin/env bash
# A lab as a demonstration: build it, show it, break it, mend it, take it down. FILE is another lab than the default.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
netplug=${NETPLUG:-$here/../../.venv/bin/netplug}
lab=(--lab "lab-demo-$$")
file=$(mktemp -d)/${lab[1]}.yaml
# A name of its own, so that it does not meet a lab that is up.
sed '/^name:/d' "${1:-$here/three-hosts.yaml}" >"$file"
trap '"$netplug" lab down "${lab[@]}" 2>/dev/null || true; rm -r "$(dirname "$file")"' EXIT

say() { printf '\n== %s\n' "$*"; }

say "build it: $(basename "${1:-three-hosts.yaml}")"
"$netplug" lab up "$file"
say "draw it (Mermaid)"
"$netplug" lab graph "${lab[@]}"
first=$("$netplug" lab status "${lab[@]}" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["hosts"][0]["name"])')
say "kill the daemon of host $first: traffic goes on, names are not answered there"
"$netplug" lab fault kill "$first" "${lab[@]}"
"$netplug" lab status "${lab[@]}" || true
say "cut host $first off the switch"
"$netplug" lab fault cut "$first" "${lab[@]}"
"$netplug" lab status "${lab[@]}" || true
say "mend"
"$netplug" lab fault mend "${lab[@]}"
# Names are back when the daemon has told its containers'; each status takes a while of its own.
timeout 30 bash -c 'until "$@" >/dev/null; do :; done' until "$netplug" lab status "${lab[@]}"
"$netplug" lab status "${lab[@]}"
say "take it down"
"$netplug" lab down "${lab[@]}"
trap - EXIT
rm -r "$(dirname "$file")"
say "nothing is left of it"
