#!/usr/bin/env bash
# A wrapper of the stable compiler, for RUSTC_WRAPPER: libFuzzer's coverage, and checks of arithmetic, in what reads bytes from outside.
set -euo pipefail

rustc=$1; shift
name=; before=
for argument in "$@"; do
  if [ "$before" = --crate-name ]; then name=$argument; fi
  before=$argument
done
case $name in
  harmonica | harmonica_fuzz | image | image_webp | png | safetensors | tokenizers | zip | zune_jpeg) ;;
  # The targets.
  atlas | c_interface | calibration | folder | pickle | router | schedule | spiece | state | text_chunk | tokenizer | torch) ;;
  *) exec "$rustc" "$@" ;;
esac
coverage=-Cllvm-args=-sanitizer-coverage
exec "$rustc" "$@" -Cpasses=sancov-module $coverage-level=4 $coverage-inline-8bit-counters $coverage-pc-table $coverage-trace-compares \
  -Cllvm-args=-simplifycfg-branch-fold-threshold=0 -Cdebug-assertions=on -Coverflow-checks=on -Cdebuginfo=1
