#!/usr/bin/env bash
# The licences of the packages that the program for a target is made of, with their texts: `.github/licences.sh TARGET`. Needs jq.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=$(cargo tree --locked --target "$1" --edges normal --prefix none --format '{p}' | awk '{ print $1, $2 }' | sort -u)
echo "harmonica is made of the following packages."
cargo metadata --format-version 1 --locked --filter-platform "$1" |
  jq -r --arg packages "$packages" '
    ($packages | split("\n") | map({ (rtrimstr("\r")): true }) | add) as $used
    | .packages[] | select(.source and $used[.name + " v" + .version])
    | [.name, .version, .license // "see below", (.manifest_path | gsub("\\\\"; "/"))] | @tsv' |
  sort -u |
  while IFS=$'\t' read -r name version licence manifest; do
    printf '\n======== %s %s: %s\n' "$name" "$version" "$licence"
    folder=$(dirname "${manifest%$'\r'}")
    find "$folder" -maxdepth 2 -type f \( -iname 'licen[cs]e*' -o -iname 'copying*' -o -iname 'notice*' -o -iname 'copyright*' \) | sort |
      while read -r file; do
        printf '\n-------- %s\n\n' "${file#"$folder"/}"
        cat "$file"
      done
  done
