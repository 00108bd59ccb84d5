"""Run inside a job's allocation, on each of its nodes, by any Python 3: looks at the ranks' processes, or ends them.

The server sends this file's text as a program's argument, with that of dumps.py in it, so it imports nothing but the standard library. It takes one word
of JSON and prints one line: a mark, then JSON. What it says comes from the job's own user and is believed of that job alone.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

from penstock.training.dumps import load

MARK = "penstock-probe "
_FRAMES = 60
_INNERMOST = 8  # of a sample
_PATIENCE_S = 6.0  # for one stack
_DUMP_BYTES = 16 << 20
_DUMP_S = 3.0


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _stat(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the third on."""
    return _read(f"/proc/{pid}/stat").rpartition(b") ")[2].split()


def families() -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit() and (fields := _stat(int(name))):
            found.setdefault(int(fields[1]), []).append(int(name))
    return found


def _below(pid: int, children: dict[int, list[int]]) -> list[int]:
    """Breadth first, ``pid`` itself the first."""
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def ranks(attempt: str, children: dict[int, list[int]]) -> dict[int, int]:
    """The process of each rank here: of those that were given the report pipe the uppermost, or the Python below it."""
    mark = b"PENSTOCK_ATTEMPT_ID=" + attempt.encode()
    mine: dict[int, int] = {}
    for name in os.listdir("/proc"):
        words = _read(f"/proc/{name}/environ").split(b"\0") if name.isdigit() else []
        if mark in words and any(word.startswith(b"PENSTOCK_REPORT_FD=") for word in words):
            number = next((word[5:] for word in words if word.startswith(b"RANK=")), b"0")
            if number.isdigit():
                mine[int(name)] = int(number)
    found: dict[int, int] = {}
    for pid in sorted(mine):
        fields = _stat(pid)
        if fields and fields[0] not in b"ZX" and int(fields[1]) not in mine and mine[pid] not in found:
            below = _below(pid, children)
            found[mine[pid]] = next((one for one in below if _is_python(one)), pid)
    return found


def _is_python(pid: int) -> bool:
    try:
        return "python" in os.path.basename(os.readlink(f"/proc/{pid}/exe"))
    except OSError:
        return False


def _spy(places: list[str]) -> str:
    beside = os.path.join(os.path.dirname(sys.executable), "py-spy")
    for place in (*places, beside, shutil.which("py-spy") or ""):
        if place and os.access(place, os.X_OK):
            return place
    return ""


def _stack(spy: str, pid: int) -> tuple[list[list[Any]], str]:
    """The main thread's frames, innermost first; or why there are none."""
    if not spy:
        return [], "py-spy is not installed there"
    if not _is_python(pid):
        return [], "it is no Python program"
    try:
        done = subprocess.run(
            [spy, "dump", "--json", "--nonblocking", "--pid", str(pid)],
            capture_output=True,
            timeout=_PATIENCE_S,
            check=False,
        )
        if done.returncode:
            words = done.stderr.decode("utf-8", "replace")
            refused = "ermission" in words or "not permitted" in words
            return [], "py-spy may not look (ptrace is not permitted there)" if refused else words.strip()[:200]
        threads = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        return [], f"py-spy failed: {error}"[:200]
    main = next((thread for thread in threads if thread.get("os_thread_id") == pid), threads[0] if threads else {})
    frames = [[f["name"], f["filename"], f["line"]] for f in main.get("frames", ())[:_FRAMES]]
    return frames, "" if frames else "py-spy saw no frames"


def _figures(pid: int, children: dict[int, list[int]]) -> tuple[int, int]:
    """Clock ticks and bytes of a rank and what it started, so far."""
    ticks = size = 0
    for one in _below(pid, children):
        fields = _stat(one)
        ticks += int(fields[11]) + int(fields[12]) if len(fields) > 12 else 0
        for line in _read(f"/proc/{one}/io").splitlines():
            if line.startswith((b"rchar:", b"wchar:")):
                size += int(line.split()[1])
    return ticks, size


