"""The ways a pod can end other than well, each with the exit code the operator's blame table reads.

    TrainerError
    ├── UserFaultError
    │   ├── ConfigError     64  the job's specification cannot work
    │   └── DataError       65  the model or the dataset cannot work
    ├── NoCudaError         69  the pod was promised a GPU and has none: the infrastructure's fault
    ├── PreemptedError      75  told to stop, by SIGTERM or by a newer gang
    ├── PeerLostError       76  another rank went away
    └── NonFiniteError      79  loss or gradient norm is NaN or infinite

``prepare/errors.py`` adds what only that stage can meet. Everything else (out of memory, a bug) is recognised by
:mod:`finetune_trainer.outcome`. Torch-free.
"""

from __future__ import annotations

from finetune_trainer.exit_codes import ExitCode
from finetune_trainer.messages import UserFault

_VALUE_LIMIT = 120


def shorten(text: str, limit: int = _VALUE_LIMIT) -> str:
    """The text, or its beginning and an ellipsis."""
    return text if len(text) <= limit else text[: limit - 1] + "…"


class TrainerError(Exception):
    """Base of all ends that the trainer names itself."""

    exit_code = ExitCode.ERROR
    cause = "Application"


class UserFaultError(TrainerError):
    """Only the user can mend it: says which field of the FineTuneJob, and how."""

    cause = "UserError"

    def __init__(self, field: str, value: object, message: str, remedy: str) -> None:
        super().__init__(f"{field}: {message}")
        self.fault = UserFault(field=field, value=shorten(str(value)), message=message, remedy=remedy)


class ConfigError(UserFaultError):
    """The job's specification cannot work."""

    exit_code = ExitCode.CONFIG


class DataError(UserFaultError):
    """The model or the dataset cannot work."""

    exit_code = ExitCode.DATA


class NoCudaError(TrainerError):
    """``topology.device`` is cuda and this rank has no CUDA device. Never a silent CPU run."""

    exit_code = ExitCode.NO_DEVICE
    cause = "NoCuda"


class PreemptedError(TrainerError):
    """Told to stop. The last completed step is saved where that was possible."""

    exit_code = ExitCode.PREEMPTED
    cause = "Preempted"


class PeerLostError(TrainerError):
    """A collective failed because another rank went away."""

    exit_code = ExitCode.PEER_LOST
    cause = "PeerLost"


class NonFiniteError(TrainerError):
    """The loss or the gradient norm became NaN or infinite."""

    exit_code = ExitCode.NON_FINITE
    cause = "NonFinite"
