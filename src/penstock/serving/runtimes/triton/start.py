"""Makes a model repository and becomes tritonserver: `python -m penstock.serving.runtimes.triton.start ...` in a replica.

Triton is looked for on the PATH, in /opt/tritonserver (its container) and in the wheel nvidia-pytriton. Where it has no backend
for ONNX (the wheel has none), its Python backend runs ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import onnxruntime

from penstock.base.errors import InvalidInput, PenstockError, Problem, Unavailable
from penstock.documents import read
from penstock.serving.runtimes.spec import Batching
from penstock.serving.runtimes.triton.repository import Backend, Settings, Signature, Step, Tensor, config, ensemble

ENSEMBLE = "ensemble.yaml"
_CONTAINER = Path("/opt/tritonserver")


@dataclass(frozen=True, slots=True)
class Installed:
    """Where Triton is, with the libraries of its wheel. ``stub``: the Python backend's program, where it lies apart; ``site``: the
    packages of that backend's models, where they are not this Python's (the wheel's stub takes NumPy 1 alone).
    """

    program: Path
    backends: Path
    libraries: tuple[Path, ...] = ()
    stub: Path | None = None
    site: Path | None = None

    @property
    def onnx(self) -> Backend:
        return "onnxruntime" if (self.backends / "onnxruntime").is_dir() else "python"


def main(words: Sequence[str] | None = None) -> int:
    """Does not return where all is well: the process goes on as tritonserver."""
    asked = _parser().parse_args(words)
    folder = Path(asked.folder)
    try:
        triton = installed()
        batching = Batching(asked.max_batch, tuple(asked.preferred), asked.delay)
        packages = str(triton.site or sysconfig.get_path("purelib"))
        # Our model for the Python backend computes on the processors.
        gpus = visible() if triton.onnx == "onnxruntime" else ()
        settings = Settings(triton.onnx, batching, asked.instances, gpus, asked.threads, packages)
        names = prepare(folder / "models", asked.model, asked.name, asked.version, settings)
    except (PenstockError, OSError) as error:
        details = getattr(error, "details", ())
        print(
            "\n".join([f"triton: {error}", *(f"  {p.path}: {p.message}" for p in details)]), file=sys.stderr, flush=True
        )
        return 3
    backends = triton.backends if triton.stub is None else _with_stub(folder / "backends", triton)
    argv = [
        str(triton.program), f"--model-repository={folder / 'models'}", f"--backend-directory={backends}",
        "--model-control-mode=explicit", *(f"--load-model={name}" for name in names), "--strict-readiness=true",
        "--exit-on-error=true", f"--exit-timeout-secs={asked.grace}", "--disable-auto-complete-config",
        f"--http-address={asked.host}", f"--http-port={asked.http}", f"--grpc-address={asked.host}",
        f"--grpc-port={asked.grpc}", f"--metrics-address={asked.host}", f"--metrics-port={asked.metrics}",
        "--allow-sagemaker=false", "--allow-vertex-ai=false", *asked.more,
    ]  # fmt: skip
    return _become(triton, argv)


def _become(triton: Installed, argv: Sequence[str]) -> NoReturn:
    os.execve(triton.program, list(argv), _environment(triton))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="penstock.serving.runtimes.triton.start", description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--version", type=int, required=True)
    parser.add_argument("--folder", required=True)
    parser.add_argument("--host", required=True)
    for name in ("http", "grpc", "metrics", "max-batch", "threads", "grace"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--preferred", type=int, nargs="*", default=[])
    parser.add_argument("--delay", type=float, default=0.0, help="seconds")
    parser.add_argument("--instances", type=int, default=1)
    parser.add_argument("more", nargs="*", help="after --: arguments of tritonserver's own")
    return parser


def visible() -> tuple[int, ...]:
    """Triton counts the job's GPUs from 0, whichever they are."""
    return tuple(range(len(list(filter(None, os.environ.get("CUDA_VISIBLE_DEVICES", "").split(","))))))


def installed(path: str | None = None) -> Installed:
    """Raises Unavailable where there is none."""
    wheel = find_spec("pytriton")
    places = (wheel.submodule_search_locations or ()) if wheel is not None else ()
    roots = [Path(place) / "tritonserver" for place in places]
    there = shutil.which("tritonserver", path=path)
    programs = [Path(there).resolve()] if there else []
    programs += [root / "bin" / "tritonserver" for root in (_CONTAINER, *roots)]
    program = next((one for one in programs if one.exists()), None)
    if program is None:
        hint = "Run the service in NVIDIA's container, put tritonserver on its PATH, or `pip install nvidia-pytriton`."
        raise Unavailable("there is no tritonserver here", hint=hint)
    root = program.parents[1]
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = root / "python_backend_stubs" / version / "triton_python_backend_stub"
    site = root.parent / "site"
    beside = (root.parent / "libs", root.parents[1] / "nvidia_pytriton.libs")
    libraries = tuple(folder for folder in beside if folder.is_dir())
    return Installed(
        program, root / "backends", libraries, stub if stub.exists() else None, site if site.is_dir() else None
    )


def _environment(triton: Installed) -> dict[str, str]:
    found = dict(os.environ)
    if triton.stub is not None:  # it brings no Python of its own: this one's library and modules
        folders = [*map(str, triton.libraries), sysconfig.get_config_var("LIBDIR"), found.get("LD_LIBRARY_PATH")]
        found["LD_LIBRARY_PATH"] = ":".join(filter(None, folders))
        found["PYTHONHOME"] = sys.base_prefix
    return found


def _with_stub(folder: Path, triton: Installed) -> Path:
    """The backends, with the Python backend's program beside it."""
    shutil.copytree(triton.backends / "python", folder / "python", dirs_exist_ok=True)
    if triton.stub is not None:
        shutil.copy2(triton.stub, folder / "python" / "triton_python_backend_stub")
    return folder


def prepare(repository: Path, model: str, name: str, version: int, settings: Settings) -> list[str]:
    """Write the repository; answers the models to load. Raises InvalidInput, OSError."""
    source = Path(model)
    repository.mkdir(parents=True, exist_ok=True)
    if source.is_file():
        _one(repository, source, name, version, settings)
        return [name]
    if (source / ENSEMBLE).is_file():
        return _ensemble(repository, source, name, version, settings)
    if (source / "config.pbtxt").is_file():
        (repository / name).symlink_to(source.resolve())
        return [name]
    names = sorted(entry.name for entry in source.iterdir() if (entry / "config.pbtxt").is_file())
    if not names:
        raise InvalidInput(f"{model} holds no ONNX file, no {ENSEMBLE} and no config.pbtxt")
    for entry in names:
        (repository / entry).symlink_to((source / entry).resolve())
    return names


def _one(repository: Path, source: Path, name: str, version: int, settings: Settings) -> Signature:
    found = signature(source)
    folder = repository / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.onnx").symlink_to(source.resolve())
    if settings.backend == "python":
        text = Path(__file__).with_name("python_model.py").read_text(encoding="utf-8")
        packages = f"import sys\n\nsys.path.insert(0, {settings.packages!r})\n"
        before, first, rest = text.partition("import json\n")
        (folder / "model.py").write_text(before + packages + first + rest, encoding="utf-8")
    (folder.parent / "config.pbtxt").write_text(config(name, found, settings), encoding="utf-8")
    return found


def signature(source: Path) -> Signature:
    """Raises InvalidInput for what ONNX Runtime does not read."""
    try:
        session = onnxruntime.InferenceSession(str(source), providers=["CPUExecutionProvider"])
    except (
        RuntimeError,
        ValueError,
        TypeError,
    ) as error:  # what its exceptions derive from is RuntimeError, or not told
        raise InvalidInput(f"{source} is no model that ONNX Runtime reads: {error}") from error

    def tensors(items: Sequence[onnxruntime.NodeArg]) -> tuple[Tensor, ...]:
        return tuple(
            Tensor(item.name, item.type, tuple(size if isinstance(size, int) else -1 for size in item.shape))
            for item in items
        )

    return Signature(tensors(session.get_inputs()), tensors(session.get_outputs()))


def _ensemble(repository: Path, source: Path, name: str, version: int, settings: Settings) -> list[str]:
    steps = parse((source / ENSEMBLE).read_text(encoding="utf-8"))
    of: dict[str, Signature] = {}
    for step in steps:
        path = (source / f"{step.model}.onnx").resolve()
        if step.model not in of and path.is_file() and path.is_relative_to(source.resolve()):
            of[step.model] = _one(repository, path, step.model, 1, settings)
    if name in of:
        raise InvalidInput(f"the ensemble and its step {name!r} have one name", details=[Problem("steps", name)])
    text = ensemble(name, steps, of, settings.batching.most)
    (repository / name / str(version)).mkdir(parents=True, exist_ok=True)
    (repository / name / "config.pbtxt").write_text(text, encoding="utf-8")
    return [name]  # Triton loads what it is composed of


def parse(text: str) -> list[Step]:
    """``ensemble.yaml``: a list ``steps`` of ``model`` (a file of the folder, without .onnx), ``inputs`` and ``outputs``."""
    found, problems = read(text)
    value = found[0][0] if found and found[0] is not None else None
    steps = value.get("steps") if isinstance(value, dict) else None
    if problems or not isinstance(steps, list):
        raise InvalidInput(f"{ENSEMBLE} cannot be read", details=problems or [Problem("steps", "must be a list")])
    made = []
    for number, step in enumerate(steps):
        if not isinstance(step, dict) or not _mapped(step) or not isinstance(step.get("model"), str):
            words = "needs `model` and the mappings `inputs` and `outputs`: " + json.dumps(
                {"model": "scale", "inputs": {"x": "image"}}
            )
            problems.append(Problem(f"steps[{number}]", words))
            continue
        made.append(Step(step["model"], step["inputs"], step["outputs"]))
    if problems:
        raise InvalidInput(f"{ENSEMBLE} cannot be read", details=problems)
    return made


def _mapped(step: Mapping[str, object]) -> bool:
    return set(step) == {"model", "inputs", "outputs"} and all(
        isinstance(step[word], dict) and all(isinstance(x, str) for pair in step[word].items() for x in pair)  # type: ignore[attr-defined]  # it is a dict
        for word in ("inputs", "outputs")
    )


if __name__ == "__main__":
    sys.exit(main())
