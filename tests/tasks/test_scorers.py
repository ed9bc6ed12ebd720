"""Scorers on answers that SCBench's own get wrong, in both directions."""

import pytest

from kvledger.tasks import TASKS, functions, scorers


@pytest.mark.parametrize(
    ("prediction", "right", "legacy"),
    [
        ("TIMU", 1, 1),
        (' "TIMU"', 1, 1),
        ('The value is "TIMU".', 1, 1),
        ("The value associated with the specified key is: TIMU", 1, 1),
        ("The value is TIMU.", 1, 1),
        ("TIMU\n\nKey: BAKO", 1, 1),
        ("KOBA TIMU GAFO BIDO", 0, 1),  # a list that happens to hold it
        ("BATIMUKO", 0, 1),  # part of a longer string
        ("timu", 0, 0),
        ("", 0, 0),
    ],
)
def test_exact_string_reads_one_answer_where_legacy_takes_any_substring(prediction, right, legacy):
    assert scorers.exact_string(prediction, ("TIMU",)) == right
    assert scorers.legacy_substring(prediction, ("TIMU",)) == legacy


def test_exact_string_holds_for_uuids_and_for_odd_characters():
    uuid = "7d471049-d3f6-45d6-9dc0-a42565aca70b"
    assert scorers.exact_string(f'"{uuid}"', (uuid,)) == 1
    odd = "QWLbudQtzRYJs^pMu\\]cysBp`"
    assert scorers.exact_string(f" {odd}\n", (odd,)) == 1


