"""LongProc's scorers: published quirks as fixtures, hostile and huge answers."""

import json

import pytest

from kvledger.tasks.longproc import ROWS, countdown, path_traversal, rows, tom_tracking, travel_planning
from kvledger.tasks.longproc.trip import Search, Trip, procedure

SEARCH = countdown.Search([21, 16, 17, 26], 46)
GOLD = (countdown.trace(SEARCH),)


def solved(*lines):
    return "<Solution>\n" + "\n".join(lines) + "\n</Solution>"


class TestCountdown:
    def test_any_valid_solution_counts(self):
        assert countdown.solution(solved(*SEARCH.equations), GOLD) == 1
        assert countdown.solution(solved("16 + 21 = 37", "37 - 17 = 20", "20 + 26 = 46"), GOLD) == 1
        assert countdown.solution("chat " + solved(" 21+16=37", "37-17 =20 ", "26  + 20 = 46") + " more", GOLD) == 1

    @pytest.mark.parametrize(
        "lines",
        [
            ("21 + 16 = 38", "37 - 17 = 20", "26 + 20 = 46"),  # wrong sum
            ("21 + 16 = 37", "37 - 17 = 20"),  # a line short
            ("21 + 16 = 37", "37 - 17 = 20", "26 + 20 = 46", "46 + 0 = 46"),
            ("21 + 25 = 46", "46 + 0 = 46", "46 + 0 = 46"),  # numbers that are not there
            ("21 + 21 = 42", "42 + 4 = 46", "46 + 0 = 46"),
            ("abc = 3", "37 - 17 = 20", "26 + 20 = 46"),  # these two raise in LongProc
            ("21 / 0 = 3", "37 - 17 = 20", "26 + 20 = 46"),
            ("__import__('os').abort() + 16 = 37", "37 - 17 = 20", "26 + 20 = 46"),  # LongProc runs this
            ("9**9**9 + 1 = 2", "37 - 17 = 20", "26 + 20 = 46"),
            ("26 / 20 = 1", "37 - 17 = 20", "26 + 20 = 46"),
        ],
    )
    def test_what_is_no_solution_scores_nothing_and_is_never_run(self, lines):
        assert countdown.solution(solved(*lines), GOLD) == 0

    def test_division_by_zero_decimals_and_bounds_are_written_down(self):
        search = countdown.Search([5, 5, 49, 48], 24)
        text = "\n".join(search.lines)
        assert "Try 49 / 0 (invalid operation). drop this branch." in "\n".join(
            countdown.Search([49, 5, 5, 1], 3).lines
        )
        assert "Try 49 * 48 = 2352. 2352 exceeds the maximum intermediate result, drop this branch." in text
        assert "is a decimal, drop this branch." in text

    def test_partial_credit_ends_at_the_first_wrong_step(self):
        lines = GOLD[0].split("\n")
        wrong = "\n".join([*lines[:5], lines[5].replace("37 + 17 = 54", "37 * 17 = 629"), *lines[6:]])
        assert lines[5] not in wrong
        assert countdown.partial(wrong.split("<Solution>")[0], GOLD) == 0.3
        assert countdown.partial(wrong.replace("= 54. Add 54", "= 55. Add 55"), GOLD) == 1  # the solution still counts
        assert countdown.partial("\n".join(lines[:1]), GOLD) == 0
        assert countdown.partial("no procedure", GOLD) == 0
        assert countdown.partial(GOLD[0], GOLD) == 1

    def test_an_unsolvable_problem_says_so(self):
        assert not countdown.Search([1, 1, 1, 1], 50).solved
        with pytest.raises(ValueError, match="must hold"):
            countdown.given("nothing")


class TestPath:
    route = (
        "From A, take a bus to B.\nFrom B, take a train to C.\nFrom C, take a bus to D.\nFrom D, take a bus to E.",
    )

    def tagged(self, *lines):
        return "<Route>\n" + "\n".join(lines) + "\n</Route>"

    def test_exact_or_nothing(self):
        assert path_traversal.exact(self.tagged(self.route[0]), self.route) == 1
        assert path_traversal.exact(self.route[0], self.route) == 0
        assert path_traversal.exact(self.tagged(self.route[0], "From E, take a bus to F."), self.route) == 0

    def test_partial_credit_is_one_too_generous_as_published(self):
        lines = self.route[0].split("\n")
        assert path_traversal.partial(self.tagged(*lines, "From E, take a bus to F."), self.route) == 1
        assert path_traversal.partial(self.tagged("wrong", *lines[1:]), self.route) == 0.25
        assert path_traversal.partial(self.tagged(*lines[:2], "wrong"), self.route) == 0.75
        assert path_traversal.partial("no tag", self.route) == 0


