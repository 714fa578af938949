"""Answers out of text: what must be read, and what must not be mistaken for an answer."""

from fractions import Fraction

import pytest

from steerscope.experiments.tasks.parsing import (
    boolean,
    decimal_form,
    has_phrase,
    leading_integer,
    letter,
    number,
    option,
    same_number,
    tagged,
)

OPTIONS = ("a bee", "dog", "Everything.", "all of the above")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: True.", "true"),
        ("answer :false", "false"),
        ("**Answer:** *True*", "true"),
        ("The answer is: False, since", "false"),
        ("Answer: True. Answer: False.", "true"),  # the completion starts with its answer
        ("Answer: True.\nQuestion: is it false\nAnswer: False.", "true"),
        ("I think it is true.", "true"),
        ("", None),
        (" \n", None),
        ("asdf true/false qwer", None),
        ("Answer: true or false", None),
        ("Answer: True/False", None),
        ("Answer: trueish", None),
        ("Answer: not true", None),
        ("It is not true.", None),
        ("It isn't true", None),
        ("untrue", None),
        ("Answer: maybe. It is true.", None),  # an answer phrase without an answer is no answer
        ("false or true", None),
        ("yes", None),
    ],
)
def test_boolean(text, expected):
    assert boolean(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: Option1.", "1"),
        ("Answer: option 2", "2"),
        ("The answer is Option2 because Option1 is not", "2"),
        ("Option2", "2"),
        ("Answer: Option2. Answer: Option1.", "2"),
        ("Answer: Option12", None),
        ("Answer: Option3", None),
        ("Option1 or Option2", None),
        ("Answer: Ann", None),
        ("option1st", None),
        ("", None),
    ],
)
def test_option(text, expected):
    assert option(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: (C) Everything.", "C"),
        ("Answer: C", "C"),
        ("Answer: c.", "C"),
        ("Answer: B) dog", "B"),
        ("Answer: B: dog", "B"),
        ("Answer: (c) all of the above", "C"),  # the letter goes before the text
        ("The answer is A", "A"),
        ("The answer is A.", "A"),
        ("the answer is: (D)", "D"),
        ("Final answer:\n(B)", "B"),
        ("**Answer: B**", "B"),
        ("Answer: dog", "B"),  # an option's text, whole
        ("Answer: Dog.", "B"),
        ("Answer: all of the above", "D"),  # not A
        ("Answer: A bee", "A"),  # as a text; as a prefix it would be A too, see the next ones
        ("Answer: A dog", None),
        ("Answer: (dog)", None),  # not D
        ("The answer is Apple", None),
        ("The answer is Bees", None),
        ("Answer: Dogs", None),
        ("Answer: A.M. hours", None),
        ("Answer: A or B", None),
        ("Answer: (A) and (B)", None),
        ("Answer: A, B", None),
        ("Answer: (E)", None),  # there are four options
        ("Answer: e", None),
        ("(B) dog", "B"),
        ("B", "B"),
        ("A dog barks.", None),
        ("Because of everything", None),
        ("Answer: (A) a bee.\nQuestion: next\nAnswer: (B) dog", "A"),
        ("Answer: something else. I hope the answer is helpful", None),
        ("", None),
        ("Answer:", None),
    ],
)
def test_letter(text, expected):
    assert letter(text, OPTIONS) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x is 5.\nAnswer: B.\nAnswer: C.", "C"),
        ("The answer is A bit larger.\nAnswer: C.", "C"),
        ("Answer: C. I hope the answer is B", "C"),  # Answer: goes before answer is
        ("Answer: B. The answer: helpful", "B"),  # the last one that can be read
        ("so it is (C)", None),
        ("A. Let x be one.", None),
        ("(D)", "D"),
        ("Answer: 9", "B"),
        ("Answer: 7", None),  # two options read so
        ("Answer: 90", None),
    ],
)
def test_letter_after_reasoning(text, expected):
    assert letter(text, ("12", "9", "7", "7"), last=True) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Answer: 2280", "2280"),  # not 228
        ("Answer: 1234567", "1234567"),
        ("Answer: 1,234,567", "1234567"),
        ("Answer: $1,234.50", "1234.5"),
        ("Answer: -5", "-5"),
        ("Answer: −5", "-5"),
        ("Answer: -$5", "-5"),
        ("Answer: $-5", "-5"),
        ("Answer: 12.", "12"),
        ("Answer: 12.0", "12"),
        ("Answer: .5", "0.5"),
        ("Answer: 1/2", "0.5"),
        ("Answer: 50%", "50"),
        ("Answer: 5kg", "5"),
        ("Answer: 1.5e3", "1500"),
        ("Answer:\n42", "42"),
        ("Answer: The total is 42 dollars", "42"),
        ("Answer: 12 apples in 3 boxes", "12"),  # behind a phrase the first
        ("Answer: 3 + 4 = 7", "7"),
        ("Answer: x = -7.", "-7"),
        ("Answer: 5\nAnswer: 6", "6"),  # after reasoning the last
        ("Answer: 5. The answer is correct", "5"),
        ("Answer: 5. So the answer is 3 less", "5"),
        ("There are 3 boxes of 4, so 12 pens", "12"),  # without a phrase the last number
        ("<<40-4=36>>36 items", "36"),
        ("10-6", "6"),  # a minus between numbers is no sign
        ("(3)-5", "5"),
        ("#### 18", "18"),
        ("Answer: twelve, or 3 short of 15?", "3"),
        ("Answer: twelve", None),
        ("I have 5.\nAnswer: none", None),
        ("Answer: 12,34", None),
        ("Answer: 1,2345", None),
        ("Answer: 1.2.3", None),
        ("Answer: 5/0", None),
        ("Answer: x2", None),
        ("Answer: " + "9" * 5000, None),
        ("Answer: 1e999999999", None),
        ("no digits", None),
        ("", None),
    ],
)
def test_number(text, expected):
    assert number(text) == expected


def test_numbers_are_compared_by_value():
    assert same_number("12", "12.0")
    assert same_number("0.33333", "0.3333333333")
    assert not same_number("0.333", "0.3333333333")
    assert not same_number("228", "2280")
    assert not same_number("5", "-5")
    assert decimal_form(Fraction(7, 2)) == "3.5"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<answer>7</answer>", "7"),
        ("<answer> 7 </answer> and more", "7"),
        ("<Answer>7</ANSWER>", "7"),
        ("<answer>7", "7"),
        ("<answer>7</answer><answer>3</answer>", "7"),
        ("<answer>12</answer>", "12"),
        ("<answer>-7</answer>", "-7"),
        ("7", "7"),
        ("Answer: 7", "7"),
        ("<answer>7 or 8</answer>", None),
        ("<answer></answer> 7", None),
        ("<answer>seven</answer>", None),
        ("[SM 7 3 ] = 0", None),
        ("", None),
    ],
)
def test_tagged(text, expected):
    assert tagged(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" 7", "7"),
        ("7\n[MAX 3 4] = 4", "7"),
        ("-3", "-3"),
        (" 12", "12"),
        ("7.5", None),
        ("7,5", None),
        ("7a", "7"),
        ("It is 7", None),
        ("] = 7", None),
        ("", None),
    ],
)
def test_leading_integer(text, expected):
    assert leading_integer(text) == expected


def test_phrases():
    assert has_phrase("the Answer : x")
    assert not has_phrase("answering: x")
    assert not has_phrase("the answers: x")
