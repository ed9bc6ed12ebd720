"""Scorers on answers that SCBench's own get wrong, in both directions."""

import pytest

from kvledger.tasks import scorers


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