class TestTom:
    story = (
        "Step 0: A is in the r; B is in the q; the o is on the r's c; the p is on the q's d.\nStep 1: A moves to the q."
    )
    gold = (tom_tracking.track(story, "Where does A believe the o is?"),)

    def test_the_trace_by_hand(self):
        assert self.gold[0] == (
            "A's belief on the o:\n"
            "- Step 0: (initial state) {A location: r; o location: r's c; A sees o: True; A's belief on o: r's c}\n"
            "- Step 1: (A location changed; o location unchanged) {A location: q; o location: r's c; A sees o: False; "
            "A's belief on o: r's c}\n"
            "Final Answer: the r's c"
        )

    def test_only_the_right_score_reads_the_final_answer(self):
        wrong = self.gold[0].replace("Final Answer: the r's c", "Final Answer: the q's d")
        assert tom_tracking.trace(wrong, self.gold) == 1
        assert tom_tracking.trace_and_answer(wrong, self.gold) == 0
        assert tom_tracking.trace_and_answer(self.gold[0], self.gold) == 1

    def test_dull_words_and_marks_do_not_matter_and_the_last_trace_counts(self):
        loose = self.gold[0].replace("r's c", "the R's c").replace("{", "").replace("- Step 1: (", "- Step 1: The ")
        assert tom_tracking.trace(loose, self.gold) == 1
        assert tom_tracking.trace("- Step 0: nonsense\n" + self.gold[0], self.gold) == 1
        assert tom_tracking.trace(self.gold[0].replace("- Step", "  - Step"), self.gold) == 0

    def test_partial_credit(self):
        assert tom_tracking.partial(self.gold[0].replace("A location: q", "A location: r"), self.gold) == 0.5
        assert tom_tracking.partial("", self.gold) == 0
        assert tom_tracking.partial("\n".join(self.gold[0].split("\n")[:2]), self.gold) == 0.5


class TestTravel:
    trip = Trip((("A", 3), ("B", 2), ("C", 4)), (("C", 4, 7),), (("A", "B"), ("B", "A"), ("B", "C"), ("A", "C")))
    gold = (procedure(Search(trip)), travel_planning.requirements(trip))
    other = (
        "<Plan>\n**Day 1-2:** Arriving in B and visit B for 2 days.\n**Day 2:** Fly from B to A.\n"
        "**Day 2-4:** Visit A for 3 days.\n**Day 4:** Fly from A to C.\n**Day 4-7:** Visit C for 4 days.\n</Plan>"
    )

    def test_another_valid_plan_counts_only_in_the_right_score(self):
        assert [stay[0] for stay in Search(self.trip).plan] == ["A", "B", "C"]
        assert travel_planning.valid_plan(self.other, self.gold) == 1
        assert travel_planning.gold_plan(self.other, self.gold) == 0
        assert travel_planning.valid_plan(self.other, self.gold[:1]) == 0

    @pytest.mark.parametrize(
        ("old", "new"),
        [
            ("2-4:** Visit A for 3", "2-5:** Visit A for 4"),  # a wrong stay
            ("**Day 2-4:** Visit A", "**Day 3-5:** Visit A"),  # a gap
            ("Visit A", "Visit D"),
            ("**Day 4-7:** Visit C for 4 days.\n", ""),
            ("<Plan>", ""),
        ],
    )
    def test_what_breaks_a_requirement_scores_nothing(self, old, new):
        assert old in self.other
        assert travel_planning.valid_plan(self.other.replace(old, new), self.gold) == 0

    def test_flights_and_fixed_days_are_requirements(self):
        none = json.loads(self.gold[1])
        for change in ({"flights": [["A", "B"]]}, {"fixed": [["C", 1, 4]]}):
            assert travel_planning.valid_plan(self.other, (self.gold[0], json.dumps({**none, **change}))) == 0

    def test_without_a_plan_the_search_gives_partial_credit(self):
        assert 0.7 < travel_planning.partial(self.gold[0].split("\n\nOutput")[0], self.gold) < 1
        assert travel_planning.partial("", self.gold) == 0


class TestRows:
    gold = ("name\tprice\nThe Fox\t$3.00\nOwl\t$4\n",)

    def test_cells_lose_case_marks_articles_and_blanks(self):
        assert rows.row_f1("```tsv\nx\ty\nfox\t300\no w l\t4\n```", self.gold) == 1

    def test_an_open_fence_and_none_are_read(self):
        for answer in ("```tsv\n" + self.gold[0], self.gold[0], "Sure.\n```tsv\n" + self.gold[0] + "``` bye ```"):
            assert rows.longproc_f1(answer, self.gold) > 0.6

    def test_a_row_written_twice_costs_only_in_the_right_score(self):
        twice = "a\tb\nfox\t3.00\nowl\t4\nowl\t4"
        assert rows.longproc_f1(twice, self.gold) == 1
        assert rows.row_f1(twice, self.gold) == pytest.approx(0.8)


HUGE = ["x" * 10_000_000, "<Plan><Route><Solution>\n" * 400_000, "- Step 0: a\n" * 800_000, '\x00\r\t\x1b"' * 2_000_000]
HUGE += ["a\tb\n" * 2_500_000, "Day 1-2 visit " * 700_000, "1 + 1 = 2\n" * 1_000_000, "```tsv" * 1_600_000]


@pytest.mark.parametrize(
    "task", [task for task in ROWS if task.make and task.name.endswith("2k")], ids=lambda t: t.name
)
def test_ten_megabytes_and_control_characters(task):
    golds = task.make(0, 0, 3000, len_of_words, 1, "small").turns[0].golds
    for text in HUGE:
        for answer in (
            (text, f"<Solution>{text}</Solution>", f"<Plan>{text}</Plan>") if len(text) < 8_500_000 else (text,)
        ):
            assert task.score(answer, golds) in (0, 1)
            assert 0 <= task.legacy(answer, golds) <= 1


def len_of_words(text):
    return len(text.split())
