#!/bin/bash
# Builds the simulator for a million histories in a row, and prints the path of its test program: whole-program
# optimisation by the profile `sim`, led by what the compiler's counters saw of 2,000 histories. Takes minutes, and makes
# each history a fifth shorter. The same seed is the same history in every build.
set -euo pipefail
cd "$(dirname "$0")/.."

rustc=${RUSTC:-rustc}
host=$("$rustc" -vV | sed -n 's/^host: //p')
# Rust's own, where it is installed (`rustup component add llvm-tools`), or Debian's, by scripts/needs.sh.
profdata=$("$rustc" --print sysroot)/lib/rustlib/$host/bin/llvm-profdata
[[ -x $profdata ]] || profdata=$(command -v llvm-profdata-19) || {
  echo 'missing: llvm-profdata; scripts/needs.sh soak says how to get it' >&2
  exit 1
}

# With a target named, the flags are not for build scripts.
build() { # into, flags
  RUSTFLAGS=$2 cargo build --quiet --profile sim --locked -p sim --test seeds --target "$host" \
    --target-dir "target/simulator/$1" --message-format json |
    sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' | tail -n 1
}

counts=$PWD/target/simulator/counts
rm -rf "$counts" && mkdir -p "$counts"
echo 'the simulator, built to count what it does' >&2
counting=$(build counting "-Cprofile-generate=$counts")
TIDEGATE_SIM_FIRST=2000000 TIDEGATE_SIM_SEEDS=2000 "$counting" --exact every_promise_holds_in_every_history >&2
# By its name, so that another profile builds anew.
"$profdata" merge -o "$counts/merged" "$counts"
profile=$counts/$(sha256sum <"$counts/merged" | cut -c1-16).profdata
mv "$counts/merged" "$profile"
echo 'the simulator, built by what it counted' >&2
build led "-Cprofile-use=$profile"