def _counted(pid: int) -> dict[str, float]:
    """What the kernel has counted of a rank itself, by the names of worker/counting.py; what it does not tell is left out."""
    found = {}
    fields = _stat(pid)
    if len(fields) > 39:
        tick = os.sysconf("SC_CLK_TCK")
        found["cpu_s"] = (int(fields[11]) + int(fields[12])) / tick
        found["io_wait_s"] = int(fields[39]) / tick  # delayacct_blkio_ticks
    delay = _read(f"/proc/{pid}/task/{pid}/schedstat").split()
    if len(delay) > 1:
        found["run_delay_s"] = int(delay[1]) / 1e9
    for line in _read(f"/proc/{pid}/io").splitlines():
        name, _, value = line.decode().partition(": ")
        if name in ("read_bytes", "write_bytes"):
            found[name] = float(value)
    for path, word, unit in _quotas(pid):
        for told in _read(path).splitlines():
            if told.startswith(word.encode() + b" "):
                found["throttled_s " + path] = int(told.split()[1]) / unit
    return found


def _quotas(pid: int) -> list[tuple[str, str, float]]:
    """``cpu.stat`` of its control group and of those above it: a quota may be on any of them."""
    found = []
    for line in _read(f"/proc/{pid}/cgroup").decode().splitlines():
        _, kinds, path = line.split(":", 2)
        if kinds and "cpu" not in kinds.split(","):
            continue
        root, word, unit = (
            ("/sys/fs/cgroup/cpu", "throttled_time", 1e9) if kinds else ("/sys/fs/cgroup", "throttled_usec", 1e6)
        )
        while path.strip("/"):
            found.append((f"{root}{path}/cpu.stat", word, unit))
            path = os.path.dirname(path)
    return found


def _grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """By how much; of the groups that of the one that was throttled most."""
    grown: dict[str, float] = {}
    for name in sorted(set(before) & set(after)):
        short = name.partition(" ")[0]
        grown[short] = max(grown.get(short, 0.0), round(after[name] - before[name], 6))
    return grown


def _dump(pid: int, rank: int) -> dict[str, Any] | None:
    """What the rank's Flight Recorder wrote, asked to do so where torch listens for it; None where it wrote nothing."""
    environ = dict(word.split(b"=", 1) for word in _read(f"/proc/{pid}/environ").split(b"\0") if b"=" in word)
    names = ("TORCH_FR_DUMP_TEMP_FILE", "TORCH_NCCL_DEBUG_INFO_TEMP_FILE")
    begin = next((environ[name.encode()].decode() for name in names if name.encode() in environ), "")
    if not begin:
        return None
    pipe = environ.get(b"TORCH_NCCL_DEBUG_INFO_PIPE_FILE", b"").decode()
    if pipe:
        _ask(f"{pipe}{rank}.pipe", f"{begin}{rank}")
    data = _read(f"{begin}{rank}") if _newer(f"{begin}{rank}", pid) else b""  # not what an earlier life has left there
    return _reduced(data) if 0 < len(data) <= _DUMP_BYTES else None


def _newer(path: str, pid: int) -> bool:
    """Whether a file was written since the process began."""
    try:
        with open("/proc/stat", "rb") as file:
            boot = next(int(line.split()[1]) for line in file if line.startswith(b"btime "))
        return os.stat(path).st_mtime >= boot + int(_stat(pid)[19]) / os.sysconf("SC_CLK_TCK") - 2.0
    except (OSError, StopIteration, IndexError):
        return False


def _ask(pipe: str, wanted: str) -> None:
    asked = time.time()
    try:
        fd = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
        os.write(fd, b"1\n")
        os.close(fd)
    except OSError:
        return
    while time.time() - asked < _DUMP_S:
        if os.path.exists(wanted) and os.stat(wanted).st_mtime >= asked - 1:
            time.sleep(0.2)
            return
        time.sleep(0.1)