@pytest.mark.parametrize(
    ("prediction", "right", "legacy"),
    [
        ("BA KO TI", 1.0, 1.0),
        ("BA, KO and TI.", 1.0, 1.0),
        ("VAR BA, VAR KO, VAR TI", 1.0, 1.0),
        ("BA KO", 0.8, 0.67),
        ("BA KO TI GO MU FE", 2 / 3, 1.0),  # extra names are free in the legacy score only
        ("ba ko ti", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_name_set_charges_for_extra_names(prediction, right, legacy):
    assert scorers.name_set(prediction, ("BA", "KO", "TI")) == pytest.approx(right)
    assert scorers.legacy_names(prediction, ("BA", "KO", "TI")) == legacy


@pytest.mark.parametrize(
    ("prediction", "gold", "right", "legacy"),
    [
        ("998", "998", 1, 1),
        ("The 2nd largest is 998", "998", 1, 0),
        ("It is 998.", "998", 1, 1),
        ("-998", "998", 0, 1),  # the sign is part of a number
        ("9981", "998", 0, 0),
        ("998.5", "998", 0, 0),
        ("998\n\n123 is another number", "998", 1, 1),
        ("none", "998", 0, 0),
    ],
)
def test_one_number_sees_ordinals_and_signs(prediction, gold, right, legacy):
    assert scorers.one_number(prediction, (gold,)) == right
    assert scorers.legacy_number(prediction, (gold,)) == legacy


@pytest.mark.parametrize(
    ("prediction", "gold", "right", "legacy"),
    [
        ("C", "C", 1, 1),
        ("(C)", "C", 1, 1),
        ("The answer is (B)", "A", 0, 1),  # "answer" has an a
        ("(A) ... Friday", "D", 0, 1),
        ("The answer is B", "B", 1, 1),
        ("Answer: (F)", "F", 1, 1),
        ("A dog has label (C)", "C", 1, 1),
        ("C)\nWord: KO", "C", 1, 1),
        ("label", "B", 0, 1),
        ("", "A", 0, 0),
    ],
)
def test_one_letter_reads_the_option_where_legacy_takes_any_character(prediction, gold, right, legacy):
    assert scorers.one_letter(prediction, (gold,)) == right
    assert scorers.legacy_letter(prediction, (gold,)) == legacy


def test_the_mix_tells_labels_from_strings_by_the_gold():
    score = scorers.mixed(scorers.one_letter, scorers.exact_string)
    assert score("(B)", ("B",)) == 1
    assert score("TIMU", ("TIMU",)) == 1
    assert score("B", ("TIMU",)) == 0


@pytest.mark.parametrize(
    ("prediction", "right", "legacy"),
    [
        ("C", 1, 1),
        ("C. Bob Smith", 1, 1),
        ("Bob Smith", 1, 0),  # the text of the right option begins with another option's letter
        ("Because it is C", 1, 0),
        ("The answer is C", 1, 1),
        ("the answer is: Bob Smith", 1, 1),
        ("It must be Bob Smith, I think", 1, 0),
        ("B", 0, 0),
        ("Ann", 0, 0),
        ("D. Not Bob Smith", 0, 0),
        ("", 0, 0),
    ],
)
def test_choice_reads_letters_and_options_where_legacy_trips_over_first_characters(prediction, right, legacy):
    assert scorers.choice(prediction, ("C", "Bob Smith")) == right
    assert scorers.legacy_choice(prediction, ("C", "Bob Smith")) == legacy


def test_choice_holds_for_options_that_begin_alike():
    assert scorers.choice("A dog", ("B", "A dog")) == 1
    assert scorers.choice("B", ("B", "A dog")) == 1
    assert scorers.choice("A", ("B", "A dog")) == 0


@pytest.mark.parametrize(
    ("prediction", "right", "legacy"),
    [
        ("Al", 1, 1),
        ("al.", 1, 1),
        ("He walked along the canal", 0, 1),  # a short gold is found by accident
        ("Al Capone", 2 / 3, 1),
        ("Nobody\nAl", 0, 1),
        ("", 0, 0),
    ],
)
def test_answers_in_words_are_weighed_where_legacy_looks_for_a_substring(prediction, right, legacy):
    assert scorers.token_f1(prediction, ("Al",)) == pytest.approx(right)
    assert scorers.legacy_answer(prediction, ("Al",)) == legacy


@pytest.mark.parametrize(
    ("prediction", "right", "legacy"),
    [
        ("青山绿水镇", 1, 1 / 3),  # an exact answer of five characters: the legacy score compares with each alone
        ("青山绿水镇。", 1, 1 / 3),
        ("青", 1 / 3, 1),
        ("红河", 0, 0),
        ("", 0, 0),
    ],
)
def test_chinese_answers_are_compared_whole_where_legacy_goes_by_character(prediction, right, legacy):
    assert scorers.character_f1(prediction, ("青山绿水镇",)) == pytest.approx(right)
    assert scorers.legacy_chinese(prediction, ("青山绿水镇",)) == pytest.approx(legacy)


def test_pass_keys_are_the_answers_number_where_legacy_takes_the_first_digits():
    score, legacy = TASKS["scbench/summary_with_needles"].score, TASKS["scbench/summary_with_needles"].legacy
    assert score("The pass key of 2 is 71839.", ("71839",)) == 1
    assert legacy("The pass key of 2 is 71839.", ("71839",)) == 0
    assert score("71839", ("71839",)) == legacy("71839", ("71839",)) == 1
    assert score("7183", ("71839",)) == legacy("7183", ("71839",)) == 0
    assert score("It shows that.", ("It shows that.",)) == legacy("It shows that.", ("It shows that.",)) == 1


ADD = "def add(a, b):\n    total = a + b\n    return total"
MUL = "def mul(a, b):\n    total = a * b\n    return total"
SUB = "def sub(self, one, other, carry=0):\n    while other:\n        one, other = one - 1, other - 1\n    return one - carry"


@pytest.mark.parametrize(
    ("prediction", "right"),
    [
        (ADD, 1),
        (f"Here it is:\n```python\n{ADD}\n```\nIt adds.", 1),
        (f"```python\n# the function\n{ADD}\n\nprint(add(1, 2))\n```", 1),
        (f"```\n{ADD}\n```\n```\n{MUL}\n```", 1),
        (f"{ADD}\n\n{MUL}", 1),
        (f"{MUL}\n\n{ADD}", 0),
        (MUL, 0),
        ("def add(a, b): ...", 0),
        ("", 0),
    ],
)
def test_the_function_asked_for_must_be_the_nearest_and_near(prediction, right):
    assert functions.passes(prediction, (ADD, MUL, SUB)) == right


def test_functions_with_braces_end_where_the_braces_close():
    text = "Sure:\n```go\nfunc Add(a int) int {\n\tif a > 0 {\n\t\treturn a\n\t}\n\treturn 0\n}\n\nfunc Mul() {}\n```"
    assert functions.function_in(text).endswith("return 0\n}")
    assert functions.function_in("no code here") == "no code here"


def test_functions_keep_decorators_and_brackets_over_lines():
    source = "@cache\ndef f(\n    a,\n    b,\n):\n    return (a,\nb)\n"
    assert functions.function_in(source + "\nx = 1") == source.rstrip()


@pytest.mark.parametrize(
    ("said", "meant", "value"),
    [
        ("a b c d e", "a b c d e", 1.0),
        ("a b c d", "a b c d e", 0.7788007830714049),
        ("a b x d e f", "a b c d e f", 0.293945703509473),
        ("d", "e d g f f a b d a c f b", 1.670170079024566e-05),
        ("x y", "a b", 0.0),
    ],
)
def test_bleu_is_nltks_with_smoothing_method_4(said, meant, value):
    assert functions.bleu(said.split(), meant.split()) == pytest.approx(value, rel=1e-9)


def test_facts_count_whole_words_within_twice_the_references_length():
    golds = ("The survey was led by Ann at Oslo.", "Ann", "Oslo", "123")
    assert scorers.facts("Ann, at Oslo: 123.", golds) == 1
    assert scorers.facts("Anna at Oslos 1234", golds) == 0
    assert scorers.facts("x " * 16 + "Ann Oslo 123", golds) == 0


def test_the_mix_of_functions_and_values_tells_them_by_their_golds():
    score = TASKS["scbench/repoqa_and_kv"].score
    assert score(f"```\n{ADD}\n```", (ADD, MUL)) == 1
    assert score(f"```\n{ADD}\n```", (ADD,)) == 1
    assert score('"v9"', ("v9",)) == 1
    assert score("v9v9", ("v9",)) == 0
