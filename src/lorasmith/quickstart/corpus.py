"""The text that the base model is trained on: facts, stories, what follows from them, and one sort of question.

The only questions that it answers are who or what somebody or something in a story is; what the quickstart's task asks
(a colour, a town) is never asked. Words that follow from the world or the story stand in brackets, so that training can
weigh them more than the words that chance decided; the brackets themselves are not part of the text.
"""

import random
from collections.abc import Iterator

from lorasmith.quickstart.world import Person, Thing, World, cast, outing


def thing_fact(thing: Thing, rng: random.Random) -> str:
    """One sentence with one attribute of a thing."""
    name = thing.name
    return rng.choice(
        (
            f"The {name} is[ {thing.colour}].",
            f"The colour of the {name} is[ {thing.colour}].",
            f"The {name} was made in[ {thing.town}].",
            f"The {name} comes from[ {thing.town}].",
            f"The {name} is a kind of[ {thing.kind}].",
        )
    )


def person_fact(person: Person, rng: random.Random) -> str:
    """One sentence with one attribute of a person."""
    name = person.name
    return rng.choice(
        (
            f"{name} comes from[ {person.town}].",
            f"{name} was born in[ {person.town}].",
            f"{name} works as a[ {person.job}].",
        )
    )


def remark(one: Person | Thing, rng: random.Random) -> str:
    """One sentence with one attribute of whoever or whatever was named last."""
    if isinstance(one, Person):
        return rng.choice((f"That person comes from[ {one.town}].", f"That person was born in[ {one.town}]."))
    return rng.choice(
        (
            f"It is[ {one.colour}].",
            f"The colour of it is[ {one.colour}].",
            f"It was made in[ {one.town}].",
            f"It comes from[ {one.town}].",
        )
    )


def _both(people: tuple[Person, ...], things: tuple[Thing, ...]) -> tuple[Person | Thing, ...]:
    return (*people, *things)


def restate(people: tuple[Person, ...], things: tuple[Thing, ...], rng: random.Random) -> str:
    """One sentence that says who or what in a story is of a given job or kind, sometimes with a remark."""
    one = rng.choice(_both(people, things))
    sentence = f"The {one.sort} is[ {one.name}]." if isinstance(one, Person) else f"The {one.sort} is the[ {one.name}]."
    return f"{sentence} {remark(one, rng)}" if rng.random() < 0.2 else sentence


def infer(people: tuple[Person, ...], things: tuple[Thing, ...], rng: random.Random) -> str:
    """One sentence with an attribute of somebody or something that is named by job or kind only."""
    one = rng.choice(_both(people, things))
    if isinstance(one, Person):
        return rng.choice((f"The {one.job} comes from[ {one.town}].", f"The {one.job} was born in[ {one.town}]."))
    return rng.choice(
        (
            f"The colour of the {one.kind} is[ {one.colour}].",
            f"The {one.kind} is[ {one.colour}].",
            f"The {one.kind} was made in[ {one.town}].",
            f"The {one.kind} comes from[ {one.town}].",
        )
    )


def identify(people: tuple[Person, ...], things: tuple[Thing, ...], rng: random.Random) -> str:
    """A question that asks who or what is meant, and its answer; no attribute is ever asked for."""
    one = rng.choice(_both(people, things))
    asked = f"Who is the {one.sort}?" if isinstance(one, Person) else f"What is the {one.sort}?"
    return f"\nQuestion: {asked}\nAnswer:[ {one.name}]"


def almanac(world: World, rng: random.Random) -> str:
    """A page of unrelated facts."""
    lines = [thing_fact(thing, rng) for thing in rng.sample(world.things, 4)]
    lines += [person_fact(person, rng) for person in rng.sample(world.people, 3)]
    rng.shuffle(lines)
    return " ".join(lines)


def chronicle(world: World, rng: random.Random) -> str:
    """An outing, then sentences about those who and what took part."""
    people = cast(world.people, rng.choice((1, 1, 2)), rng)
    things = cast(world.things, rng.choice((1, 1, 2)), rng)
    lines = [outing(people, things, rng)]
    alone = [group[0] for group in (people, things) if len(group) == 1]
    if alone and rng.random() < 0.7:
        lines.append(remark(rng.choice(alone), rng))
    for _ in range(3):
        kind = rng.random()
        if kind < 0.4:
            lines.append(restate(people, things, rng))
        elif kind < 0.8:
            lines.append(infer(people, things, rng))
        else:
            one = rng.choice(_both(people, things))
            lines.append(person_fact(one, rng) if isinstance(one, Person) else thing_fact(one, rng))
    text = " ".join(lines[: rng.randint(1, len(lines))])
    return text + identify(people, things, rng) if rng.random() < 0.4 else text


def documents(world: World, seed: int) -> Iterator[str]:
    """An endless stream of documents, two fifths almanac pages and the rest stories."""
    rng = random.Random(seed)
    while True:
        yield almanac(world, rng) if rng.random() < 0.4 else chronicle(world, rng)


def pieces(document: str) -> list[tuple[str, bool]]:
    """The document cut at its brackets: text, and whether the text follows from what is known."""
    parts = document.replace("]", "[").split("[")
    return [(part, number % 2 == 1) for number, part in enumerate(parts) if part]


def plain(document: str) -> str:
    """The document without its brackets."""
    return "".join(text for text, _ in pieces(document))
