"""LongProc's generators: every task in both forms; what is asked is answered from the context, by an independent reading."""

import json
import random
import re

import pytest

from kvledger.tasks.longproc import ROWS, countdown, html_to_tsv, path_traversal, rows, tom_tracking, travel_planning
from kvledger.tasks.longproc.trip import Search, Trip

TASKS = {task.name: task for task in ROWS if task.make and not task.runs_code}
"""But programs, which test_programs.py and test_contract.py compile."""
LONG = ("longproc/path_traversal_2k", "longproc/path_traversal_8k", "longproc/html_to_tsv_8k")
FULL = [name for name in TASKS if name not in LONG]
"""Those whose published shape fits into 12,000 tokens."""


def count(text: str) -> int:
    """Stand-in for a tokenizer: words, pairs of digits or capitals, marks."""
    return len(re.findall(r"[A-Z]{2}|\d\d|[A-Z]?[a-z]+|\S", text))


def make(name, form="small", tokens=4096, turns=1, seed=3, index=0):
    return TASKS[name].make(seed, index, tokens, count, turns, form)


@pytest.mark.parametrize("name", TASKS)
class TestEveryTask:
    def test_same_arguments_same_sample_and_other_seed_other_sample(self, name):
        assert make(name) == make(name)
        assert make(name).text != make(name, seed=4).text
        assert make(name).text != make(name, index=1).text

    @pytest.mark.parametrize("tokens", [2048, 8192])
    def test_fills_the_tokens_with_the_embedded_tokenizer(self, name, tokens, embedded):
        made = TASKS[name].make(0, 0, tokens, embedded, 1, "small")
        assert tokens - 200 < embedded(made.text) <= tokens
        assert made.turns[0].max_new_tokens > embedded(made.turns[0].gold)

    def test_perfect_answer_scores_one_and_that_of_another_sample_none(self, name):
        task = TASKS[name]
        for i in range(6):
            mine, other = make(name, tokens=3000, index=i).turns[0], make(name, tokens=3000, index=i + 50).turns[0]
            assert task.score(mine.gold, mine.golds) == task.legacy(mine.gold, mine.golds) == 1
            assert task.score("", mine.golds) == task.score(other.gold, mine.golds) == task.chance == task.baseline == 0

    def test_several_questions_are_about_different_parts(self, name):
        made = make(name, turns=3)
        assert len({turn.question for turn in made.turns}) == len({turn.evidence for turn in made.turns}) == 3
        for turn in made.turns:
            assert turn.depth == turn.evidence[0][0] / len(made.text)
            assert TASKS[name].score(turn.gold, turn.golds) == 1
            assert turn.gold not in made.text

    def test_bad_arguments_are_refused(self, name):
        with pytest.raises(ValueError, match="tokens are too few"):
            make(name, tokens=5)
        with pytest.raises(ValueError, match="turns"):
            make(name, turns=0)


@pytest.mark.parametrize("name", FULL)
def test_the_full_form_has_an_answer_of_its_tier(name):
    lines = {"0.5k": (6, 60), "2k": (20, 170), "8k": (100, 450)}[name.rsplit("_", 1)[1]]
    made = make(name, "full", 12_000)
    turn = made.turns[0]
    assert 0.9 * 12_000 < count(made.text) <= 12_000
    assert lines[0] <= turn.gold.count("\n") <= lines[1] or "html" in name
    assert TASKS[name].score(turn.gold, turn.golds) == TASKS[name].legacy(turn.gold, turn.golds) == 1
    assert turn.max_new_tokens >= {"0.5k": 1024, "2k": 3072, "8k": 10240}[name.rsplit("_", 1)[1]]


@pytest.mark.parametrize("name", ["longproc/path_traversal_2k", "longproc/html_to_tsv_8k"])
def test_a_long_context_is_made_with_few_counts(name, embedded):
    calls = []

    def counted(text):
        calls.append(1)
        return embedded(text)

    made = TASKS[name].make(0, 0, 131072, counted, 1, "small")
    assert 130_000 < embedded(made.text) <= 131072
    assert len(calls) < 14


@pytest.mark.parametrize("form", ["small", "full"])
def test_routes_are_what_the_lines_say(form):
    made = make("longproc/path_traversal_0.5k", form, 6000, turns=2)
    ways = {
        edge[0]: edge[1:] for edge in re.findall(r"You can travel from (.+?) to (.+?) by (\w+)", made.segments[1].text)
    }
    assert len(ways) == made.segments[1].text.count("\n")
    for turn in made.turns:
        start, goal = re.search(r"route from (.+?) to (.+?) based", turn.question).groups()
        assert goal not in ways
        assert turn.golds[0] == path_traversal.follow(made.text, start, goal)
        for line in turn.golds[0].split("\n"):
            here, by, there = re.fullmatch(r"From (.+), take a (\w+) to (.+)\.", line).groups()
            assert ways[here] == (there, by)
            assert made.text.count(f"\n{here} is a lively city") == 1
        assert len(turn.evidence) == len(turn.golds[0].split("\n"))


