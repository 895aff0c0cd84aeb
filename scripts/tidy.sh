#!/bin/bash
# Rules of this repository that no other tool checks. Prints every breach, and fails if there is one.
set -euo pipefail
cd "$(dirname "$0")/.."

breaches=0
breach() {
  echo "tidy: $1" >&2
  breaches=$((breaches + 1))
}
# Tracked files that exist, and new ones that are not ignored.
files() { git ls-files --cached --others --exclude-standard -- "$@" | sort -u | while read -r f; do [[ -f $f ]] && echo "$f"; done; }

# A file is a chapter: over 800 lines it holds two ideas.
while read -r file; do
  lines=$(wc -l <"$file")
  ((lines <= 800)) || breach "$file has $lines lines; 800 are allowed: split it"
done < <(files '*.rs' '*.lua' '*.sh')

# Nothing may depend on one machine, or on where somebody fetches packages.
machine='(^|[^A-Za-z0-9_.~$}-])/(home|root|Users|tmp|work|mnt)/'
while IFS= read -r hit; do
  breach "a path of one machine: $hit"
done < <(files | grep -vxE 'scripts/tidy\.sh|LICENSE' | xargs -d '\n' grep -InE "$machine" || true)
while IFS= read -r hit; do
  breach "a package registry's host: $hit"
done < <(files | grep -vxE 'scripts/tidy\.sh' | xargs -d '\n' grep -IniE 'artifactory|verdaccio|nexus/repository' || true)

# Everything is bounded, but for what tests hand in themselves.
while IFS= read -r hit; do
  breach "an unbounded channel: $hit"
done < <(files '*.rs' | grep -v '/tests/' | xargs -d '\n' grep -nE 'unbounded_channel|mpsc::unbounded' || true)

# Half-done work is an issue, not a comment.
while IFS= read -r hit; do
  breach "a note to ourselves: $hit"
done < <(files '*.rs' '*.sh' '*.lua' | grep -vxE 'scripts/tidy\.sh' | xargs -d '\n' grep -nE '\b(TODO|FIXME|XXX|HACK)\b' || true)

if ((breaches)); then
  echo "tidy: $breaches breaches" >&2
  exit 1
fi
echo "tidy: $(files | wc -l) files are in order"
