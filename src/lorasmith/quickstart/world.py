"""A small made-up world: people and things with fixed facts, and sentences about who took what where."""

import random
from dataclasses import dataclass
from typing import TypeVar

WORLD_SEED = 20

# word lists as text: a name a line would fill the file
# ruff: noqa: SIM905
COLOURS = ("red", "yellow", "green", "blue", "brown", "white", "black", "grey")
TOWNS = ("Arden", "Bosko", "Celm", "Dorn", "Elbe", "Fenn", "Gault", "Holm")
JOBS = ("baker", "sailor", "teacher", "doctor", "miller", "painter", "tailor", "hunter")
KINDS = {
    "tool": "hammer saw chisel spade rake axe drill wrench trowel plane sickle pump",
    "toy": "doll kite ball top puppet puzzle marble rattle hoop robot swing bear",
    "garment": "scarf coat hat glove boot belt shirt cape sock vest shawl apron",
    "instrument": "drum flute harp fiddle horn bell lute banjo cello whistle gong trumpet",
    "vessel": "cup jug kettle bowl vase bottle bucket barrel pan flask basin mug",
    "jewel": "ring brooch crown necklace locket pendant bracelet tiara chain medal charm pearl",
    "weapon": "sword bow spear dagger shield lance sling club arrow mace pike sabre",
    "furniture": "stool chair bench desk cradle table mirror chest cot sofa rack shelf",
}
PEOPLE = (
    "Anna Ben Cora Dan Edda Finn Greta Hugo Ida Jon Kira Leo Mira Nils Olga Paul "
    "Rosa Sven Tilda Uwe Vera Wim Xenia Yann Zoe Otto Lena Karl Emma Max Nora Tim "
    "Alma Bruno Clara Dirk Ella Fritz Gina Hans Irma Jack Kurt Lisa Marc Nina Oskar Petra"
).split()
PLACES = (
    "kitchen cellar garden attic barn mill tower chapel harbour market forest meadow "
    "school bakery library stable workshop castle inn cave bridge orchard hall yard"
).split()


@dataclass(frozen=True)
class Thing:
    """Something that people carry about; its colour, kind and town are fixed facts of the world."""

    name: str
    colour: str
    kind: str
    town: str

    @property
    def sort(self) -> str:
        """What tells it from the other things of a story: its kind."""
        return self.kind


@dataclass(frozen=True)
class Person:
    """Somebody who carries things about; job and town are fixed facts of the world."""

    name: str
    job: str
    town: str

    @property
    def sort(self) -> str:
        """What tells this person from the others of a story: the job."""
        return self.job


@dataclass(frozen=True)
class World:
    """Everything there is."""

    things: tuple[Thing, ...]
    people: tuple[Person, ...]


Cast = TypeVar("Cast", Thing, Person)


def _balanced(choices: tuple[str, ...], count: int, rng: random.Random) -> list[str]:
    dealt = [choices[i % len(choices)] for i in range(count)]
    rng.shuffle(dealt)
    return dealt


def make_world() -> World:
    """The one world of the quickstart: 96 things and 48 people, every attribute dealt out evenly by WORLD_SEED."""
    rng = random.Random(WORLD_SEED)
    named = [(name, kind) for kind, names in KINDS.items() for name in names.split()]
    colours, towns = _balanced(COLOURS, len(named), rng), _balanced(TOWNS, len(named), rng)
    things = [Thing(name, colour, kind, town) for (name, kind), colour, town in zip(named, colours, towns)]
    jobs, homes = _balanced(JOBS, len(PEOPLE), rng), _balanced(TOWNS, len(PEOPLE), rng)
    people = [Person(name, job, home) for name, job, home in zip(PEOPLE, jobs, homes)]
    return World(tuple(things), tuple(people))


def cast(choices: tuple[Cast, ...], count: int, rng: random.Random) -> tuple[Cast, ...]:
    """That many of choices, no two of the same sort."""
    while True:
        chosen = tuple(rng.sample(choices, count))
        if len({one.sort for one in chosen}) == count:
            return chosen


def outing(people: tuple[Person, ...], things: tuple[Thing, ...], rng: random.Random) -> str:
    """One sentence that tells who took what where."""
    who = " and ".join(person.name for person in people)
    what = " and ".join(f"the {thing.name}" for thing in things)
    place = rng.choice(PLACES)
    return rng.choice(
        (
            f"{who} carried {what} to the {place}.",
            f"{who} took {what} to the {place}.",
            f"{who} went to the {place} with {what}.",
            f"{who} brought {what} to the {place}.",
        )
    )
