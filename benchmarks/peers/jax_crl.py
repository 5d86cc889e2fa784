"""The same gradient update in JAX and optax: the published learner, to be timed beside ours.

Faithful to the published code: three optax.adam(3e-4), actor and temperature before the critic on
each batch, variance as E[x^2] - E[x]^2, many updates inside one jitted scan with donated state.
Faster in JAX than the published code: the B x B logits come from one matmul and not from a
B x B x R tensor, so that the towers are compared; a batch is one uniform draw of rows.
As published, each loss runs the towers that it needs: XLA may merge the two passes of the goal
encoder if layers are unrolled, but it cannot merge the loops of "scan".

Importing this module makes JAX allocate GPU memory as needed, unless the variable
XLA_PYTHON_CLIENT_PREALLOCATE says otherwise: by default JAX takes three quarters of the memory at
its first use, and a PyTorch contender in the same process would find too little. Set the variable
earlier where JAX has already started its backend.

B batch, D width, N blocks, S state, G goal, A action, R representation, M rows of the data set.
"""

import math
import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax, random

BLOCK = 4
UNROLLED_UP_TO = 64
EPSILON = 1e-6
ADAM = optax.adam(3e-4)

Dense = Callable[[Array, Array], Array]


class Layer(NamedTuple):
    """A dense layer and the LayerNorm after it; with a leading [N] if blocks are stacked."""

    weight: Array
    """[in, out]"""
    bias: Array
    scale: Array
    shift: Array


Block = tuple[Layer, ...]


class Tower(NamedTuple):
    """The published residual tower and its linear output layer."""

    input: Layer
    blocks: Block | tuple[Block, ...]
    """Four stacked layers ("scan"), or N times four layers ("unrolled")."""
    output_weight: Array
    output_bias: Array


class TrainState(NamedTuple):
    """All that an update changes."""

    actor: Tower
    critic: tuple[Tower, Tower]
    """State-action encoder and goal encoder."""
    log_alpha: Array
    actor_adam: optax.OptState
    critic_adam: optax.OptState
    alpha_adam: optax.OptState


class Batch(NamedTuple):
    """Transitions: state [B, S], action [B, A], goal [B, G]."""

    state: Array
    action: Array
    goal: Array


Losses = dict[str, Array]


