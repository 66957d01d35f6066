#!/usr/bin/env bash
# Sets up what the tests need, and runs them. `--all` adds formatting, lints, documentation, and a second Vulkan driver where
# there is one: HARMONICA_SECOND_DRIVER names its .json (Debian: chromium-common, /usr/lib/chromium/vk_swiftshader_icd.json).
# `--web` builds the page instead, and uses it in Chromium; what it downloads and compiles stays in the cache folder.
set -euo pipefail
cd "$(dirname "$0")"

need() { echo "test.sh: $*" >&2; exit 1; }
case "${1:-}" in '' | --all | --web) ;; *) need "there is no $1: --all, --web or nothing" ;; esac

command -v cargo >/dev/null || need "cargo is missing: install Rust 1.95 or newer (rustup.rs)"

# The tests compare the CPU with a Vulkan device; Mesa's software driver is one on any machine.
has_vulkan() { compgen -G '/usr/share/vulkan/icd.d/*.json' >/dev/null || compgen -G '/etc/vulkan/icd.d/*.json' >/dev/null || [ "$(uname)" != Linux ]; }
packages=()
has_vulkan || packages+=(mesa-vulkan-drivers)
command -v cc >/dev/null || packages+=(build-essential)
if [ "${1:-}" = --all ]; then
  # What several processes for one job are built and started with.
  command -v mpicc >/dev/null || packages+=(libopenmpi-dev)
  command -v mpirun >/dev/null || packages+=(openmpi-bin)
  has_clang() { [ -n "${LIBCLANG_PATH:-}" ] || compgen -G '/usr/lib/*/libclang*.so*' >/dev/null || compgen -G '/usr/lib/llvm*/lib/libclang*.so*' >/dev/null || [ "$(uname)" != Linux ]; }
  has_clang || packages+=(libclang-dev)
fi
sudo=""; [ "$(id -u)" = 0 ] || sudo=sudo
has_apt() { command -v apt-get >/dev/null && $sudo apt-get update -q >/dev/null; }
install() { DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y -q --no-install-recommends "$@" >/dev/null; }
if [ ${#packages[@]} -gt 0 ]; then
  { has_apt && install "${packages[@]}"; } || need "install a C compiler, a Vulkan driver for your GPU or Mesa's software driver (lavapipe), and for --all OpenMPI and libclang: on Debian, ${packages[*]}"
fi
# A fast linker, where there is one, halves the time of a rebuild.
if ! command -v mold >/dev/null && command -v apt-get >/dev/null; then
  [ -z "$sudo" ] || sudo="sudo -n"
  install mold 2>/dev/null || true
fi
run=""; command -v mold >/dev/null && run="mold -run"

if [ "${1:-}" = --web ]; then
  has_chromium() { [ -n "${CHROMIUM:-}" ] || command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || [ "$(uname)" != Linux ]; }
  browser=()
  has_chromium || browser+=(chromium fonts-liberation)
  command -v node >/dev/null || browser+=(nodejs)
  command -v npm >/dev/null || browser+=(npm)
  if [ ${#browser[@]} -gt 0 ]; then
    { has_apt && install "${browser[@]}"; } || need "install Chromium, Node.js and npm: on Debian, ${browser[*]}"
  fi
  node -e 'process.exit(process.versions.node.split(".")[0] < 18 ? 1 : 0)' || need "Node.js $(node --version) is too old: install 18 or newer"
  npm ci --prefix examples/web/test --cache "${XDG_CACHE_HOME:-$HOME/.cache}/harmonica/web/npm" --prefer-offline --no-audit --no-fund --loglevel=error \
    || need "npm could not fetch what drives the browser: does the machine reach its registry?"
  # What the checks lack is said before the long builds.
  node --input-type=module -e "
    import { Chromium } from './examples/web/test/chromium.mjs';
    await Chromium.find().catch(({ message }) => { console.error('test.sh: ' + message); process.exit(1); });"
  # As `--all` builds it, which leaves nothing to compile.
  $run cargo build --release --locked --features capi --bin harmonica
  node examples/web/test/expect.mjs "${CARGO_TARGET_DIR:-target}/release/harmonica"
  examples/web/build
  exec node examples/web/test/run.mjs
fi

if [ "${1:-}" = --all ]; then
  cargo fmt --check
  cargo clippy --release --all-targets --features capi --quiet -- -D warnings
  cargo clippy --release --features viewer --example viewer --quiet -- -D warnings
  # What a program that embeds the library compiles.
  cargo clippy --release --lib --no-default-features --quiet -- -D warnings
  RUSTDOCFLAGS="-D warnings" cargo doc --release --no-deps --features capi --quiet
fi
# The C interface is tested too; it is a feature because few programs want its symbols.
$run cargo test --release --locked --features capi
if [ "${1:-}" = --all ]; then
  # What builds with burn's native shader compilers run instead of the shaders; and several processes for one job.
  cargo clippy --release --lib --bins --features mpi --quiet -- -D warnings
  $run cargo test --release --locked --features composed,mpi --test suite -- caching:: sampling:: ranks::
  # Chromium's software driver beside Mesa's; it takes long.
  second=${HARMONICA_SECOND_DRIVER:-}
  if [ -n "$second" ]; then
    [ -f "$second" ] || need "there is no $second, which HARMONICA_SECOND_DRIVER names"
    $run cargo test --release --locked --features capi --test suite -- --ignored a_second_driver
    VK_DRIVER_FILES=$second VK_ICD_FILENAMES=$second \
      $run cargo test --release --locked --features capi --test suite -- kernels:: forward:: embedding::
  else
    echo "test.sh: a second Vulkan driver was NOT TRIED: HARMONICA_SECOND_DRIVER names none" >&2
  fi
fi
