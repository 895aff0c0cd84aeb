#!/bin/bash
# A cluster on this machine: Redis and three gateways on free ports, until Ctrl-C. With --tour it takes the tour that it
# prints by itself, and ends. Its files are in a temporary folder. BIN is the executable of the gateway.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${BIN:-target/release/tidegate}
folder=$(mktemp -d)
pids=()

finish() {
  local status=$?
  trap - EXIT INT TERM
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  rm -rf "$folder"
  exit "$status"
}
trap finish EXIT
trap 'exit 0' INT TERM

# Waits until a command succeeds.
until_done() {
  local what=$1
  shift
  for _ in $(seq 300); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.1
  done
  echo "$what: not within 30 s" >&2
  tail -n 20 "$folder"/*.log >&2
  exit 1
}

# The kernel knows which ports are free; between asking and using one, somebody else may take it.
free_port() {
  local port
  while port=$((20000 + RANDOM % 10000)); (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
  echo "$port"
}

redis=$(free_port)
redis-server --port "$redis" --bind 127.0.0.1 --dir "$folder" --save '' --appendonly yes --appendfsync always \
  >"$folder/redis.log" &
pids+=($!)
until_done 'Redis' redis-cli -p "$redis" ping

urls=()
for node in 1 2 3; do
  "$bin" serve --dev --redis "redis://127.0.0.1:$redis" --listen 127.0.0.1:0 --set "name=node$node" \
    >"$folder/node$node.out" 2>"$folder/node$node.log" &
  pids+=($!)
  until_done "node $node" grep -q 'Ctrl-C' "$folder/node$node.out"
  urls+=("$(grep -o 'ws://[^ ]*' "$folder/node$node.out" | head -n 1)")
done

cat <<TOUR
Redis is at redis://127.0.0.1:$redis, and three gateways are on it:

  ${urls[0]}
  ${urls[1]}
  ${urls[2]} (process ${pids[3]})

Watch on the first, in another terminal:

  $bin watch demo --url ${urls[0]}

Write on the second, and see it there:

  $bin set demo notes/n1 title=Hello --url ${urls[1]}

End the third without a word. The others go on, and whoever was on it goes to another:

  kill -9 ${pids[3]}

Ctrl-C ends all of it.
TOUR

if [[ ${1-} != --tour ]]; then
  # A gateway that ends is part of the tour; Redis is not.
  wait "${pids[0]}"
  exit 1
fi

export XDG_STATE_HOME=$folder/state
"$bin" watch demo --url "${urls[0]}" >"$folder/watched" 2>&1 &
pids+=($!)
until_done 'the watch' grep -q 'changes follow' "$folder/watched"
"$bin" set demo notes/n1 title=Hello --url "${urls[1]}"
until_done 'what was written on the second node is seen on the first' grep -q 'Hello' "$folder/watched"
kill -9 "${pids[3]}"
"$bin" inc demo notes/n1 stars 5 --url "${urls[1]}"
until_done 'what was written after the third has ended' grep -q 'stars = 5' "$folder/watched"
echo 'The tour is over: all was seen.'
