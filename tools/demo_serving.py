"""The second half of ``make demo``: the trained model becomes a service, is replaced by a better one, and a bad one is thrown out."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from penstock.client.client import Client
    from tools.demo import Demo

SERVICE = "digits"
CALLERS = 4
ENDED = frozenset({"Promoted", "RolledBack"})
_SPEC = """\
kind: InferenceService
name: {name}
spec:
  model: {model}
  replicas: 2
  resources: {{cpus: 0.4}}
  rollout:
    strategy: {strategy}
    {more}
"""
_CANARY = "steps: [{weight: 20, time: 3s}, {weight: 50, time: 3s}]\n    analysis: {min_requests: 100, p95_ratio: 2, p50_ratio: 2}"
_SHADOW = "shadow_time: 5s\n    compare: {how: top1}\n    analysis: {min_requests: 100, agreement: 0.9}"


@dataclass
class Traffic:
    """Callers who go on asking, with images that the training never saw, until they are told to stop."""

    url: str
    images: list[list[float]]
    labels: list[int]
    answers: Counter[str] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._ask, args=(number,)) for number in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(30)

    @property
    def asked(self) -> int:
        return self.answers.total()

    @property
    def failed(self) -> int:
        return self.answers["failed"]

    @property
    def right(self) -> float:
        return self.answers["right"] / max(1, self.asked)

    def _ask(self, number: int) -> None:
        where = urlsplit(self.url)
        connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
        at = number
        while not self._over.is_set():
            image, label = self.images[at % len(self.images)], self.labels[at % len(self.labels)]
            inputs = [{"name": "input", "datatype": "FP32", "shape": [1, 1, 8, 8], "data": image}]
            try:
                connection.request("POST", f"{where.path}/v2/models/{SERVICE}/infer", json.dumps({"inputs": inputs}))
                answer = connection.getresponse()
                body = answer.read()
                scores = json.loads(body)["outputs"][0]["data"] if answer.status == http.client.OK else []
                self.answers[
                    "right" if scores and scores.index(max(scores)) == label else "wrong" if scores else "failed"
                ] += 1
            except (OSError, http.client.HTTPException):
                self.answers["failed"] += 1
                connection.close()
            at += CALLERS


class Serving:
    def __init__(self, demo: Demo, client: Client, early: Path, trained: Path) -> None:
        """``early``, ``trained``: the weights halfway, and at the end."""
        self.demo, self.client = demo, client
        self.weights = {"early": early, "trained": trained}
        self.folder = demo.folder / "serving"
        self.folder.mkdir(exist_ok=True)

    def play(self) -> None:
        self.export()
        url = self.serve()
        traffic = Traffic(url, *_unseen())
        traffic.start()
        try:
            self.better(traffic)
            self.bad(traffic)
        finally:
            traffic.stop()
        self.demo.story.step("What callers saw")
        self.demo.require(
            traffic.failed == 0,
            f"{traffic.asked:,} requests through two rollouts, {traffic.failed} failed; {traffic.right:.1%} named the right digit",
        )

    def export(self) -> None:
        story = self.demo.story
        story.step("From weights to a model that can be served, with a proof that it answers the same")
        for name, weights in (*self.weights.items(), ("bad", self.weights["trained"])):
            factory = "train:build" if name != "bad" else "shuffled:build"
            words = ["-m", "penstock.worker.export", factory, "--weights", str(weights), "--key", "model"]
            words += ["--input", "input:float32[1,8,8]", "--to", str(self.folder / f"{name}.onnx")]
            if name == "bad":
                self._shuffle()
            told = json.loads(self.demo.python(*words, quiet=name != "trained", path=self.folder))
            if name == "trained":
                story.good(
                    f"parity: PyTorch and ONNX Runtime are {told['difference']:.1e} apart at most over {told['samples']} images, "
                    f"where {told['tolerance']:g} is allowed"
                )

    def _shuffle(self) -> None:
        """A model that looks well and names every digit wrongly, as one trained on labels in another order does."""
        (self.folder / "shuffled.py").write_text(
            "from torch import nn\nimport train\n\n\nclass Shuffled(nn.Sequential):\n"
            "    def forward(self, x):\n        return super().forward(x).roll(1, 1)\n\n\n"
            "def build():\n    return Shuffled(*train.build())\n"
        )

    def serve(self) -> str:
        story = self.demo.story
        story.step("A service: the model as it was halfway, two replicas behind Envoy")
        self._apply("early", "canary", _CANARY)
        service = self.demo.wait("two ready replicas", lambda: self._ready(2), every=0.2)
        url = str(service["status"]["url"])
        story.good(f"ready: {url}/v2/models/{SERVICE}/infer")
        return url

    def better(self, traffic: Traffic) -> None:
        story = self.demo.story
        story.step("A better version comes in as a canary, under traffic: the model at the end of its training")
        rollout = self._rolled("trained", "canary", _CANARY, 2)
        self.demo.require(rollout["phase"] == "Promoted", f"it was promoted by itself: {rollout['message']}")
        self.demo.cli("rollout", "status", SERVICE, quote=True)
        self.demo.require(traffic.failed == 0, f"{traffic.asked:,} requests so far, {traffic.failed} of them failed")

    def bad(self, traffic: Traffic) -> None:
        story = self.demo.story
        story.step(
            "A bad version, whose answers are quick, well-formed and wrong, is tried in the shadow of the good one"
        )
        wrong = traffic.answers["wrong"]
        asked = traffic.asked
        rollout = self._rolled("bad", "shadow", _SHADOW, 3)
        self.demo.require(rollout["phase"] == "RolledBack", f"it was rolled back by itself: {rollout['message']}")
        self.demo.cli("rollout", "status", SERVICE, quote=True)
        share = (traffic.answers["wrong"] - wrong) / max(1, traffic.asked - asked)
        self.demo.require(share < 0.1, f"no caller was given its answers: {1 - share:.1%} of them were right meanwhile")

    def _rolled(self, model: str, strategy: str, more: str, candidate: int) -> dict[str, Any]:
        began = time.monotonic()
        self._apply(model, strategy, more)

        def ended() -> dict[str, Any] | None:
            found = self.client.services.rollouts(SERVICE)[:1]
            rollout = dict(found[0]) if found else {}
            return rollout if rollout.get("candidate") == candidate and rollout.get("phase") in ENDED else None

        rollout: dict[str, Any] = self.demo.wait("the rollout's end", ended, every=0.2)
        self.demo.story.say(f"   over after {time.monotonic() - began:.0f} s")
        return rollout

    def _apply(self, model: str, strategy: str, more: str) -> None:
        """Each version lies in a folder of its own, as one out of a pipeline would."""
        (self.folder / model).mkdir(exist_ok=True)
        (self.folder / model / f"{SERVICE}.onnx").write_bytes((self.folder / f"{model}.onnx").read_bytes())
        text = _SPEC.format(name=SERVICE, model=f"{SERVICE}.onnx", strategy=strategy, more=more)
        (self.folder / model / "service.yaml").write_text(text)
        self.demo.cli("apply", "-f", str(self.folder / model / "service.yaml"), quote=True)

    def _ready(self, count: int) -> Any:
        service = self.client.services.get(SERVICE)
        return service if service["status"]["replicas"]["ready"] >= count else None


def end_service(demo: Demo, client: Client) -> None:
    """Envoy and the replicas outlive their server, on purpose; without a service none of them runs."""
    if any(service.name == SERVICE for service in client.services.list()):
        client.services.delete(SERVICE)
        demo.wait("the service to end", lambda: not processes_of(demo.folder), every=0.2)


def processes_of(folder: Path) -> list[int]:
    """Programs of the data plane that run out of this folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if entry.name.isdigit() and str(folder) in words and ("/envoy" in words or "penstock.serving" in words):
                found.append(int(entry.name))
    return found


def _unseen() -> tuple[list[list[float]], list[int]]:
    """The fifth of the digits that train.py sets aside."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = digits.images.reshape(len(digits.images), -1) / 16 - 0.5
    _, chosen = train_test_split(range(len(digits.target)), test_size=0.2, random_state=0, stratify=digits.target)
    return [images[n].tolist() for n in chosen], [int(digits.target[n]) for n in chosen]