def _reduced(data: bytes) -> dict[str, Any] | None:
    """The entries' heads alone: what flight.py reads."""
    try:
        entries = (json.loads(data) if data[:1] == b"{" else load(data))["entries"]
        kept = ("process_group", "collective_seq_id", "time_created_ns", "is_p2p", "profiling_name", "state")
        newest: dict[str, dict[str, Any]] = {}
        for entry in entries:
            if not entry.get("is_p2p"):
                newest[str(entry["process_group"])] = {name: entry.get(name) for name in kept}
        return {"entries": list(newest.values())}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Two looks at every rank here, ``between_s`` apart."""
    children = families()
    found = ranks(asked["attempt"], children)
    spy = _spy(asked.get("spies", []))
    first = {rank: (_stack(spy, pid)[0], _figures(pid, children), _counted(pid)) for rank, pid in found.items()}
    began = time.monotonic()
    time.sleep(asked.get("between_s", 0.5))
    told = []
    for rank, pid in found.items():
        took = time.monotonic() - began
        ticks, size = _figures(pid, families())
        grown = _grown(first[rank][2], _counted(pid))
        fields = _stat(pid)
        if not fields:
            continue
        frames, why = _stack(spy, pid)
        before, (ticks_before, size_before), _ = first[rank]
        told.append(
            {
                "rank": rank, "pid": pid, "start": int(fields[19]), "state": fields[0].decode(),
                "wait": _read(f"/proc/{pid}/wchan").decode("ascii", "replace").strip("0\0 "),
                "cpu": max(0, ticks - ticks_before) / os.sysconf("SC_CLK_TCK") / took, "io": max(0, size - size_before),
                "over_s": round(took, 3), "grown": grown, "frames": frames, "moved": frames != before, "why_no_stack": why,
                "flight": _dump(pid, rank) if asked.get("flight") else None,
            }
        )  # fmt: skip
    return {"ranks": told}


def sample(asked: dict[str, Any]) -> dict[str, Any]:
    """Each of the ranks asked for, at ``count`` moments spread by chance over ``for_s``: its state and innermost frames."""
    found = {rank: pid for rank, pid in ranks(asked["attempt"], families()).items() if rank in asked["ranks"]}
    told: dict[int, list[Any]] = {rank: [] for rank in found}
    spy = _spy(asked.get("spies", []))
    end = time.monotonic() + asked["for_s"]
    for left in range(asked["count"], 0, -1):
        time.sleep(max(0.0, end - time.monotonic()) / left * random.uniform(0.2, 1.8))
        for rank, pid in found.items():
            fields = _stat(pid)
            frames, why = _stack(spy, pid) if fields else ([], "")
            if fields and (frames or not spy or "not permitted" in why):
                told[rank].append([fields[0].decode(), frames[:_INNERMOST]])
            spy = "" if "not permitted" in why else spy
        if time.monotonic() > end:
            break
    return {"ranks": told}


def end(asked: dict[str, Any]) -> dict[str, Any]:
    """SIGKILL to the ranks named as ``first``; to those of ``all`` too that are still there ``wait_s`` later.

    Their launcher starts them again; the others it asks by SIGTERM, which who is stuck in a collective does not hear.
    """
    ended = []
    for which, pause in (("first", 0.0), ("all", asked.get("wait_s", 1.0))):
        until = time.monotonic() + pause
        left = [(pid, start) for pid, start in asked[which] if _is(pid, start)]
        while left and which == "all" and time.monotonic() < until:
            time.sleep(0.05)
            left = [(pid, start) for pid, start in left if _is(pid, start)]
        for pid, _ in left:
            try:
                os.kill(pid, signal.SIGKILL)
                ended.append(pid)
            except OSError:
                continue
    return {"ended": ended}


def _is(pid: int, start: int) -> bool:
    """Whether it is that process, and not one that has its number now."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in b"ZX" and int(fields[19]) == start


def main() -> None:
    asked = json.loads(sys.argv[1])
    answer = {"look": look, "sample": sample, "end": end}[asked["op"]](asked)
    print("\n" + MARK + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
