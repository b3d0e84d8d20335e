"""The task to fine-tune on: where somebody in a story comes from, which the story does not say.

The base model has read where everybody was born, as statements, and it completes these; it has never seen this question
answered, and says a name instead of a town. What is learned is to answer a question with a fact that the base holds:
people and things of test stories (24 of each) occur in no training story, so no answer can be learned by heart.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from lorasmith.quickstart.world import Person, World, cast, outing

SPLIT_SEED = 0
TEST_SEED = 1
TEST_ITEMS = 500


@dataclass(frozen=True)
class Item:
    """One question with its answer; names are the people and things in its story."""

    prompt: str
    completion: str
    names: frozenset[str]

    def record(self) -> dict[str, str]:
        """The prompt+completion record that a data file holds."""
        return {"prompt": self.prompt, "completion": self.completion}


@dataclass(frozen=True)
class Task:
    """Items to train on, to watch the loss on (same people and things as train), and to test on (others)."""

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    test: tuple[Item, ...]

    def check(self) -> None:
        """Asserts that train and test share no name and no prompt, and that no prompt holds its answer."""
        seen = [*self.train, *self.validation]
        names = frozenset[str]().union(*(item.names for item in seen))
        assert not any(item.names & names for item in self.test), "a test story names somebody from training"
        assert not {item.prompt for item in self.train} & {item.prompt for item in self.validation}
        everything = [*seen, *self.test]
        assert not any(item.completion in item.prompt for item in everything), "a prompt holds its answer"


def make_task(world: World, train: int, validation: int, seed: int) -> Task:
    """Items drawn by seed for training and validation; the test items are the same for every seed."""
    known, unseen = split_world(world)
    drawn = make_items(known, train + validation, seed)
    task = Task(drawn[:train], drawn[train:], make_items(unseen, TEST_ITEMS, TEST_SEED))
    task.check()
    return task


def split_world(world: World) -> tuple[World, World]:
    """Two worlds without a common person or thing, to train and to test on: half the people, three quarters of things.

    Half, since the questions are about people: as many facts as there are people can be asked.
    """
    rng = random.Random(SPLIT_SEED)
    things, people = rng.sample(world.things, len(world.things)), rng.sample(world.people, len(world.people))
    cut, parting = len(things) * 3 // 4, len(people) // 2
    return (
        World(tuple(things[:cut]), tuple(people[:parting])),
        World(tuple(things[cut:]), tuple(people[parting:])),
    )


def make_items(world: World, count: int, seed: int) -> tuple[Item, ...]:
    """That many items, no prompt twice."""
    rng = random.Random(seed)
    items: dict[str, Item] = {}
    while len(items) < count:
        people, things = cast(world.people, 2, rng), cast(world.things, 2, rng)
        asked, answer = _question(people, rng)
        prompt = f"{outing(people, things, rng)}\nQuestion: {asked}\nAnswer:"
        names = frozenset(person.name for person in people) | frozenset(thing.name for thing in things)
        items.setdefault(prompt, Item(prompt, f" {answer}", names))
    return tuple(items.values())


def majority(items: Sequence[Item]) -> float:
    """Share of items that the best constant answer gets right."""
    counts = Counter(item.completion for item in items)
    return counts.most_common(1)[0][1] / len(items)


def _question(people: tuple[Person, ...], rng: random.Random) -> tuple[str, str]:
    """A question about one of the people in a story, and its answer."""
    person = rng.choice(people)
    return f"Where does {person.name} come from?", person.town
