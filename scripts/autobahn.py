#!/usr/bin/env python3
"""Has Autobahn's test suite judge how the gateway reads and writes WebSocket frames: `make autobahn`.

Its fuzzing client runs the same cases against two echo servers (gateway/examples/echo.rs): one on the gateway's own
code, and a plain tokio-tungstenite one. In no case may the gateway's do worse, neither in what it makes of the case nor
in how it closes.

The suite runs on Python 2.7 only. It is looked for on the PATH and among pyenv's versions, unless --python names one,
and installed into target/autobahn, where the reports are left, too (reports/index.html).
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
DIR = ROOT / "target" / "autobahn"
VENV = DIR / "venv"
REPORTS = DIR / "reports"

VIRTUALENV = "virtualenv==20.15.1"
SUITE = "autobahntestsuite==25.10.1"
# Framing, pings, reserved bits, opcodes, fragments, UTF-8, closes; and one on fragments that are sent in one go.
CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
# How many that are in this version of the suite.
COUNT = 247

GATEWAY, PLAIN = "gateway", "plain"
# Best first. What is informational is not judged.
VERDICTS = ["OK", "INFORMATIONAL", "NON-STRICT", "FAILED BY CLIENT", "WRONG CODE", "UNCLEAN", "UNIMPLEMENTED", "FAILED"]
PASSED = ["OK", "INFORMATIONAL", "NON-STRICT"]
# Twenty are enough on a machine that has nothing else to do.
SECONDS = 900

HOW = """Autobahn's test suite runs on nothing newer.
Debian has had no package of it since version 12. pyenv (https://github.com/pyenv/pyenv) builds it from source:

  sudo apt-get install -y build-essential libssl-dev libffi-dev zlib1g-dev
  pyenv install 2.7.18

Then try again: it is found among pyenv's versions. For one elsewhere: make autobahn PYTHON27=path/to/python2.7"""


def die(text):
    sys.exit(f"autobahn: {text}")


def is_python27(path):
    """Whether it runs: one of pyenv's shims may be there without a version behind it."""
    try:
        run = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return run.returncode == 0 and (run.stdout + run.stderr).startswith("Python 2.7.")


def find_python27(named):
    if named:
        if not is_python27(named):
            die(f"{named} is not a Python 2.7 that runs. {HOW}")
        return named
    pyenv = pathlib.Path(os.environ.get("PYENV_ROOT", pathlib.Path.home() / ".pyenv"))
    found = [shutil.which("python2.7"), shutil.which("python2")]
    found += sorted(map(str, pyenv.glob("versions/2.7*/bin/python2.7")))
    return next((path for path in found if path and is_python27(path)), None) or die(f"Python 2.7 is missing. {HOW}")


def call(*args, **options):
    command = " ".join(map(str, args)).replace(f"{ROOT}/", "")
    print("+", command, flush=True)
    try:
        run = subprocess.run(args, cwd=ROOT, **options)
    except OSError as error:
        die(f"cannot run {args[0]}: {error.strerror}")
    if run.returncode:
        die(f"failed with status {run.returncode}: {command}")


def install(python):
    """Once for each set of versions: pip gets virtualenv for this Python, virtualenv makes an environment, the suite
    goes into it."""
    mark, wanted = VENV / "installed", f"{python} {VIRTUALENV} {SUITE}\n"
    if mark.exists() and mark.read_text() == wanted:
        return
    bootstrap = DIR / "virtualenv"
    for old in (bootstrap, VENV):
        shutil.rmtree(old, ignore_errors=True)
    DIR.mkdir(parents=True, exist_ok=True)
    quiet = ["--quiet", "--disable-pip-version-check"]
    call(python, "-m", "pip", "install", *quiet, "--target", bootstrap, VIRTUALENV)
    call(python, "-m", "virtualenv", "--quiet", VENV, env={**os.environ, "PYTHONPATH": str(bootstrap)})
    call(VENV / "bin" / "pip", "install", *quiet, SUITE)
    mark.write_text(wanted)


@contextlib.contextmanager
def echo():
    """Starts the servers; yields where each listens."""
    call("cargo", "build", "--quiet", "--locked", "-p", "tidegate", "--example", "echo")
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    server = subprocess.Popen([ROOT / target / "debug" / "examples" / "echo"], stdout=subprocess.PIPE, text=True)
    try:
        lines = [server.stdout.readline().split() for _ in (GATEWAY, PLAIN)]
        if not all(lines):
            die(f"the echo server ended with status {server.wait()} before it listened")
        yield dict(lines)
        if server.poll() is not None:
            die(f"the echo server ended with status {server.returncode} before the cases did")
    finally:
        server.kill()
        server.wait()


def fuzz(where):
    """Runs the cases, and returns what the suite says of each: agent → case → verdicts."""
    shutil.rmtree(REPORTS, ignore_errors=True)
    REPORTS.mkdir(parents=True)
    spec = REPORTS / "spec.json"
    servers = [{"agent": agent, "url": f"ws://{where[agent]}"} for agent in (GATEWAY, PLAIN)]
    spec.write_text(
        json.dumps(
            {
                "outdir": str(REPORTS),
                "servers": servers,
                "cases": CASES,
                "exclude-cases": [],
                "exclude-agent-cases": {},
            }
        )
    )
    log = REPORTS / "log.txt"
    print(f"{len(servers)} × {COUNT} cases, which takes half a minute; their log is {log.relative_to(ROOT)}", flush=True)
    with log.open("w") as out:
        args = [VENV / "bin" / "wstest", "-m", "fuzzingclient", "-s", spec]
        try:
            run = subprocess.run(args, cwd=REPORTS, stdout=out, stderr=subprocess.STDOUT, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            die(f"the suite takes more than {SECONDS} s; its log is {log}")
    index = REPORTS / "index.json"
    if run.returncode or not index.exists():
        die(f"the suite failed with status {run.returncode}; its log is {log}")
    return json.loads(index.read_text())


def judge(reports):
    """Prints the counts; returns what is wrong."""
    wrong = []
    for agent in (GATEWAY, PLAIN):
        cases = reports.get(agent, {})
        if len(cases) != COUNT:
            wrong.append(f"{agent}: {len(cases)} cases were run, not {COUNT}")
        for what, key in (("cases", "behavior"), ("closes", "behaviorClose")):
            counts = collections.Counter(case[key] for case in cases.values())
            told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
            print(f"autobahn: {agent:7} {len(cases)} {what + ':':7} {told or 'none'}")
            unknown = set(counts) - set(VERDICTS)
            if unknown:
                wrong.append(f"{agent}: verdicts that are not known: {', '.join(sorted(unknown))}")
    if wrong:
        return wrong
    natural = lambda case: [int(part) for part in re.findall(r"\d+", case)]
    for case in sorted(reports[GATEWAY].keys() | reports[PLAIN].keys(), key=natural):
        ours, plain = reports[GATEWAY].get(case), reports[PLAIN].get(case)
        if not ours or not plain:
            wrong.append(f"case {case} was run against one of them only")
            continue
        for what, key in (("", "behavior"), (" closes", "behaviorClose")):
            if VERDICTS.index(ours[key]) > VERDICTS.index(plain[key]):
                where = (REPORTS / ours["reportfile"]).with_suffix(".html").relative_to(ROOT)
                wrong.append(f"case {case}{what}: {ours[key]}, where plain tungstenite is {plain[key]}; see {where}")
    # A comparison with a server that is down would find nothing.
    failed = sorted((case for case, of in reports[PLAIN].items() if of["behavior"] not in PASSED), key=natural)
    if failed:
        wrong.append(f"plain tungstenite fails {', '.join(failed)}: it is no measure")
    return wrong


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", metavar="PATH", help="a Python 2.7")
    install(find_python27(parser.parse_args().python))
    with echo() as where:
        reports = fuzz(where)
    wrong = judge(reports)
    if wrong:
        die("\n".join(["the gateway's frames do not hold against plain tokio-tungstenite:", *wrong]))
    print(f"autobahn: in none of {COUNT} cases is the gateway worse than plain tokio-tungstenite")


if __name__ == "__main__":
    main()
