"""The zoo: trained policies that come with the package. `zoo:NAME` names one in every command."""

from dataclasses import dataclass

from torch_crl import fields
from torch_crl.encoders import DEFAULTS
from torch_crl.fields import STRICT, Count
from torch_crl.recipe.presets import preset
from torch_crl.recipe.record import Recipe, flag_of
from torch_crl.runs.directory import RunDirectory
from torch_crl.runs.finding import ZOO, located
from torch_crl.runs.records import read_file

ABOUT = "zoo.json"
"""File of an entry that `About` describes."""


@dataclass(frozen=True, kw_only=True)
class About:
    """How the policy of an entry does, and how it was chosen."""

    __pydantic_config__ = STRICT

    evaluation: dict[str, float]
    """Metrics of `torch_crl.evaluate`."""
    episodes: Count
    """Number of episodes of that evaluation."""
    origin: str
    """Of which runs this is one, and why this one."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A policy of the zoo."""

    name: str
    directory: RunDirectory
    recipe: Recipe
    about: About
    commit: str
    """Of the code that trained it."""

    @property
    def command(self) -> str:
        """The command that trains it again; machines differ in the last bits of their results."""
        return command_of(self.recipe)


def entry(name: str) -> Entry:
    """The entry of this name. Raises UsageError, which lists the names, if there is none."""
    directory = RunDirectory(located(ZOO + name))
    return Entry(
        name=name,
        directory=directory,
        recipe=directory.read_recipe(),
        about=read_file(directory.path / ABOUT, lambda text: fields.read(About, text)),
        commit=directory.read_machine().machine.get("commit", ""),
    )


def command_of(recipe: Recipe) -> str:
    """The shortest `torch-crl train` with these settings: what differs from the preset."""
    task, algorithm = recipe.task.name, recipe.algorithm.algo
    usual = preset(task, algo=algorithm).leaves()
    # What a run fills in by itself.
    usual["goal_space.encoder_sha256"] = recipe.goal_space.encoder_sha256
    if recipe.goal_space.encoder in DEFAULTS.values():
        usual["goal_space.encoder"] = recipe.goal_space.encoder
    words = ["torch-crl", "train", task]
    if algorithm != "crl":
        words += ["--algo", algorithm]
    for leaf, value in recipe.leaves().items():
        if value != usual[leaf]:
            words += [flag_of(leaf), str(value)]
    return " ".join(words)
