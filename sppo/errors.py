"""The one exception tree. Each message names the thing, the value, what was expected and the next move."""


class SppoError(Exception):
    """Base of every error this package raises on purpose; the command line prints its message without a traceback."""


class RecipeError(SppoError):
    """A recipe (what is computed) cannot be read or asks for something impossible."""


class HardwareError(SppoError):
    """A hardware file (where it runs) cannot be read, or does not fit the recipe or this machine."""


class PromptError(SppoError):
    """A prompt dataset, or a row of it, cannot be used."""


class PolicyError(SppoError):
    """A policy's weights or tokenizer cannot be used."""


class JudgeError(SppoError):
    """A judge cannot be loaded, or cannot judge what it was given."""


class EstimateError(SppoError):
    """Judge logits cannot be turned into win probabilities."""


class EvaluationError(SppoError):
    """An evaluation's files or answers cannot be used, or say nothing."""


class GateError(SppoError):
    """An iteration did not pass its gates, so no other follows it."""


class TrainError(SppoError):
    """A training run cannot start, continue or be trusted."""


class RunError(SppoError):
    """A run's name, iteration or index is not usable."""


class StoreError(SppoError):
    """The artifact store cannot be reached, written or believed."""


class CorruptArtifactError(StoreError):
    """An object's bytes differ from what its manifest says."""


class CardError(SppoError):
    """A model card cannot be written from what there is, or its repository cannot be used."""


class LaunchError(SppoError):
    """A worker process failed; carries its exit status and last lines."""


class OutOfMemoryError(LaunchError):
    """A worker process needed more memory than its device has."""


class TimeUpError(LaunchError):
    """A stage was not done within the hardware file's time."""


class StoppedError(LaunchError):
    """A run was cancelled, or lost to another attempt: its processes were ended, and nothing is tried again."""


def named(name: str) -> type[SppoError]:
    """The class of an error that another process, or a record in the store, names; LaunchError for any other name."""
    found = globals().get(name)
    return found if isinstance(found, type) and issubclass(found, SppoError) else LaunchError