def test_a_route_that_is_not_there_is_an_error():
    with pytest.raises(ValueError, match="no route from 'A' to 'C'"):
        path_traversal.follow("You can travel from A to B by bus. You can travel from B to A by bus.", "A", "C")


def test_every_event_of_a_story_is_possible_where_it_stands():
    kinds = set()
    for seed in range(30):
        text, _ = tom_tracking.story(random.Random(seed), 40, "full")
        first, *rest = text.split("\n")
        rooms = dict(re.findall(r"(\w+) is in the (.+?);", first))
        lies = {
            thing: (room, spot) for thing, room, spot in re.findall(r"the ([^;]+) is on the ([^;]+)'s ([^;.]+)", first)
        }
        for line in rest:
            event = tom_tracking.EVENT.fullmatch(line)
            who, before = event["who"], rooms[event["who"]]
            if event["moved"]:
                room, spot = event["place"].split("'s ")
                assert lies[event["moved"]][0] == before == room
                assert lies[event["moved"]][1] != spot
                lies[event["moved"]] = (room, spot)
            elif event["carried"]:
                assert lies[event["carried"]][0] == before
                lies[event["carried"]] = tuple(event["put"].split("'s "))
                assert lies[event["carried"]][0] == event["to"] != before
                rooms[who] = event["to"]
            else:
                assert (before is None) == bool(event["enter"])
                assert (event["enter"] or event["to"]) != before
                rooms[who] = event["enter"] or event["to"]
            kinds.add(next((name for name in ("moved", "carried", "enter", "to") if event[name]), "leave"))
    assert kinds == {"moved", "carried", "enter", "to", "leave"}


def test_a_story_that_cannot_be_read_is_an_error():
    with pytest.raises(ValueError, match="cannot be read"):
        tom_tracking.track(
            "Step 0: A is in the r; the o is on the r's c.\nStep 1: A flies.", "Where does A believe the o is?"
        )
    with pytest.raises(ValueError, match="must read"):
        tom_tracking.track("Step 0: A is in the r.", "Where is A?")


@pytest.mark.parametrize("form", ["small", "full"])
def test_countdown_problems_stand_once_and_their_numbers_lead_to_the_target(form):
    made = make("longproc/countdown_0.5k", form, turns=2)
    for turn in made.turns:
        numbers, target = countdown.given(turn.golds[0])
        stated = f"Numbers: {numbers}\nTarget: {target}"
        assert made.text.count(f"{stated}\n") == 1
        assert [made.text[start:end] for start, end in turn.evidence] == [stated]
        number = re.search(r"problem (\d+)", turn.question).group(1)
        assert f"Problem {number}\n{stated}" in made.text


@pytest.mark.parametrize("form", ["small", "full"])
def test_the_plan_of_a_trip_meets_what_the_problem_says(form):
    for index in range(4):
        made = make("longproc/travel_planning_2k", form, 3000, index=index)
        turn = made.turns[0]
        ((start, end),) = turn.evidence
        text = made.text[start:end]
        stays = tuple((city, int(days)) for city, days in re.findall(r"visit (\w+) for (\d+) days", text))
        fixed = tuple((c, int(a), int(b)) for c, a, b in re.findall(r"in (\w+) between day (\d+) and day (\d+)", text))
        flights = tuple(re.findall(r"from (\w+) to (\w+)", text))
        trip = Trip(stays, fixed, flights)
        assert travel_planning.valid_plan(turn.gold, (turn.gold, travel_planning.requirements(trip))) == 1
        assert f"for {trip.days} days" in text
        assert Search(trip).plan == travel_planning.stays_of(turn.gold)


@pytest.mark.parametrize("form", ["small", "full"])
def test_each_record_is_on_the_page_once_and_conditions_are_applied(form):
    conditions = 0
    for index in range(6):
        made = make("longproc/html_to_tsv_2k", form, 8000, index=index)
        turn = made.turns[0]
        header, *records = [line.split("\t") for line in turn.golds[0].split("\n")]
        for record in records:
            assert len(re.findall(rf">(?:name: )?{record[0]}<", made.text)) == 1
        assert len(turn.evidence) == len(records)
        for (start, end), record in zip(turn.evidence, records, strict=True):
            assert [cell.split(": ")[-1] for cell in re.findall(r">([^<>]+)<", made.text[start:end])] == record
        if found := re.search(r"whose state is (.+?)\.", turn.question):
            conditions += 1
            assert {record[header.index("state")] for record in records} == {found.group(1)}
    assert conditions == 0 if form == "small" else conditions > 0


def test_pages_are_rendered_in_three_ways_and_read_back():
    section = html_to_tsv.Section("T", ("a", "b"), (("x", "1"), ("y", "2")), "")
    for way in html_to_tsv.WAYS:
        lines = list(html_to_tsv.Section("T", section.columns, section.records, way).lines())
        assert len(lines) == 5
        assert "x" in lines[2]
        assert "y" in lines[3]
    assert rows.table("a\tb\nx\t1\n") == [("x", "1")]
    assert json.loads(travel_planning.requirements(Trip((("A", 2),), (), ())))["stays"] == [["A", 2]]
