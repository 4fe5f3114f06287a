"""kill -9 at any instant, as often as it takes: the run that is resumed after it ends with the same bits, with every
event logged once and every answer there once.

One process that has everything loaded forks a child for each attempt, so that a kill costs a second and not the time
that imports take. A child dies before the n-th thing that it does to a file (Python's audit events), or at a random
moment. CHAOS is how many seconds to go on (`make chaos`: ten minutes).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.helpers.training import make_model, thumbs, write_rows

SECONDS = float(os.environ.get("CHAOS", "12"))

SCRIPT = """
import os, random, shutil, signal, sys, time
from pathlib import Path

import torch

torch.set_num_threads(1)  # threads do not survive a fork
from prospect.run import train
from tests.helpers.runs import OPTIONS, same_run

model, data, base, seconds, seed = sys.argv[1], sys.argv[2], Path(sys.argv[3]), float(sys.argv[4]), sys.argv[5]
draw = random.Random(seed)
options = OPTIONS | {"cache": str(base / "cache")}
FILES = ("open", "os.", "shutil.", "sqlite3.")


def child(work):
    number = os.fork()
    if number == 0:
        sys.stderr = open(os.devnull, "w")
        code = 1
        try:
            work()
            code = 0
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
        finally:
            os._exit(code)
    return number


def go_on(folder):
    if (folder / "config.json").exists():
        train(out=folder, resume=True)
    else:
        train(model, data, folder, **options)


def dying_at(operation, work):
    count = 0

    def watch(event, arguments):
        nonlocal count
        if event.startswith(FILES):
            count += 1
            if count == operation:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    work()
    return count


def counted():
    (base / "count").write_text(str(dying_at(-1, lambda: go_on(base / "whole"))))


began = time.monotonic()
assert os.waitpid(child(counted), 0)[1] == 0
whole_time, operations = time.monotonic() - began, int((base / "count").read_text())
trials = kills = 0
end = time.monotonic() + seconds
while time.monotonic() < end or not trials:
    folder = base / "run"
    shutil.rmtree(folder, ignore_errors=True)
    if draw.random() < 0.3:
        shutil.rmtree(base / "cache")  # so that kills meet the reference pass as well
    for attempt in range(4):
        operation = draw.randrange(1, operations)
        if draw.random() < 0.6:
            number = child(lambda: dying_at(operation, lambda: go_on(folder)))
        else:
            number = child(lambda: go_on(folder))
            time.sleep(draw.uniform(0, whole_time))
            os.kill(number, signal.SIGKILL)
        status = os.waitpid(number, 0)[1]
        assert status == 0 or os.WIFSIGNALED(status), f"attempt {attempt} ended by itself with {status}"
        kills += os.WIFSIGNALED(status)
    status = os.waitpid(child(lambda: go_on(folder)), 0)[1]
    assert status == 0, status
    same_run(folder, base / "whole")
    trials += 1
print(f"{trials} runs with {kills} kills, {operations} operations each", flush=True)
"""


def test_kills_at_any_instant_change_nothing(tmp_path: Path) -> None:
    model, data = make_model(tmp_path / "model"), write_rows(tmp_path / "thumbs.jsonl", thumbs(64))
    seed = "suite" if "CHAOS" not in os.environ else os.urandom(4).hex()
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(model), str(data), str(tmp_path), str(SECONDS), seed],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (seed, done.stdout[-2000:], done.stderr[-3000:])
    assert "kills" in done.stdout
    print(done.stdout)
