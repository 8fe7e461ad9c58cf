"""What a run took."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

__all__ = ["Report"]


@dataclass
class Report:
    """What a run took. Filled by the forward run, and again by each backward.

    Attributes:
        steps: of the run.
        weights: how many are trained.
        hyperparameters: elements that get a gradient, initial weights not counted.
        trajectory_bytes: what storing the weights of every step would have taken.
        environment: name -> value of what the bits of a gradient depend on beside the program: versions of torch and its
            libraries, processor, threads, settings of precision, GPU; as they were in training.
        adjoint: the memory strategy, as text.
        exact: whether its gradients are those of the run.
        approximation: if not, what it leaves out.
        forward_seconds: wall-clock time of training.
        backward_seconds: wall-clock time of the last backward; 0 before.
        compile_seconds: of forward_seconds, those for compiling the gradient and for comparing it with the loss as it is.
        compiled_alike: whether the compiled gradient had the same bits with and without what products need. If not, training took
            the one with it, too, which is a little slower.
        state_bytes: integers of weights and states, held from forward to backward.
        information_bytes: the bits that the decays dropped, at the end of training, or of the longest segment.
        log_bytes: hashes and scales.
        information_bits: information_bytes in bits per weight and step.
        limit_bits: log2(1/factor), summed over the factors by which states and weights decay, averaged over weights and steps.
        weights_below_eps: of optimizers that divide by a root plus an eps, how many weights had a root below it in the last step,
            as those that never get a gradient have. Derivatives through them are true, up to 1/eps, and of use for changes of
            that size only: a larger eps makes them smaller.
        kept_bytes: the most that snapshots, checkpoints or states between segments took at a time.
        steps_again: steps that were trained once more for a backward, over all backwards.
        checks: steps back that were compared with the hash of the step forward, over all backwards.
        adjoint_norms: Euclidean norm of the gradient by the weights after each number of steps taken, the first one by the
            initial weights, of the last backward and its first loss; empty before. Where it explodes, training is chaotic.
        derivative_error: the largest distance that was found, before training, between the loss's second derivatives and
            differences of its gradient, in units of their size; None where they were not compared.
        restored: whether the last backward went through the trajectory of training: :class:`Reversible` ended at the initial
            weights, bit for bit; with plain floats, every step's loss was the same.
    """

    steps: int
    weights: int
    hyperparameters: int
    trajectory_bytes: int
    adjoint: str = ""
    exact: bool = True
    approximation: str = ""
    forward_seconds: float = 0.0
    backward_seconds: float = 0.0
    compile_seconds: float = 0.0
    compiled_alike: bool = True
    state_bytes: int = 0
    information_bytes: int = 0
    log_bytes: int = 0
    information_bits: float = 0.0
    limit_bits: float = 0.0
    weights_below_eps: int = 0
    kept_bytes: int = 0
    steps_again: int = 0
    checks: int = 0
    restored: bool = False
    derivative_error: float | None = None
    adjoint_norms: Sequence[float] = field(default=(), repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
