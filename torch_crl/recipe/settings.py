"""Every setting of a run, with bounds and default; the docstrings are the texts of `--help`."""

from dataclasses import dataclass
from typing import Annotated, Literal, TypeAlias

from tyro.conf import Positional, arg

from torch_crl.agent.sizes import BlockName
from torch_crl.fields import (
    STRICT,
    BelowOne,
    Count,
    CountOrZero,
    Decay,
    Depth,
    Positive,
    PositiveOrZero,
    Seed,
    Steps,
    Threads,
    TwoOrMore,
)
from torch_crl.recipe.marks import (
    BY_ALL_WITH_REPLAY,
    BY_CONTRAST,
    BY_CRL,
    BY_LIBRARY,
    BY_OURS,
    BY_TIMES,
    Mark,
)

# Not a Literal, since one may be the user's own; `recipe.checks` asks whether it can be found.
ObjectiveName: TypeAlias = Annotated[str, arg(metavar="crl|safe|survival|chrono")]
Algo: TypeAlias = Literal["crl", "gcbc", "ppo", "sac", "td3", "sac_her", "td3_her"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskRecipe:
    """The task, and how many of its episodes run in parallel."""

    __pydantic_config__ = STRICT

    name: Annotated[Positional[str], arg(metavar="[TASK]"), Mark.NOT_OF_METHOD] = "reacher"
    """Task to train on: a name that `torch-crl envs` lists, `module:function` or `gymnasium:ID`."""
    eval_name: Annotated[str, Mark.SAME_IN_COMPARISONS] = "reacher"
    """Task to evaluate on; usually the training task."""
    num_envs: Annotated[Count, Mark.SIZE] = 512
    """Number of training envs, which collect in parallel."""
    num_eval_envs: Annotated[Count, Mark.SAME_IN_COMPARISONS] = 128
    """Number of evaluation envs; each runs one episode in every evaluation, all in parallel."""
    episode_length: Annotated[Count, Mark.SAME_IN_COMPARISONS] = 1000
    """Time limit of an episode, in control steps."""


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworksRecipe:
    """Architecture of the three residual networks: the actor and the critic's two encoders."""

    __pydantic_config__ = STRICT

    actor_depth: Annotated[Depth, Mark.IN_METHOD_NAME] = 4
    """Number of dense layers in the actor's residual blocks, a multiple of 4 (4 layers a block).
    With an --algo of Stable-Baselines3, 0 keeps that library's own network."""
    critic_depth: Annotated[Depth, Mark.IN_METHOD_NAME] = 4
    """Like --actor-depth, for each of the critic's two encoders, or for a baseline's critics."""
    width: Annotated[Count, Mark.OF_TOWERS] = 256
    """Number of units of every hidden layer."""
    representation_size: Annotated[Count, BY_CRL] = 64
    """Length of the representation vectors, the outputs of the critic's encoders."""
    activation: Annotated[Literal["swish", "relu"], Mark.OF_TOWERS] = "swish"
    """Activation function of the hidden layers; in the published block it follows LayerNorm."""
    block: Annotated[BlockName, Mark.OF_TOWERS] = "published"
    """Residual block: `published` is that of arXiv 2503.14858; `no_skip` has no skip connection;
    `no_norm` has LayerNorm's scale and shift only; `hyperspherical` keeps features and weight rows
    at norm 1 and moves the features towards each block's output (SimBaV2); `pre_norm` has LayerNorm
    before each dense layer of a block and before the output layer (SimBa). All these have equal
    numbers of parameters. `shared` applies one published block depth / 4 times, and `gated` one
    gated cell (IRU); policies of both can run at other depths. Triton kernels are for `published`,
    `pre_norm` and `shared`, numba's for the first two; others run in plain PyTorch."""
    actor_block: Annotated[Literal["same", "moe"], BY_OURS] = "same"
    """Residual block of the actor: `same` is that of --block; `moe` is a mixture of experts, in
    which a gate sends each state and goal through one of several published blocks (Switch
    Transformer). The critic has --block. A mixture runs in plain PyTorch."""
    experts: Annotated[TwoOrMore, BY_OURS] = 4
    """Number of experts in each block of --actor-block moe; an action costs the same for any."""
    branch: Annotated[Literal["auto", "published", "scaled"], Mark.OF_TOWERS] = "auto"
    """Factor on a block's output before the skip connection is added: `published` is 1; `scaled` is
    min(1, 16 / depth), so that the effect of a gradient update does not grow with depth; `auto` is
    `scaled` above depth 512, else `published`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GoalsRecipe:
    """What actor and critic see of a goal."""

    __pydantic_config__ = STRICT

    goals: Annotated[Literal["state", "words", "pictures"], BY_OURS, Mark.IN_METHOD_NAME] = "state"
    """`state`: the goal's own numbers, such as coordinates. `words`: a sentence about the place
    where it is, through a frozen encoder (the extra `words`); for tasks that name
    places. `pictures`: what a camera sees there, through a frozen encoder (the
    extra `pictures`). Success stays the task's own test on coordinates."""
    encoder: Annotated[str, BY_OURS] = ""
    """Encoder of the goals: `minilm` for words and `efficientnet_lite0` for pictures by default,
    else `transformers:FOLDER`, `open_clip:FOLDER`, or `module:function` of your own. Nothing is
    downloaded."""
    encoder_sha256: Annotated[str, BY_OURS] = ""
    """Checksum that the encoder's weights must have; filled in where a run begins."""
    same_place: Annotated[Literal["kept", "masked"], BY_CONTRAST] = "kept"
    """Whether goals of the same place in a batch are negatives of each other with --goals words.
    `kept` has the right optimum, since how often a place comes counts; `masked` leaves these pairs
    out, and then knows of a place that is more likely than not only that it is."""
    goal_features: Annotated[Count, BY_OURS] = 16
    """Number of principal components of the embeddings that the networks see of words or
    pictures."""
    picture_every: Annotated[Count, BY_CRL] = 10
    """With --goals pictures: number of control steps from one picture of an env to the next;
    hindsight goals are drawn among these. On a CPU a picture takes as long as 100 env steps."""
    picture_size: Annotated[Count, BY_CRL] = 128
    """Width and height of the pictures of --goals pictures, in pixels."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AlgorithmRecipe:
    """The learning algorithm, its objective and its optimisers."""

    __pydantic_config__ = STRICT

    algo: Annotated[Algo, Mark.IN_METHOD_NAME] = "crl"
    """`crl` is contrastive RL; `gcbc` goal-conditioned behaviour cloning; all others are baselines
    of Stable-Baselines3, those with `_her` trained on hindsight goals."""
    objective: Annotated[ObjectiveName, BY_CRL, Mark.IN_METHOD_NAME] = "crl"
    """What the critic of `--algo crl` learns: `crl` is contrastive RL; `safe` also learns what
    share of the future a failure takes away, for tasks whose episodes can fail (Safe-CRL);
    `survival` learns the distribution of the time to the goal (SRL); `chrono` also distances that
    are times, and how long the goal is held (ChronoSRL). `module:name` is one of your own."""
    value_discount: Annotated[BelowOne, BY_TIMES] = 0.999
    """Discount factor of the time to the goal in the value of `survival` and `chrono`."""
    censoring: Annotated[Literal["observed", "never"], BY_TIMES] = "observed"
    """What `survival` and `chrono` take from a step whose trajectory was cut before it reached its
    goal: `observed`, that it took longer than was seen; `never`, as published, that it takes for
    ever."""
    energy: Annotated[Literal["norm", "l2", "dot", "cosine"], BY_CONTRAST] = "norm"
    """The critic's logit, a similarity of the encoders' outputs: `norm` is minus their Euclidean
    distance, `l2` minus its square, `dot` their inner product, `cosine` that of unit vectors."""
    contrastive_loss: Annotated[
        Literal["forward_info_nce", "backward_info_nce", "symmetric_info_nce", "binary_nce"],
        BY_CONTRAST,
    ] = "forward_info_nce"
    """Critic loss: `forward_info_nce` classifies the goal of each state-action pair,
    `backward_info_nce` the state-action pair of each goal, `symmetric_info_nce` is their sum;
    `binary_nce` classifies each combination as true or false; it cannot learn with `cosine`."""
    logsumexp_penalty: Annotated[PositiveOrZero, BY_CONTRAST] = 0.1
    """Coefficient, in the critic loss, of the mean squared log-sum-exp of the rows of logits."""
    discount: BelowOne = 0.99
    """Discount factor. `crl` and `gcbc` draw each goal k control steps ahead with probability
    proportional to discount**k; the baselines discount rewards with it."""
    target_entropy: Annotated[float, BY_CRL] = -0.5
    """Target entropy of the policy, in nats per action dimension; the entropy coefficient is tuned
    to reach it."""
    initial_temperature: Annotated[Positive, BY_CRL] = 1.0
    """Entropy coefficient at the start of training. From the published 1, with the published
    learning rate, it takes 3,300 updates to fall by a factor of e; `reacher`, with 7,000 updates,
    learns in a third of the steps from 0.1 with --temperature-learning-rate 3e-3."""
    actor_learning_rate: Annotated[Positive, BY_OURS] = 3e-4
    """Learning rate of the actor's Adam optimiser, constant."""
    critic_learning_rate: Annotated[Positive, BY_CRL] = 3e-4
    """Learning rate of the Adam optimiser of the critic's two encoders, constant."""
    temperature_learning_rate: Annotated[Positive, BY_CRL] = 3e-4
    """Learning rate of the Adam optimiser of the log entropy coefficient, constant."""
    chunk: Annotated[Count, BY_CRL] = 1
    """Number H of consecutive actions that the actor decides at once and carries out one after the
    other, and that the critic judges together; 1 is one action at a time."""
    actor_goals: Annotated[Literal["own", "mixed"], BY_CRL] = "own"
    """Goals in the actor's loss: `own` is a goal from the future of each step, as in the critic's
    loss; with `mixed`, half of the steps take the goal of another step of the batch, which they
    need not have reached."""
    update_order: Annotated[Literal["together", "critic_first"], BY_CRL] = "together"
    """Order within an update: with `together`, as published, the actor's loss has the critic of
    before the update; with `critic_first`, the critic takes its step before."""
    goal_redraw: Annotated[Decay, BY_OURS] = 0.0
    """Probability, at each control step of a training env, that the commanded goal is drawn anew in
    the middle of the episode; it is then that of a new start, or another env's for Gymnasium."""
    load_balance: Annotated[PositiveOrZero, BY_OURS] = 0.01
    """With --actor-block moe, coefficient in the actor's loss of the load-balancing loss of Switch
    Transformer, which is 1 where all experts of a block are used alike; 0 leaves it out."""
    average_weights: Annotated[Decay, BY_OURS] = 0.0
    """Decay per update of an exponential moving average of the actor's weights, less in the first
    updates. Evaluations and saved policies use the average, collection the newest weights; 0 keeps
    no average."""
    batch_size: Annotated[TwoOrMore, Mark.SIZE] = 512
    """Number of steps in the batch of a gradient update; in `crl`, the goals of all other steps in
    the batch are the negatives of each."""
    negatives: Annotated[Literal["gathered", "local"], BY_CRL] = "gathered"
    """With several ranks, whose goals are the negatives of a rank's steps: `gathered`, those of all
    ranks, so that the update is that of the whole batch; `local`, its own, for slow networks."""
    parity: Literal["none", "reference"] = "none"
    """`reference` copies the published implementation in three details: each env repeats its first
    start and goal, hindsight goals are drawn within windows of --episode-length steps, and the last
    state of an episode is never a goal. `none` does none of these."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineRecipe:
    """Settings that only the baselines read; what no flag sets is Stable-Baselines3's default."""

    __pydantic_config__ = STRICT

    reward: Annotated[Literal["sparse", "dense"], BY_LIBRARY, Mark.IN_METHOD_NAME] = "sparse"
    """Reward of each control step: `sparse` is 1 within the success radius of the goal and 0
    elsewhere; `dense` is minus the distance to the goal in metres."""
    learning_rate: Annotated[Positive, BY_LIBRARY] = 3e-4
    """Learning rate of the Adam optimisers of all networks of a baseline, constant."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BudgetRecipe:
    """Length of training, amount of data, and number of evaluations and checkpoints."""

    __pydantic_config__ = STRICT

    env_steps: Annotated[Steps, Mark.SIZE, Mark.SAME_IN_COMPARISONS] = 100_000_000
    """Control steps of all training envs together, prefill included; rounded up to collections."""
    unroll_length: Annotated[Count, Mark.SIZE] = 62
    """Control steps of each env in one collection, between two rounds of gradient updates."""
    env_steps_per_update: Annotated[Positive, Mark.SIZE] = 39.68
    """Env steps collected for each gradient update, the inverse of the update-to-data ratio; the
    published 39.68 makes 800 updates after a collection of 512 envs x 62 steps."""
    prefill_rows: Annotated[CountOrZero, Mark.SIZE] = 1000
    """Control steps of each env before the first update; 0 for PPO, which has no replay buffer."""
    replay_rows: Annotated[Count, BY_ALL_WITH_REPLAY, Mark.SIZE] = 10_000
    """Capacity of the replay buffer in control steps of each env; the newest are kept."""
    evaluations: Annotated[Count, Mark.SAME_IN_COMPARISONS] = 100
    """Number of evaluations, evenly spaced, at most one a collection; the last is at the end."""
    checkpoints: Annotated[Count, Mark.NOT_OF_METHOD] = 20
    """Number of checkpoints, evenly spaced, at most one a collection; the last is at the end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemRecipe:
    """Random seed, devices, threads, numerical precision and kernels."""

    __pydantic_config__ = STRICT

    seed: Annotated[Seed, Mark.NOT_OF_METHOD] = 0
    """Seed of all random numbers of the run."""
    device: Annotated[str, Mark.NOT_OF_METHOD] = "auto"
    """Device of networks, gradient updates and replay buffer: `cpu`, `cuda` or, by its number,
    `cuda:1`; `auto` is `cuda` where there is one, else `cpu`."""
    simulator: Annotated[Literal["cpu", "warp"], Mark.SAME_IN_COMPARISONS] = "cpu"
    """Physics engine: `cpu` is MuJoCo on the CPU's cores, `warp` is MuJoCo Warp on --device."""
    overlap: Literal["off", "on"] = "off"
    """`on` collects on the CPU while a CUDA device computes updates; the policy that collects is
    then the one from before the last round of updates. `off` does one after the other."""
    collectors: Annotated[CountOrZero, BY_OURS] = 0
    """Number of processes of Ray, on this machine or others, that collect for this run, each in its
    part of the envs and two collections ahead at most; 0 collects in the run's own process."""
    collector_address: Annotated[str, BY_OURS, Mark.NOT_OF_METHOD] = ""
    """Address of the Ray cluster of --collectors, or `auto`; empty starts one on this machine."""
    collector_policy: Annotated[str, BY_OURS] = ""
    """Run directory or folder of a policy, such as a distilled one, with which --collectors act in
    place of the run's own, which may be too slow on CPUs; it stays as it is."""
    replay_dtype: Annotated[Literal["float32", "bfloat16"], BY_OURS] = "float32"
    """Data type of the replay buffer; bfloat16 halves it and rounds a position of 20 m to 0.1 m."""
    simulator_threads: Annotated[Threads, Mark.NOT_OF_METHOD] = 0
    """Number of CPU threads for physics, or of processes for Gymnasium envs; 0 is every CPU."""
    env_timeout: Annotated[PositiveOrZero, Mark.NOT_OF_METHOD] = 300.0
    """Time limit in seconds for one step or reset of a Gymnasium env. An env that exceeds it counts
    as hung, at the latest after twice that time, and ends the run; 0 waits for ever."""
    torch_threads: Annotated[Threads, Mark.NOT_OF_METHOD] = 0
    """Number of CPU threads for gradient updates; 0 is every CPU, or one where layers are small."""
    precision: Literal["auto", "fp32", "tf32", "fp16", "bf16"] = "auto"
    """Precision of the inputs of the residual blocks' matmuls; all else is fp32. `auto` is fp32 on
    the CPU, fp16 on CUDA with --block published or shared, and tf32 on CUDA with the other blocks,
    since some of them do not bound the activations. On a CPU only bf16 with --tower numba is faster
    than fp32, on processors with AVX512_BF16 or AMX; plain PyTorch computes the others slowly."""
    tower: Literal["auto", "reference", "numba", "norm_act", "persistent"] = "auto"
    """Implementation of the towers: `reference` is plain PyTorch; `numba` has one compiled function
    for all layers on one CPU core; `norm_act` has a matmul and one
    Triton kernel per layer; `persistent` has one kernel for all layers (--width 128 or 256, fp16 or
    bf16). `auto` is the fastest that is possible on the device; on a CPU that is numba if it is
    installed, the run has 5,000 updates or more, and layers are small (width 128 at batch 256) or
    threads are two at most."""
    recompute: CountOrZero = 0
    """Activation checkpointing: number of dense layers, a multiple of 4, between two activations
    kept for the backward pass; the others are computed again. 0 keeps all."""
    cuda_graph: Literal["auto", "on", "off"] = "auto"
    """`on` captures the gradient update as a CUDA graph and replays it; `auto` does so on CUDA."""