class JaxCrl:
    """Actor, temperature and critic, changed in place by `update` and `run`."""

    def __init__(
        self,
        *,
        state_size: int,
        goal_size: int,
        action_size: int,
        width: int,
        depth: int,
        representation_size: int = 64,
        precision: str = "fp32",
        layers: str | None = None,
        scan_unroll: int = 1,
        batch_size: int = 512,
        data_rows: int = 100_000,
        seed: int = 0,
    ) -> None:
        """Put fresh parameters and a random data set on JAX's default device.

        Args:
            state_size, goal_size, action_size, width, depth, representation_size: as ours.
            precision: "fp32" multiplies in full fp32 and "tf32" allows TF32 (JAX's own default on
                a GPU); "bf16" rounds the inputs of every dense layer's matmuls, forward and
                backward, and keeps parameters, results and the residual stream in fp32. The matmul
                of the logits is fp32 in all three.
            layers: "unrolled" writes every layer into the program, as published; "scan" is a
                lax.scan over blocks of four with stacked parameters, whose compile time does not
                grow with depth. None: "unrolled" up to depth 64, "scan" above.
            scan_unroll: blocks per iteration of that scan's loop.
            batch_size, data_rows: rows of a batch, and of the data set, in `run`.
            seed: equal seeds give equal weights with either `layers`.
        """
        if depth <= 0 or depth % BLOCK:
            raise ValueError(f"depth must be a positive multiple of {BLOCK}, got {depth}")
        self.layers = layers or ("unrolled" if depth <= UNROLLED_UP_TO else "scan")
        self.precision, self.scan_unroll, self.batch_size = precision, scan_unroll, batch_size
        network = partial(_tower, width=width, depth=depth, stacked=_CHOICES[self.layers])
        keys = random.split(random.key(seed), 5)
        actor = network(keys[0], state_size + goal_size, 2 * action_size)
        critic = (
            network(keys[1], state_size + action_size, representation_size),
            network(keys[2], goal_size, representation_size),
        )
        log_alpha = jnp.zeros(())
        adams = (ADAM.init(actor), ADAM.init(critic), ADAM.init(log_alpha))
        self.state = TrainState(actor, critic, log_alpha, *adams)
        self.data = Batch(
            *(
                random.normal(key, (data_rows, size))
                for key, size in zip(
                    random.split(keys[3], 3), (state_size, action_size, goal_size), strict=True
                )
            )
        )
        self.data = self.data._replace(action=jnp.tanh(self.data.action))
        self._key = keys[4]
        forward = partial(_forward, dense=_DENSES[precision], scan_unroll=scan_unroll)
        step = partial(_update, forward=forward, target_entropy=-0.5 * action_size)
        self._update = jax.jit(step, donate_argnums=0)
        self._run = jax.jit(
            partial(_run, step=step, batch_size=batch_size),
            static_argnames="updates",
            donate_argnums=(0, 1),
        )
        self._programs: dict[int, jax.stages.Compiled] = {}

    def update(self, state: Array, action: Array, goal: Array, noise_key: Array) -> Losses:
        """One update on state [B, S], action [B, A], goal [B, G]; returns the losses before it."""
        noise = random.normal(noise_key, action.shape, jnp.float32)
        return self.update_with_noise(state, action, goal, noise)

    def update_with_noise(self, state: Array, action: Array, goal: Array, noise: Array) -> Losses:
        """As `update`, with the actor's standard normal draws [B, A] given."""
        batch = Batch(*(jnp.asarray(part) for part in (state, action, goal)))
        self.state, losses = self._update(self.state, batch, jnp.asarray(noise))
        return losses

    def compile(self, updates: int) -> float:
        """Compile `run(updates)` and return how many seconds that took."""
        begin = time.perf_counter()
        lowered = self._run.lower(self.state, self._key, self.data, updates=updates)
        self._programs[updates] = lowered.compile()
        return time.perf_counter() - begin

    def run(self, updates: int) -> Losses:
        """Run this many updates as one program on the device; returns losses [updates] when done.

        Every update draws `batch_size` rows of the data set. Compiles if `compile` has not.
        """
        if updates not in self._programs:
            self.compile(updates)
        program = self._programs[updates]
        self.state, self._key, losses = program(self.state, self._key, self.data)
        jax.block_until_ready((self.state, losses))
        return losses

    def describe(self) -> dict[str, Any]:
        """What a benchmark must say beside this peer's figures."""
        device = jax.local_devices()[0]
        return {
            "jax": jax.__version__,
            "optax": optax.__version__,
            "jax_device": device.device_kind,
            "precision": self.precision,
            "layers": self.layers,
            "scan_unroll": self.scan_unroll,
        }


def backend() -> str:
    """What JAX runs on: `cpu`, `gpu` or `tpu`; without a suitable plugin it is the CPU."""
    return str(jax.default_backend())


def peak_bytes() -> int | None:
    """Most bytes ever in use by JAX in this process; None where JAX does not count (CPU)."""
    statistics = jax.local_devices()[0].memory_stats()
    return statistics.get("peak_bytes_in_use") if statistics else None


_CHOICES = {"unrolled": False, "scan": True}


def _uniform(key: Array, *shape: int) -> Array:
    bound = math.sqrt(1.0 / shape[-2])
    return random.uniform(key, shape, minval=-bound, maxval=bound)


def _layer(key: Array, *shape: int) -> Layer:
    """A fresh layer with weights [..., in, out]."""
    vector = (*shape[:-2], shape[-1])
    return Layer(_uniform(key, *shape), jnp.zeros(vector), jnp.ones(vector), jnp.zeros(vector))


