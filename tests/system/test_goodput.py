"""A real job that dies once and goes on from its checkpoint: every second of it is accounted for, and its saves are told."""

from __future__ import annotations

from typing import Any

from tests.system.house import House, until

SCRIPT = """
import os, signal, time, torch, penstock
torch.manual_seed(0)
model = torch.nn.Linear(8, 8)
ckpt = penstock.checkpoint.Checkpointer(model=model, every=10)
for step in range(ckpt.load(), 60):
    time.sleep(0.02)
    penstock.report(step=step, total_steps=60, loss=1 / (step + 1))
    if os.environ["PENSTOCK_ATTEMPT"] == "1" and step == 37:
        os.kill(os.getpid(), signal.SIGKILL)
    if ckpt.step(step):
        break
ckpt.close()
"""


def parts(found: dict[str, Any]) -> dict[str, int]:
    return {row["part"]: row["ms"] for row in found["parts"]}


def test_a_job_that_died_once_is_accounted_for_to_the_millisecond() -> None:
    with House() as house:
        name = house.run(["python", "-c", SCRIPT], max_restarts=1)
        house.reach(name, "Succeeded", patience_s=60)
        path = f"projects/default/jobs/{name}"
        found = house.get(f"{path}/goodput")
        spent = parts(found)
        assert sum(spent.values()) == found["wall_ms"] and found["measured"] and found["saves_known"]
        assert 60 * 20 <= spent["steps"] < 60 * 20 + 3000  # steps 0 to 59, each once
        assert 0 < spent["lost"] < 2000 and spent["restart"] > 0 and spent["startup"] > 0  # 30 to 37 were done again
        assert spent["unmeasured"] == spent["hang"] == 0
        assert found["facts"]["failures"] == 1 and [a["lives"] for a in found["attempts"]] == [1, 1]
        told = house.get(f"{path}/checkpoints")
        assert told["policy"]["every_steps"] == 10 and told["loads"][0]["step"] == 29
        saves = [(save["step"], save["state"]) for save in told["saves"]]
        assert [step for step, _ in saves] == [59, 49, 39, 29, 19, 9]
        assert all(state in {"committed", "removed"} for _, state in saves)
        assert all(save["stall_s"] >= 0 and save["durable_s"] > 0 and save["bytes"] > 256 for save in told["saves"])
        kept = until(lambda: house.get("goodput?since=1h")["items"], "no summary was kept")
        assert kept[0]["device"] == "cpu" and 0 < kept[0]["goodput"] < 1


def test_saving_now_is_asked_of_the_job() -> None:
    script = SCRIPT.replace("every=10", "every=1000").replace("step == 37", "False").replace("60)", "6000)")
    with House() as house:
        name = house.run(["python", "-c", script])
        until(lambda: (house.job(name)["status"]["progress"] or {}).get("step"), "no step was reported", 60)
        house.client.jobs.save_now(name)
        path = f"projects/default/jobs/{name}/checkpoints"
        saves = until(lambda: [s for s in house.get(path)["saves"] if s["state"] == "committed"], "nothing was saved")
        assert saves[0]["why"] == "asked" and "SaveAsked" in house.reasons(name)
        house.client.jobs.cancel(name)
        house.reach(name, "Cancelled", patience_s=60)
        found = house.get(f"projects/default/jobs/{name}/goodput")
        assert sum(parts(found).values()) == found["wall_ms"]
