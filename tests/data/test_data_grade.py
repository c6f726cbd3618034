from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from truing.data.grade import answered_number, grade, normalise, numbers_in, short_answer
from truing.types import Question

PARIS = Question("Capital of France?", answers=("Paris", "City of Paris"))
GOLD = Question("Symbol of gold?", answers=("Au",))
LION = Question("Which animal?", answers=("The Lion",))
PICK = Question("Which?", choices=("Rome", "New York", "York", "Oslo"), answer=1, kind="choice")


@pytest.mark.parametrize(
    ("question", "text", "right"),
    [
        (PARIS, "Paris", True),
        (PARIS, " paris.\nQuestion: Capital of Spain?\nAnswer: Madrid", True),
        (PARIS, "PARIS!", True),
        (PARIS, "The answer is Paris.", True),
        (PARIS, "Answer: Paris", True),
        (PARIS, "Paris, the city of light, has been the capital for a very long time indeed.", True),
        (PARIS, "The capital of France is Paris.", True),
        (PARIS, "Paris (France)", True),
        (PARIS, "Parisian", False),
        (PARIS, "London", False),
        (PARIS, "London\nParis", False),
        (PARIS, "London. Question: and then? Paris", False),
        (PARIS, "It is not Paris.", False),
        (PARIS, "It isn't Paris", False),
        (PARIS, "Paris or London", False),
        (PARIS, "Either London or Paris", False),
        (PARIS, "", False),
        (PARIS, "\n\n", False),
        (PARIS, "I could name London, Berlin, Rome, Madrid, Lisbon and many more, and of course Paris", False),
        (PARIS, "The capital is Paris, France", True),
        (PARIS, "Paris is the capital", True),
        (PARIS, "It is called Paris in French", True),
        (PARIS, "Paris Hilton", False),
        (PARIS, "It is New Paris", False),
        (Question("?", answers=("Guinea",)), "Papua New Guinea", False),
        (Question("?", answers=("Guinea",)), "It is Guinea-Bissau", False),
        (LION, "lion", True),
        (LION, "A lion", True),
        (LION, "lions", False),
        (GOLD, "Au", True),
        (GOLD, "au", True),
        (GOLD, "The symbol is Au.", True),
        (GOLD, "The chemical symbol of gold is Au", True),
        (GOLD, "Australia", False),
        (GOLD, "Au pair is a job", False),
        (Question("?", answers=("Côte d'Ivoire",)), "Cote d’Ivoire", True),
        (Question("?", answers=("U.S.A.",)), "usa", True),
        (Question("?", answers=("Sao Tome",)), "São Tomé", True),
        (Question("?", answers=("Malmo",)), "Malmø", True),
        (Question("?", answers=("The The",)), "the the", True),
    ],
)
def test_alias_table(question: Question, text: str, right: bool) -> None:
    assert grade(question, text) is right


@pytest.mark.parametrize(
    ("answer", "text", "right"),
    [
        ("28347", "28,347", True),
        ("28347", " 28347.", True),
        ("28347", "28,348", False),
        ("31", "31.", True),
        ("5", "$5", True),
        ("5", "five", True),
        ("42", "forty-two apples", True),
        ("42", "forty two", True),
        ("-5", "-5", True),
        ("-5", "−5", True),
        ("-5", "minus five", True),
        ("5", "-5", False),
        ("-5", "5", False),
        ("68", "36 plus 32 is 68.", True),
        ("68", "36 + 32 = 68", True),
        ("68", "The answer is 68 because 36 plus 32 is 68", True),
        ("36", "36 + 32 = 68", False),
        ("68", "68\nQuestion: What is 1 plus 1?\nAnswer: 2", True),
        ("2", "68\nQuestion: What is 1 plus 1?\nAnswer: 2", False),
        ("18", "Janet sells 16 - 3 - 4 = 9 eggs.\nShe makes 9 * 2 = $18\n#### 18", True),
        ("18", "#### 18\n#### 20", True),
        ("18", "18\n\nQuestion: next?\n#### 5", True),
        ("3", "\nQuestion: What is 3", False),
        ("0.5", ".5", True),
        ("0.5", "0.50", True),
        ("3", "3.5", False),
        ("313020", "313,020", True),
        ("7", "no idea", False),
        ("7", "seventh", False),
        ("100", "one hundred", False),  # documented: words up to ninety-nine
        ("8", "H8", False),
        ("84", "12 weeks are 84 days", True),
        ("8", "8, which is 2 times 4", True),
        ("8", "The answer is 8.", True),
        ("42", "forty-two because 6 times 7 is 43", True),
        ("9", "9, an answer remains,", True),
    ],
)
def test_number_table(answer: str, text: str, right: bool) -> None:
    assert grade(Question("?", answers=(answer,), kind="number"), text) is right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("(B)", True),
        (" (B) New York", True),
        ("B", True),
        ("b", False),
        ("B.", True),
        ("Answer: B", True),
        ("The answer is (B).", True),
        ("The correct answer is B", True),
        ("New York", True),
        ("new york!", True),
        ("I think it is New York", False),  # holds York, too: two options
        ("(C)", False),
        ("York", False),
        ("(A) or (B)", False),
        ("the answer is A or the answer is B", False),
        ("E", False),
        ("", False),
        ("A city I like is Oslo", False),
        ("(B)\nQuestion: x\nAnswer: (A)", True),
    ],
)
def test_choice_table(text: str, right: bool) -> None:
    assert grade(PICK, text) is right


def test_what_cannot_be_graded_says_so() -> None:
    with pytest.raises(ValueError, match="no answers"):
        grade(Question("?"), "x")
    with pytest.raises(ValueError, match="'code'"):
        grade(Question("?", answers=("x",), kind="code"), "x")


@given(st.text())
def test_normalise_is_stable_and_blind_to_case_space_and_articles(text: str) -> None:
    once = normalise(text)
    assert normalise(once) == once
    assert normalise(f"  {text}  !") == once


@given(st.integers(-(10**9), 10**9), st.sampled_from(["{}", "{:,}", " {:,}.", "The answer is {}", "= {:,}", "#### {}"]))
def test_numbers_survive_every_way_of_writing(value: int, form: str) -> None:
    assert answered_number(form.format(value)) == value
    assert grade(Question("?", answers=(f"{value:,}",), kind="number"), form.format(value))
    assert not grade(Question("?", answers=(str(value + 1),), kind="number"), form.format(value))


@given(st.text())
def test_no_text_breaks_a_grader(text: str) -> None:
    for question in (PARIS, PICK, Question("?", answers=("3",), kind="number")):
        assert grade(question, text) in (True, False)
    assert "\n" not in short_answer(text) and all(n == n for n in numbers_in(text))


@given(
    st.sampled_from(["Paris", "Lake Victoria", "Sierra Leone"]), st.sampled_from(["", ".", "!", " \n", "\nHuman: x"])
)
def test_exact_answers_are_right_whatever_follows(answer: str, tail: str) -> None:
    assert grade(Question("?", answers=(answer,)), answer + tail)
    assert not grade(Question("?", answers=(answer,)), "Oslo" + tail)
