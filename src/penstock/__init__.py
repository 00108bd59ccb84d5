"""Penstock's public face, loaded when first asked for (PEP 562): ``import penstock`` costs a training nothing."""

TYPE_CHECKING = False  # as typing has it, without importing typing
if TYPE_CHECKING:
    from penstock import export
    from penstock.client.client import Client
    from penstock.worker.checkpoint import public as checkpoint
    from penstock.worker.data import public as data
    from penstock.worker.report import report
    from penstock.worker.watch import watch

__all__ = ["Client", "checkpoint", "data", "export", "report", "watch"]


def __getattr__(name: str) -> object:
    """``penstock.Client`` takes what it is not given from the environment, as the command line does."""
    if name == "Client":
        import os

        from penstock.app import settings_from
        from penstock.client.client import with_defaults

        value: object = with_defaults(lambda: settings_from(os.environ))
    elif name == "checkpoint":  # brings torch
        from penstock.worker.checkpoint import public as value
    elif name == "data":  # brings torch and litdata
        from penstock.worker.data import public as value
    elif name == "export":  # brings torch and ONNX
        from importlib import import_module

        value = import_module("penstock.export")
    elif name == "report":
        from penstock.worker.report import report as value
    elif name == "watch":  # brings torch
        from penstock.worker.watch import watch as value
    else:
        raise AttributeError(f"module 'penstock' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
