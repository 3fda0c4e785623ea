"""Everything that latmod tells its user when something cannot be done.

A message says what is wrong, where (file, key, node) and what to do. The library raises; only the command line prints.
"""


class LatmodError(Exception):
    """Stop with one line for the user; `exit_code` is what the command line returns."""

    exit_code = 1


class SpecError(LatmodError):
    """Reject a space or a spec: unknown key, wrong type, empty or impossible range."""


class GraphError(LatmodError):
    """Reject an `.onnx` file that cannot be read as one static graph."""


class MachineError(LatmodError):
    """Refuse to mix measurements of two machines, or a setting that this machine does not have."""


class DatasetError(LatmodError):
    """Reject a data set folder: unreadable, of another schema, locked, or of other settings."""


class PredictorError(LatmodError):
    """Reject a predictor file: not one of ours, another schema, or tampered with."""


class RuntimeMissingError(LatmodError):
    """Say that a runtime is not installed and which extra installs it."""


class UnsupportedModelError(LatmodError):
    """Say that a runtime cannot run a model, and which operator stands in the way."""


class WorkerError(LatmodError):
    """Report a worker that died, hung, or outgrew its memory."""


class PartialFailure(LatmodError):
    """Finish with failed parts; what was measured is kept."""

    exit_code = 3


class OutOfDomainError(LatmodError):
    """Refuse an out-of-domain prediction under `--strict`."""

    exit_code = 4