def _tower(
    key: Array, input_size: int, output_size: int, *, width: int, depth: int, stacked: bool
) -> Tower:
    count = depth // BLOCK
    first, last, *inner = random.split(key, 2 + BLOCK)
    blocks: Block | tuple[Block, ...] = tuple(_layer(key, count, width, width) for key in inner)
    if not stacked:
        blocks = tuple(jax.tree.map(lambda leaf, i=i: leaf[i], blocks) for i in range(count))
    return Tower(
        _layer(first, input_size, width),
        blocks,
        _uniform(last, width, output_size),
        jnp.zeros(output_size),
    )


def _product16(x: Array, y: Array) -> Array:
    return jnp.matmul(
        x.astype(jnp.bfloat16), y.astype(jnp.bfloat16), preferred_element_type=jnp.float32
    )


# Without a rule of its own, the gradient of a bf16 matmul would be computed in fp32.
@jax.custom_vjp
def _dense16(x_BI: Array, weight_IO: Array) -> Array:
    return _product16(x_BI, weight_IO)


def _dense16_forward(x_BI: Array, weight_IO: Array) -> tuple[Array, tuple[Array, Array]]:
    return _product16(x_BI, weight_IO), (x_BI.astype(jnp.bfloat16), weight_IO)


def _dense16_backward(saved: tuple[Array, Array], gradient_BO: Array) -> tuple[Array, Array]:
    x_BI, weight_IO = saved
    return _product16(gradient_BO, weight_IO.T), _product16(x_BI.T, gradient_BO)


_dense16.defvjp(_dense16_forward, _dense16_backward)

_DENSES: dict[str, Dense] = {
    "fp32": partial(jnp.matmul, precision="highest"),
    "tf32": partial(jnp.matmul, precision="tensorfloat32"),
    "bf16": _dense16,
}


def _layer_forward(layer: Layer, x_BI: Array, dense: Dense) -> Array:
    """Dense - LayerNorm - swish: [B, in] to [B, out]."""
    x_BD = dense(x_BI, layer.weight) + layer.bias
    mean_B1 = x_BD.mean(-1, keepdims=True)
    variance_B1 = jnp.maximum(jnp.square(x_BD).mean(-1, keepdims=True) - jnp.square(mean_B1), 0.0)
    x_BD = (x_BD - mean_B1) * (lax.rsqrt(variance_B1 + EPSILON) * layer.scale) + layer.shift
    return jax.nn.silu(x_BD)


def _forward(tower: Tower, x: Array, *, dense: Dense, scan_unroll: int) -> Array:
    """[B, in] to [B, out]."""

    def block(x_BD: Array, layers: Block) -> tuple[Array, None]:
        inner_BD = x_BD
        for layer in layers:
            inner_BD = _layer_forward(layer, inner_BD, dense)
        return x_BD + inner_BD, None

    x_BD = _layer_forward(tower.input, x, dense)
    if isinstance(tower.blocks[0], Layer):
        x_BD, _ = lax.scan(block, x_BD, tower.blocks, unroll=scan_unroll)
    else:
        for layers in tower.blocks:
            x_BD, _ = block(x_BD, layers)
    return dense(x_BD, tower.output_weight) + tower.output_bias


Forward = Callable[[Tower, Array], Array]


def _actor_loss(
    actor: Tower,
    critic: tuple[Tower, Tower],
    log_alpha: Array,
    batch: Batch,
    noise_BA: Array,
    forward: Forward,
) -> tuple[Array, Array]:
    """The loss, and log pi [B] for the temperature."""
    output = forward(actor, jnp.concatenate([batch.state, batch.goal], -1))
    mean_BA, raw_BA = jnp.split(output, 2, axis=-1)
    log_std_BA = -5.0 + 3.5 * (jnp.tanh(raw_BA) + 1.0)
    action_BA = jnp.tanh(mean_BA + jnp.exp(log_std_BA) * noise_BA)
    gaussian_BA = -0.5 * jnp.square(noise_BA) - log_std_BA - 0.5 * math.log(2.0 * math.pi)
    log_prob_B = (gaussian_BA - jnp.log(1.0 - jnp.square(action_BA) + 1e-6)).sum(-1)
    phi_BR = forward(critic[0], jnp.concatenate([batch.state, action_BA], -1))
    psi_BR = forward(critic[1], batch.goal)
    energy_B = -jnp.sqrt(jnp.square(phi_BR - psi_BR).sum(-1) + EPSILON)
    return (jnp.exp(log_alpha) * log_prob_B - energy_B).mean(), log_prob_B


