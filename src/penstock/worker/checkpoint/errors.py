"""What can be wrong with a checkpoint, each with its own name so that a script can tell them apart."""

from __future__ import annotations

from penstock.base.errors import PenstockError


class CheckpointError(PenstockError):
    """Base of what this package raises on purpose."""

    code, status, exit_code = "CheckpointError", 500, 1
    hint = "`penstock checkpoint verify FOLDER` says which checkpoints are whole."


class Damaged(CheckpointError):
    """A file is missing, short, or not what was written."""

    code = "CheckpointDamaged"


class OtherModel(CheckpointError):
    """The checkpoint is whole, but of another model."""

    code, status, exit_code = "OtherModel", 422, 2
    hint = "Give the folder of this model's checkpoints, or another folder to start afresh."


class NewerFormat(CheckpointError):
    code, status, exit_code = "NewerFormat", 422, 2
    hint = "Install the Penstock that wrote it, or a newer one."


class FolderInUse(CheckpointError):
    code, status, exit_code = "FolderInUse", 409, 5
    hint = "Give each job its own folder, or wait until the other one has ended."


class Unencodable(CheckpointError):
    """State that is neither a tensor nor plain data. It would need pickle, which can run code when it is read."""

    code, status, exit_code = "Unencodable", 422, 2
    hint = "Keep numbers, text, lists, dictionaries and tensors in state_dict(); pickle is never used."


class SaveFailed(CheckpointError):
    """A save in the background came to nothing; checkpoints that were committed before are untouched."""

    code = "SaveFailed"
    hint = "The last checkpoint that was committed is intact; mend what is named and save again."


def by_code(code: str) -> type[CheckpointError]:
    """The error that another process named."""
    return next((error for error in CheckpointError.__subclasses__() if error.code == code), CheckpointError)
