"""What the data of a training may be, beside whole and the one that was asked for."""

from __future__ import annotations

from penstock.base.errors import PenstockError


class DataError(PenstockError):
    """Base of what this package raises on purpose."""

    code, status, exit_code = "DataError", 422, 2
    hint = "docs/data.md says what a data set is, and how it is read."


class DataDamaged(DataError):
    """A chunk is missing, short, or not what was written."""

    code, status, exit_code = "DataDamaged", 500, 1
    hint = "`penstock data verify FOLDER` names every chunk that is not whole."


class OtherData(DataError):
    """The position in a checkpoint is one in other data, or in another order of them."""

    code = "OtherData"
    hint = (
        "Read the data that the checkpoint was trained on, with the same block size, seed and window; or start afresh."
    )
