"""Exit codes of the trainer: the one-word answer of a pod to "what happened?".

The codes 64 to 79 lie in the range that sysexits.h reserves, so no Python crash (1), signal (128 + n) or shell
error (126, 127) can be mistaken for one of ours. The operator's blame table reads the same constants.
"""

from enum import IntEnum

__all__ = ["ExitCode"]


class ExitCode(IntEnum):
    """What a worker, and through the launcher its pod, ends with."""

    OK = 0
    """Trained, evaluated and published (or the result was there already)."""
    ERROR = 1
    """An unexpected exception; the termination message holds the last line of the traceback."""
    CONFIG = 64
    """The configuration cannot work (EX_USAGE): the user's to fix, never retried."""
    DATA = 65
    """The model or the dataset cannot work (EX_DATAERR): the user's to fix, never retried."""
    NO_DEVICE = 69
    """The pod was promised a CUDA device and sees none (EX_UNAVAILABLE): the infrastructure's fault."""
    PREEMPTED = 75
    """Told to stop, by SIGTERM or by a higher fence (EX_TEMPFAIL): run again."""
    PEER_LOST = 76
    """Another rank went away: a victim, never the cause (EX_PROTOCOL)."""
    OUT_OF_MEMORY = 77
    """The device or the allocator ran out of memory."""
    HANG = 78
    """A phase exceeded its limit; the log holds the stacks of all threads."""
    NON_FINITE = 79
    """The loss or the gradient norm became NaN or infinite."""
