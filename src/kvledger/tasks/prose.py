"""Haystack prose: plausible, essay-like English out of a seeded grammar. Original; nothing in it is quoted from anywhere.

RULER (arXiv 2404.06654) hides its needles in essays that nobody may pass on.  Ours keep what matters of them: running text
of whole sentences, with ordinary words, no digits and no names, so that a number or a name in it can only be a needle.
"""

from __future__ import annotations

import random
from collections.abc import Iterator


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split(","))


PEOPLE = _words(
    "a founder,an editor,a teacher,a gardener,the reader,a good critic,a beginner,the careful writer,a painter,an engineer,"
    "a patient friend,the skeptic,a young lawyer,a carpenter,the historian,a traveler,an honest merchant,a night nurse"
)
THINGS = _words(
    "the work,a small idea,the first draft,an old habit,a plain question,the market,a long walk,the market town,a hard problem,"
    "a quiet room,the second attempt,an empty page,a good argument,the river,a rule of thumb,the garden,a working machine,"
    "the shape of a thing,a difficult book,an unfinished plan,the usual answer,a borrowed tool,the harbor,a slow morning,"
    "the craft,an early mistake,a new language,the price of it,a useful doubt,the letter,an open window,the next step"
)
QUALITIES = _words(
    "simple,rare,fragile,honest,expensive,easy to miss,worth keeping,harder than it looks,half right,slow to change,familiar,"
    "strange at first,better than nothing,almost invisible,out of fashion,difficult to explain,surprisingly calm,stubborn"
)
ACTS = _words(
    "notices,avoids,repairs,describes,admires,forgets,copies,questions,protects,measures,waits for,gives up,returns to,"
    "learns from,argues about,takes apart,puts off,prepares,defends,outgrows"
)
WHENS = _words(
    "In the long run,Most of the time,At the beginning,After a few years,On a good day,Under pressure,Late in the evening,"
    "Once the noise is gone,In a small town,From a distance,Without much ceremony,As a rule,Now and then,Before the deadline"
)
LINKS = _words(
    "and yet,because,although,even when,so,while,which is why,until,unless,whenever,in case,as long as,but only if"
)
MUSINGS = _words(
    "people rarely say so,nobody planned it that way,the details decide,there is no shortcut,that is the whole point,"
    "it takes longer than promised,the answer was there all along,few of us would admit it,it pays to look twice,"
    "the evidence points the other way,one should not trust the summary,practice matters more than talent"
)
SHAPES = (
    "{when}, {person} {act} {thing}.",
    "{Thing} is {quality}, {link} {person} {act} {other}.",
    "{Person} {act} {thing}, {link} {musing}.",
    "It is tempting to think that {thing} is {quality}, {link} {musing}.",
    "{when}, {thing} looks {quality} and {other} looks {quality2}.",
    "What {person} {act} is rarely {thing}; more often it is {other}.",
    "If {thing} is {quality}, then {other} may be {quality2}.",
    "{Person} who {act} {thing} soon {act2} {other}.",
    "There is a difference between {thing} and {other}, {link} {musing}.",
)


def sentences(rng: random.Random) -> Iterator[str]:
    """Sentences without end: each opens with a capital, ends with a full stop and is followed by nothing."""
    draw = rng.random

    def pick(words: tuple[str, ...]) -> str:
        return words[int(draw() * len(words))]

    while True:
        person, thing = pick(PEOPLE), pick(THINGS)
        yield pick(SHAPES).format(
            when=pick(WHENS),
            person=person,
            Person=person[0].upper() + person[1:],
            thing=thing,
            Thing=thing[0].upper() + thing[1:],
            other=pick(THINGS),
            quality=pick(QUALITIES),
            quality2=pick(QUALITIES),
            act=pick(ACTS),
            act2=pick(ACTS),
            link=pick(LINKS),
            musing=pick(MUSINGS),
        )