def _alpha_loss(log_alpha: Array, log_prob_B: Array, target_entropy: float) -> Array:
    return jnp.exp(log_alpha) * (-log_prob_B - target_entropy).mean()


def _critic_loss(critic: tuple[Tower, Tower], batch: Batch, forward: Forward) -> Array:
    phi_BR = forward(critic[0], jnp.concatenate([batch.state, batch.action], -1))
    psi_BR = forward(critic[1], batch.goal)
    # Subtracting the goals' mean keeps the distances, and |x|^2 + |y|^2 - 2 x.y then cancels less.
    offset_R = lax.stop_gradient(psi_BR.mean(0))
    x_BR, y_BR = phi_BR - offset_R, psi_BR - offset_R
    squares_BB = jnp.square(x_BR).sum(-1)[:, None] + jnp.square(y_BR).sum(-1)
    squares_BB = squares_BB - 2.0 * jnp.matmul(x_BR, y_BR.T, precision="highest")
    logits_BB = -jnp.sqrt(jnp.maximum(squares_BB, 0.0) + EPSILON)
    logsumexp_B = jax.nn.logsumexp(logits_BB, axis=1)
    return (logsumexp_B - jnp.diagonal(logits_BB)).mean() + 0.1 * jnp.square(logsumexp_B).mean()


def _update(
    state: TrainState, batch: Batch, noise_BA: Array, *, forward: Forward, target_entropy: float
) -> tuple[TrainState, Losses]:
    (actor_loss, log_prob_B), gradient = jax.value_and_grad(_actor_loss, has_aux=True)(
        state.actor, state.critic, state.log_alpha, batch, noise_BA, forward
    )
    actor, actor_adam = _adam(state.actor, gradient, state.actor_adam)
    alpha_loss, gradient = jax.value_and_grad(_alpha_loss)(
        state.log_alpha, log_prob_B, target_entropy
    )
    log_alpha, alpha_adam = _adam(state.log_alpha, gradient, state.alpha_adam)
    critic_loss, gradient = jax.value_and_grad(_critic_loss)(state.critic, batch, forward)
    critic, critic_adam = _adam(state.critic, gradient, state.critic_adam)
    losses = {
        "actor_loss": actor_loss,
        "temperature_loss": alpha_loss,
        "critic_loss": critic_loss,
    }
    return TrainState(actor, critic, log_alpha, actor_adam, critic_adam, alpha_adam), losses


def _adam(parameters: Any, gradient: Any, state: optax.OptState) -> tuple[Any, optax.OptState]:
    change, state = ADAM.update(gradient, state)
    return optax.apply_updates(parameters, change), state


def _run(
    state: TrainState,
    key: Array,
    data: Batch,
    *,
    updates: int,
    step: Callable[[TrainState, Batch, Array], tuple[TrainState, Losses]],
    batch_size: int,
) -> tuple[TrainState, Array, Losses]:
    def one(carry: tuple[TrainState, Array], _: None) -> tuple[tuple[TrainState, Array], Losses]:
        state, key = carry
        key, index_key, noise_key = random.split(key, 3)
        index_B = random.randint(index_key, (batch_size,), 0, len(data.state))
        batch = Batch(*(part[index_B] for part in data))
        state, losses = step(state, batch, random.normal(noise_key, batch.action.shape))
        return (state, key), losses

    (state, key), losses = lax.scan(one, (state, key), None, length=updates)
    return state, key, losses
