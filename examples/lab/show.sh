#!/usr/bin/env bash
# Demonstrate a lab: build it, show it, inject faults, undo them, take it down. usage: show.sh [FILE]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
netplug=${NETPLUG:-$here/../../.venv/bin/netplug}
lab=(--lab "lab-demo-$$")
file=$(mktemp -d)/${lab[1]}.yaml
# Use a name of its own, so that it does not conflict with a running lab.
sed '/^name:/d' "${1:-$here/three-hosts.yaml}" >"$file"
trap '"$netplug" lab down "${lab[@]}" 2>/dev/null || true; rm -r "$(dirname "$file")"' EXIT

say() { printf '\n== %s\n' "$*"; }

say "build: $(basename "${1:-three-hosts.yaml}")"
"$netplug" lab up "$file"
say "draw (Mermaid)"
"$netplug" lab graph "${lab[@]}"
first=$("$netplug" lab status "${lab[@]}" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["hosts"][0]["name"])')
say "kill the daemon of host $first: traffic continues, names fail there"
"$netplug" lab fault kill "$first" "${lab[@]}"
"$netplug" lab status "${lab[@]}" || true
say "disconnect host $first from the switch"
"$netplug" lab fault cut "$first" "${lab[@]}"
"$netplug" lab status "${lab[@]}" || true
say "undo the faults"
"$netplug" lab fault mend "${lab[@]}"
# Names work again once the daemon has published its containers; each status takes a while.
timeout 30 bash -c 'until "$@" >/dev/null; do :; done' until "$netplug" lab status "${lab[@]}"
"$netplug" lab status "${lab[@]}"
say "take the lab down"
"$netplug" lab down "${lab[@]}"
trap - EXIT
rm -r "$(dirname "$file")"
say "nothing is left"
