"""The recipe of training: all of its options in one dataclass, validated when it is made."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from nngp_dag.errors import InputError
from nngp_dag.graph.operations import as_number, check_flag, check_option, check_whole
from nngp_dag.theory.sgd import LOSSES

SCHEDULES = ("constant", "multistep", "cosine")
_MOST_EPOCHS = 1_000_000

R = TypeVar("R")


class AnyRecipe:
    """Common methods of all recipes."""

    learning_rates: Callable[[int], optax.Schedule]

    def learning_rates_at(self, steps: np.ndarray, steps_per_epoch: int) -> Float[np.ndarray, " n"]:
        """Returns the learning rates of steps, (n,), given the numbers of steps taken before each of them."""
        rates = self.learning_rates(steps_per_epoch)(jnp.asarray(steps))
        return np.broadcast_to(np.asarray(rates, np.float64), steps.shape)

    def as_dict(self) -> dict[str, Any]:
        """Returns all fields as a dict that JSON can hold."""
        fields = dataclasses.asdict(self)  # type: ignore[call-overload]
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls: type[R], fields: dict[str, Any]) -> R:
        """Returns the recipe with the fields that `as_dict` returned."""
        return cls(**{name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()})


def check_warmup(warmup: int, epochs: int) -> None:
    """Refuses a warmup that is longer than the training."""
    if warmup > epochs:
        raise InputError(f"Expected `warmup` to be at most `epochs`, {epochs}, got {warmup}; pass fewer, or 0 for none")


def check_accumulate(accumulate: int, batch_size: int) -> None:
    """Refuses numbers of parts that do not divide a batch."""
    if batch_size % accumulate:
        raise InputError(
            f"Expected `batch_size` to be a multiple of `accumulate`, {accumulate}, got {batch_size}; change one"
        )


@dataclasses.dataclass(frozen=True)
class Recipe(AnyRecipe):
    """Recipe of stochastic gradient descent for a network; `nngp_dag.Network` describes the network itself.

    Attributes:
      epochs: Number of passes over the training part.
      batch_size: Number of examples per step. Every epoch draws a new order; its last batch may be smaller.
      learning_rate: Step size eta, the factor of the gradient of the batch's mean loss.
      momentum: Coefficient mu in m <- mu m + g, in [0, 1); the step is -eta m.
      nesterov: Whether the step is -eta (g + mu m) instead.
      weight_decay: Factor of every parameter, biases included, that is added to its gradient.
      warmup: Number of epochs over which the learning rate grows linearly, step by step, to `learning_rate`.
      schedule: Learning rate after the warmup: "constant", "multistep" (a tenth of it at every milestone), or "cosine"
        (down to 0).
      milestones: Epochs at which "multistep" divides the learning rate by 10, counted from the start; by default half
        and three quarters of `epochs`.
      loss: Loss of one example: "cross-entropy", or "squared", 0.5 ||y - f||^2 with one-hot y.
      accumulate: Number K of parts of a batch whose gradients are computed one after another and averaged, for batches
        that do not fit into memory. Batch normalization takes the statistics of a part.
      batch_norm: Whether batch normalization with live batch statistics follows the weights of stem and edges. No
        kernel here describes such networks.

    Raises:
      InputError: A number is out of range or an option is unknown.

    Examples:
      >>> recipe = Recipe(epochs=10, learning_rate=0.1, warmup=2, schedule="cosine")
      >>> rate = recipe.learning_rates(steps_per_epoch=5)
      >>> [round(float(rate(step)), 4) for step in (0, 4, 9, 10, 30)]
      [0.01, 0.05, 0.1, 0.1, 0.05]

    Reference: Chen et al., NeurIPS 2022, and its published trainer (batches, warm-up); Sutskever et al., ICML 2013
    (Nesterov's momentum); Loshchilov and Hutter, ICLR 2017 (cosine).
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 0.05
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    warmup: int = 0
    schedule: str = "constant"
    milestones: Sequence[int] | None = None
    loss: str = "cross-entropy"
    batch_norm: bool = False
    accumulate: int = 1

    def __post_init__(self) -> None:
        """Refuses values that are out of range."""
        for name, least in (("epochs", 1), ("batch_size", 1), ("warmup", 0), ("accumulate", 1)):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), least))
        for name in ("nesterov", "batch_norm"):
            object.__setattr__(self, name, check_flag(name, getattr(self, name)))
        for name in ("learning_rate", "momentum", "weight_decay"):
            object.__setattr__(self, name, float(as_number(name, getattr(self, name))))
        if self.epochs > _MOST_EPOCHS:
            raise InputError(f"Expected `epochs` to be at most {_MOST_EPOCHS:,}, got {self.epochs}")
        if self.learning_rate <= 0:
            raise InputError(f"Expected `learning_rate` to be above 0, got {self.learning_rate}")
        if not 0 <= self.momentum < 1:
            raise InputError(f"Expected `momentum` in [0, 1), got {self.momentum}")
        if self.nesterov and not self.momentum:
            raise InputError("Expected `momentum` above 0 with `nesterov`, got 0; set a momentum such as 0.9")
        if self.weight_decay < 0:
            raise InputError(f"Expected `weight_decay` to be at least 0, got {self.weight_decay}")
        check_warmup(self.warmup, self.epochs)
        check_option("schedule", self.schedule, SCHEDULES)
        check_option("loss", self.loss, LOSSES)
        if self.milestones is not None:
            if self.schedule != "multistep":
                raise InputError(f"Expected no `milestones` with `schedule` {self.schedule!r}, got {self.milestones}")
            given = self.milestones if isinstance(self.milestones, (Sequence, np.ndarray)) else [self.milestones]
            milestones = tuple(check_whole("milestones", milestone, 1) for milestone in given)
            if not milestones or any(a >= b for a, b in itertools.pairwise(milestones)):
                raise InputError(f"Expected `milestones` to be increasing numbers of epochs, got {milestones}")
            if milestones[-1] >= self.epochs:
                raise InputError(f"Expected `milestones` below the {self.epochs} epochs, got {milestones[-1]}")
            object.__setattr__(self, "milestones", milestones)
        check_accumulate(self.accumulate, self.batch_size)
        if self.batch_norm and self.batch_size == self.accumulate:
            raise InputError(
                f"Expected `batch_size` above {self.accumulate} with `batch_norm`, got {self.batch_size}: one example "
                "has no variance"
            )

    def learning_rates(self, steps_per_epoch: int) -> optax.Schedule:
        """Returns the learning rate as a function of the number of steps already taken."""
        warm = self.warmup * steps_per_epoch
        if self.schedule == "constant":
            base = optax.constant_schedule(self.learning_rate)
        elif self.schedule == "cosine":
            base = optax.cosine_decay_schedule(self.learning_rate, max(1, self.epochs * steps_per_epoch - warm))
        else:
            # The schedule below counts its steps from the end of the warmup, the milestones from the start.
            milestones = self.milestones or sorted({max(1, self.epochs // 2), max(1, self.epochs * 3 // 4)})
            boundaries = {milestone * steps_per_epoch - warm: 0.1 for milestone in milestones}
            base = optax.piecewise_constant_schedule(self.learning_rate, boundaries)
        if not warm:
            return base

        def rate(step: Any) -> Any:
            return jnp.where(step < warm, self.learning_rate * (step + 1) / warm, base(step - warm))

        return rate

    def optimizer(self, steps_per_epoch: int) -> optax.GradientTransformation:
        """Returns the optax transformation that turns gradients into updates."""
        # The decay enters the momentum, as in PyTorch's SGD; it is not decoupled.
        return optax.chain(
            optax.add_decayed_weights(self.weight_decay) if self.weight_decay else optax.identity(),
            optax.sgd(self.learning_rates(steps_per_epoch), self.momentum or None, self.nesterov),
        )

    def losses(self, outputs: Float[Array, "n c"], labels: Int[Array, " n"]) -> Float[Array, " n"]:
        """Returns the loss of every example."""
        if self.loss == "cross-entropy":
            return optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        targets = jnp.eye(outputs.shape[-1], dtype=outputs.dtype)[labels]
        return 0.5 * jnp.sum((targets - outputs) ** 2, axis=-1)
