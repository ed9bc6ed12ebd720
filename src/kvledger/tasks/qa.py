"""Questions about a made-up world, in place of SCBench's En.QA, Zh.QA and En.MultiChoice (arXiv 2412.10319, table 2).

Those ask about novels whose names were replaced (InfiniteBench, arXiv 2402.13718), which no generator can write.  Here
people with invented names have a birthplace, a dog, a teacher, a house and a boat, each said in one sentence; the
sentences lie shuffled over the text, in the full form among prose.  Every second question goes over a bridge ("the owner
of the dog Tavoreli"), so two sentences are needed.  All names are drawn anew, so nothing is known without reading, and
each value stands in the text exactly once.  Named `_alike`: the scores are not to be set beside published ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice

from kvledger.tasks import prose
from kvledger.tasks.base import Form, Sample, Turn
from kvledger.tasks.draft import Build, Draft, Span, stratify
from kvledger.tasks.words import distinct, letters, syllables

PROSE = 1  # sentences of it between two facts, in the full form
SURNAMES = "赵钱孙李周吴郑王冯陈褚卫蒋沈韩杨朱秦尤许何吕施张孔曹严华金魏陶姜"
SIGNS = (
    "山水云月风雪松竹梅兰石泉溪林岩谷江湖海岛星辰日光晨夕春夏秋冬青白紫红金银玉珠琴书画诗茶酒舟桥亭楼台院门墙花草木叶枝果"
    "鹤鹿马牛羊鱼鸟燕雁鸿龙虎豹狐兔龟麦稻豆瓜米盐糖墨笔纸砚剑弓旗鼓钟灯烛火炉锅碗杯壶镜梳针线布衣帽鞋伞扇车轮船帆"
)


Spans = dict[tuple[int, int], Span]
"""Where the fact (person, kind) is told."""


@dataclass(frozen=True)
class Kind:
    """One thing that is told of a person: how it is said and asked, and who a person is by it."""

    says: str
    ask: str
    bridge: str


ENGLISH = (
    Kind("{who} was born in the town of {what}.", "In which town was {who} born?", "the person born in {what}"),
    Kind(
        "{who} keeps a dog called {what}.",
        "What is the name of the dog that {who} keeps?",
        "the owner of the dog {what}",
    ),
    Kind(
        "{who} learned to play the fiddle from {what}.", "Who taught {who} to play the fiddle?", "the pupil of {what}"
    ),
    Kind(
        "{who} lives in a house known as {what}.", "What is the house of {who} called?", "the owner of the house {what}"
    ),
    Kind(
        "{who} goes fishing in a boat named {what}.", "What is the boat of {who} named?", "the owner of the boat {what}"
    ),
)
CHINESE = (
    Kind("{who}出生在{what}镇。", "{who}出生在哪个镇？", "出生在{what}镇的人"),
    Kind("{who}养了一条名叫{what}的狗。", "{who}养的狗叫什么名字？", "小狗{what}的主人"),
    Kind("{who}跟着{what}先生学会了拉二胡。", "{who}跟着哪位先生学会了拉二胡？", "{what}先生的徒弟"),
    Kind("{who}住在一座叫做{what}的老宅里。", "{who}住的老宅叫什么？", "老宅{what}的主人"),
    Kind("{who}有一条名叫{what}的渔船。", "{who}的渔船叫什么名字？", "渔船{what}的主人"),
)
SMALL = (
    Kind("{who} lives in {what}.", "Where does {who} live?", "the one in {what}"),
    Kind("{who} has a dog {what}.", "Which dog has {who}?", "the one with the dog {what}"),
)
ENGLISH_READ = "Read the text and answer the question. Be very concise in your answer.\n\n"
CHOICE_READ = "Read the text and answer the question with the letter of the right option.\n\n"
CHINESE_READ = "请阅读以下文字，然后回答问题，回答应尽量简短。\n\n"


@dataclass(frozen=True)
class World:
    """Who is told of, and what: `values[i][k]` is kind k of person i. Every name is there once."""

    kinds: tuple[Kind, ...]
    people: list[str]
    values: list[list[str]]


def name(rng: random.Random) -> str:
    """An invented English-looking name of four open syllables."""
    return syllables(rng, 4).capitalize()


def world(rng: random.Random, size: int, language: str, form: Form) -> World:
    """People for `size` facts."""
    kinds, draw, who = _voice(rng, language, form)
    taken: set[str] = set()
    count = -(-size // len(kinds))
    people = distinct(who, count, taken)
    values = distinct(draw, count * len(kinds), taken)
    return World(kinds, people, [values[i * len(kinds) : (i + 1) * len(kinds)] for i in range(count)])


def _voice(
    rng: random.Random, language: str, form: Form
) -> tuple[tuple[Kind, ...], Callable[[], str], Callable[[], str]]:
    if language == "zh":
        return CHINESE, lambda: letters(rng, SIGNS, 3), lambda: letters(rng, SURNAMES, 1) + letters(rng, SIGNS, 2)
    if form == "small":
        return SMALL, lambda: syllables(rng, 3), lambda: syllables(rng, 3)
    return ENGLISH, lambda: name(rng), lambda: f"{name(rng)} {name(rng)}"


def qa(language: str, choices: bool = False) -> Build:
    """The generator of one of the three: `language` "en" or "zh", answers in words or, with `choices`, one of four options."""
    task = "scbench/choice_eng_alike" if choices else f"scbench/qa_{'eng' if language == 'en' else 'chn'}_alike"

    def build(rng: random.Random, size: int, turns: int, form: Form) -> Sample:
        told = world(rng, size, language, form)
        order = [(i, k) for i in range(len(told.people)) for k in range(len(told.kinds))][:size]
        rng.shuffle(order)
        places = stratify(rng, size, turns)
        draft = Draft()
        draft.add("instruction", CHOICE_READ if choices else CHINESE_READ if language == "zh" else ENGLISH_READ)
        spans = _tell(rng, draft, told, order, form if language == "en" else "small", " " if language == "en" else "")
        asked = []
        for number, place in enumerate(places):
            who, kind = order[place]
            question, evidence = _question(rng, told, spans, who, kind, bridge=number % 2 == 1)
            value = told.values[who][kind]
            asked.append(
                _option_turn(rng, told, spans, question, who, kind, evidence)
                if choices
                else _open_turn(question, value, evidence, language, form)
            )
        return draft.sample(task, asked)

    return build


def _tell(rng: random.Random, draft: Draft, told: World, order: list[tuple[int, int]], form: Form, blank: str) -> Spans:
    """All facts in their order, with prose between them in the full form; where each stands."""
    filler = prose.sentences(rng)
    spans = {}
    for number, (i, k) in enumerate(order):
        said = told.kinds[k].says.format(who=told.people[i], what=told.values[i][k])
        spans[i, k] = draft.add("context", said)
        rest = [*islice(filler, PROSE)] if form == "full" else []
        draft.add("context", blank + "".join(sentence + " " for sentence in rest) + ("\n\n" if number % 5 == 4 else ""))
    return spans


def _question(
    rng: random.Random, told: World, spans: Spans, who: int, kind: int, bridge: bool
) -> tuple[str, tuple[Span, ...]]:
    """The question, and the sentences that answer it, the one with the answer first."""
    others = [k for k in range(len(told.kinds)) if k != kind and (who, k) in spans]
    name, evidence = told.people[who], [spans[who, kind]]
    if bridge and others:
        by = rng.choice(others)
        name = told.kinds[by].bridge.format(what=told.values[who][by])
        evidence.append(spans[who, by])
    return told.kinds[kind].ask.format(who=name), tuple(evidence)


def _open_turn(question: str, value: str, evidence: tuple[Span, ...], language: str, form: Form) -> Turn:
    text = f"\n\n问题：{question}\n答案：" if language == "zh" else f"\n\nQuestion: {question}\nAnswer: "
    return Turn(text, value, (value,), 12 if form == "small" and language == "en" else 40, evidence)


def _option_turn(
    rng: random.Random, told: World, spans: Spans, question: str, who: int, kind: int, evidence: tuple[Span, ...]
) -> Turn:
    """Four options, all of them values that the text tells of somebody."""
    others = rng.sample([i for i, k in spans if k == kind and i != who], 3)
    options = [told.values[i][kind] for i in (who, *others)]
    value = options[0]
    rng.shuffle(options)
    letter = "ABCD"[options.index(value)]
    lines = "\n".join(f"{label}. {option}" for label, option in zip("ABCD", options, strict=True))
    text = f"\n\nQuestion: {question}\n{lines}\nThe correct answer is "
    return Turn(text, letter, (letter, value), 40, evidence, subtask="choice")
