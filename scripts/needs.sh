#!/bin/bash
# Makes sure that what `make test` needs is there: a C toolchain, npm (for `make data`), Redis, cargo.
# As root it installs what is missing by apt; otherwise it prints the line to run, and fails. With the word `soak`, also what
# scripts/simulator.sh needs.
set -euo pipefail

missing=()
command -v cc >/dev/null || missing+=(build-essential)
command -v git >/dev/null || missing+=(git)
command -v npm >/dev/null || missing+=(npm)
command -v redis-server >/dev/null || missing+=(redis-server)
command -v openssl >/dev/null || missing+=(openssl)
if [[ ${1-} == soak ]] && ! command -v llvm-profdata-19 >/dev/null &&
  ! compgen -G "$(rustc --print sysroot)/lib/rustlib/*/bin/llvm-profdata" >/dev/null; then
  missing+=(llvm-19)
fi

if ((${#missing[@]})); then
  if ! command -v apt-get >/dev/null; then
    echo "missing: ${missing[*]} (named as Debian packages); install them and run this again" >&2
    exit 1
  elif [[ $(id -u) != 0 ]]; then
    printf 'missing: %s. Run this, then try again:\n\n  sudo apt-get install -y %s\n' "${missing[*]}" "${missing[*]}" >&2
    exit 1
  fi
  echo "apt-get install ${missing[*]}"
  apt-get -qq update
  DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"
fi

if ! command -v cargo >/dev/null; then
  echo 'missing: cargo. Install Rust from https://rustup.rs, open a new shell, and try again.' >&2
  exit 1
fi
echo "all there: $(cc --version | head -n 1), npm $(npm --version), $(cargo --version)"
