"""Comparisons from dumps in the forms in which they are released; the files are small, the forms are theirs."""

from __future__ import annotations

import bz2
import gzip
import json
import math
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import pytest

from truing.configs import DataPairs
from truing.data.comparisons import load_comparisons
from truing.data.dumps import Posts, html_text
from truing.data.files import DataError
from truing.data.pmp import Reply as R
from truing.data.pmp import answer_score, pairs, prompt_of_chain, ranked_pairs
from truing.data.wiki_edits import passage
from truing.types import Comparison, Dialogue


def built(source: Any, *files: Path, **options: Any) -> tuple[list[Comparison], dict[str, Any]]:
    """The pairs that the verb writes, read back, and what it says."""
    target = files[0].parent / "pairs.jsonl"
    found = pairs(DataPairs(source=source, files=[str(f) for f in files], target=str(target), **options))
    return load_comparisons(target), found


def said(comparisons: list[Comparison]) -> set[tuple[str, str]]:
    return {(c.chosen, c.rejected) for c in comparisons}


# ---------------------------------------------------------------- the score of an answer


@pytest.mark.parametrize(
    ("votes", "plain", "accepted"),
    [
        (-7, -1, -1),  # negative: −1 whatever else
        (-1, -1, -1),
        (0, 0, 1),
        (1, 1, 2),
        (2, 2, 3),  # log2 3 = 1.58
        (3, 2, 3),
        (4, 2, 3),  # log2 5 = 2.32
        (5, 3, 4),  # log2 6 = 2.58
        (10, 3, 4),  # log2 11 = 3.46
        (11, 4, 5),  # log2 12 = 3.58
        (1023, 10, 11),
        (1447, 10, 11),  # 1 + 1,447 lies just below 2^10.5 = 1448.15
        (1448, 11, 12),
    ],
)
def test_the_score_rule(votes: int, plain: int, accepted: int):
    assert answer_score(votes) == plain and answer_score(votes, accepted=True) == accepted


def test_the_score_is_the_nearest_whole_number_and_no_votes_lie_on_a_half():
    for votes in range(5000):
        square = (1 + votes) ** 2  # exact: 2^(k − ½) ≤ 1 + votes < 2^(k + ½), squared
        k = square.bit_length() // 2
        assert 2 ** (2 * k) <= 2 * square < 2 ** (2 * k + 2) and answer_score(votes) == k
        assert math.log2(1 + votes) % 1 != 0.5


def test_only_replies_of_different_score_make_pairs_and_the_better_one_is_chosen():
    ask = Dialogue().ask("?")
    replies = [R("a", 0), R("b", 3), R("c", 3), R("d", -1), R("  ", 9)]
    found = list(ranked_pairs(ask, replies, most=99, source="s"))
    assert said(found) == {("b", "a"), ("b", "d"), ("c", "a"), ("c", "d"), ("a", "d")}
    some = list(ranked_pairs(ask, replies, most=2, source="s", seed=1))
    assert len(some) == 2 and said(some) < said(found)
    assert some == list(ranked_pairs(ask, replies, most=2, source="s", seed=1))
    assert any(list(ranked_pairs(ask, replies, most=2, source="s", seed=s)) != some for s in range(2, 9))


# ---------------------------------------------------------------- Stack Exchange


def posts_xml(*rows: dict[str, Any]) -> str:
    body = "\n".join("  <row " + " ".join(f"{k}={quoteattr(str(v))}" for k, v in row.items()) + " />" for row in rows)
    return f'\ufeff<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{body}\n</posts>\n'


QUESTION = {"Id": 4, "PostTypeId": 1, "AcceptedAnswerId": 9, "Score": 50, "Title": "How to boil an egg?",
            "Body": "<p>In <em>water</em>.</p>\n\n<p>Please.</p>"}  # fmt: skip
ANSWERS = [
    {"Id": 7, "PostTypeId": 2, "ParentId": 4, "Score": 5, "Body": "<p>Ten minutes.</p>"},
    {"Id": 9, "PostTypeId": 2, "ParentId": 4, "Score": 2, "Body": "<pre><code>boil(egg)\n\n  wait(7)</code></pre>"},
    {"Id": 8, "PostTypeId": 2, "ParentId": 4, "Score": -2, "Body": "<p>Don&#39;t.</p>"},
]


def test_stack_exchange_posts_become_ranked_pairs(tmp_path: Path):
    tag = {"Id": 5, "PostTypeId": 5, "Score": 0, "Body": "a wiki page"}
    lone = {"Id": 20, "PostTypeId": 2, "ParentId": 19, "Score": 3, "Body": "x"}
    lost = {**lone, "Id": 21}
    path = tmp_path / "Posts.xml"
    path.write_text(posts_xml(ANSWERS[0], tag, QUESTION, *ANSWERS[1:], lone, lost))  # in any order
    found, result = built("stackexchange", path)
    code, ten, dont = "boil(egg)\n\n  wait(7)", "Ten minutes.", "Don't."
    # 5 votes: 3; 2 votes and accepted: 2 + 1 = 3, no pair of these two; negative: −1
    assert said(found) == {(ten, dont), (code, dont)}
    assert {c.prompt for c in found} == {Dialogue().ask("How to boil an egg?\n\nIn water.\n\nPlease.")}
    assert all(c.source == "stackexchange" for c in found)
    assert result["numbers"]["pairs"]["value"] == 2 and result["numbers"]["threads"]["value"] == 1
    assert "2 replies to posts that are not in these files" in result["notes"][0]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_packed_dumps_of_several_sites_keep_their_ids_apart(tmp_path: Path, pack: Any):
    files = []
    for site, word in (("a.com", "Ay"), ("b.com", "Bee")):
        (tmp_path / site).mkdir()
        rows = [QUESTION, *({**a, "Body": f"{word} {i}"} for i, a in enumerate(ANSWERS))]
        files.append(tmp_path / site / "Posts.xml.packed")
        files[-1].write_bytes(pack(posts_xml(*rows).encode()))
    found, _ = built("stackexchange", *files)
    assert len(found) == 4 and all(c.chosen[0] == c.rejected[0] for c in found)


def test_rows_of_the_hub_hold_their_score_or_their_votes(tmp_path: Path):
    def row(**of: Any) -> dict[str, Any]:
        return {"qid": 1, "question": "<p>Why?</p>", "date": "2016", "metadata": [], **of}

    texts = [{"answer_id": i, "author": "x", "text": f"<p>{t}</p>"} for i, t in enumerate("AB")]
    rows = [
        row(answers=[{**texts[0], "pm_score": 1, "selected": False}, {**texts[1], "pm_score": 2, "selected": True}]),
        row(question="And?", answers=[{"text": "C", "score": 4, "accepted": False}, {"text": "D", "score": 3}]),
        row(question="Or?", answers=[{"text": "E", "score": 4, "accepted": True}, {"text": "F", "score": 3}]),
        row(question="So?", response_j="better", response_k="worse"),
    ]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(r) + "\n" for r in rows).encode()))
    found, result = built("stackexchange", path)
    # pm_score stands as it is (accepted is in it); 4 and 3 votes are both 2, which acceptance decides
    assert said(found) == {("B", "A"), ("E", "F"), ("better", "worse")}
    assert "1 threads without two replies of different score" in result["notes"][0]


def test_html_becomes_words():
    html = '<p>See <a href="x">this</a>:</p>\n<ul>\n<li>a &amp; b</li>\n<li>c</li>\n</ul>\n<blockquote>q</blockquote>'
    assert html_text(html) == "See this:\n\n- a & b\n- c\n\nq"
    assert html_text("if a < b and b > c: x") == "if a < b and b > c: x"


# ---------------------------------------------------------------- Reddit


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(r) + "\n" for r in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def comment(id: str, parent: str, score: int, body: str) -> dict[str, Any]:
    return {"id": id, "parent_id": parent, "link_id": "t3_s", "score": score, "body": body, "author": "u"}


def test_replies_to_one_post_are_ranked_by_votes(tmp_path: Path):
    posts = [{"id": "s", "title": "Cats &amp; dogs", "selftext": "Which?", "score": 99, "subreddit": "pets"}]
    talk = [
        comment("a", "t3_s", 30, "Cats"),
        comment("b", "t3_s", 1, "Dogs"),
        comment("c", "t3_s", 500, "[deleted]"),
        comment("d", "t1_a", 8, "Why cats?"),
        comment("e", "t1_d", 0, "Because."),
        comment("f", "t1_d", 15, "They purr &gt; bark."),
        comment("g", "t1_a", 8, "As good as d"),
        comment("h", "t1_zz", 1, "lost"),
        comment("i", "t1_zz", 9, "lost too"),
    ]
    files = [write_jsonl(tmp_path / "RC.jsonl.gz", talk), write_jsonl(tmp_path / "RS.jsonl", posts)]
    found, result = built("reddit", *files)
    top = "Cats & dogs\n\nWhich?"
    assert said(found) == {("Cats", "Dogs"), ("They purr > bark.", "Because.")}
    assert {c.prompt for c in found} == {
        Dialogue().ask(top),
        Dialogue().ask(top).reply("Cats").ask("Why cats?"),
    }
    assert "1 deleted posts" in result["notes"][0] and "2 replies to posts" in result["notes"][0]


def test_a_thread_ends_with_a_human_turn_and_loses_nothing():
    assert prompt_of_chain(["a"]) == Dialogue().ask("a")
    assert prompt_of_chain(["a", "b", "c", "d"]) == Dialogue().ask("a\n\nb").reply("c").ask("d")


def test_long_threads_keep_their_first_and_last_posts():
    with Posts() as posts:
        for i in range(30):
            posts.put(str(i), str(i - 1) if i else "", 0, f"post {i}")
        assert posts.chain("29") == ["post 0", *(f"post {i}" for i in range(24, 30))]
        posts.put("x", "y", 0, "round")
        posts.put("y", "x", 0, "and round")
        assert len(posts.chain("x")) == 7


# ---------------------------------------------------------------- Wikipedia


def dump(*pages: tuple[str, int, list[tuple[str, str]]]) -> str:
    """A revision dump: (title, namespace, [(comment, text)]); sha1 is that of the text, in another base."""
    out = ['<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.11/" version="0.11"><siteinfo/>']
    for title, namespace, revisions in pages:
        out.append(f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>")
        for i, (why, text) in enumerate(revisions):
            about = f"<id>{i}</id><timestamp/><contributor><username>u</username><id>77</id></contributor>"
            words = text.replace("&", "&amp;").replace("<", "&lt;")
            out.append(
                f"<revision>{about}<comment>{why}</comment><text>{words}</text><sha1>s{hash(text)}</sha1></revision>"
            )
        out.append("</page>")
    return "\n".join([*out, "</mediawiki>"])


TEA = "Tea is a drink.\nIt is made with hot water.\nIt is old."
BAD = TEA.replace("hot water", "MUD LOL")


def test_a_revert_is_preferred_to_the_edit_it_undoes(tmp_path: Path):
    path = tmp_path / "history.xml.bz2"
    quiet = [("", TEA), ("more", TEA + "\nEnd."), ("more", TEA + "\nEnd & end.")]
    pages = (("Tea", 0, [("", TEA), ("", BAD), ("oops", TEA)]), ("Talk:Tea", 1, [("", TEA), ("", BAD), ("", TEA)]))
    path.write_bytes(bz2.compress(dump(*pages, ("Quiet", 0, quiet)).encode()))
    (found,), result = built("wikipedia", path)
    assert found.chosen == "It is made with hot water.\nIt is old." and "MUD LOL" in found.rejected
    assert '"Tea"' in found.prompt.last.text and "Tea is a drink." in found.prompt.last.text
    assert "hot water" not in found.prompt.last.text
    assert result["numbers"]["threads"]["value"] == 2, "talk pages are no articles"


def test_a_comment_can_say_it_and_a_revert_that_was_undone_says_nothing(tmp_path: Path):
    better = TEA.replace("old", "very old")
    rows = [("", TEA), ("", BAD), ("Undid revision 3 by [[User:X]]", better)]
    (found,), _ = built("wikipedia", Path(_written(tmp_path, dump(("Tea", 0, rows)))))
    assert found.chosen.endswith("very old.") and "MUD" in found.rejected
    plain = [(why.replace("Undid", "Improved"), text) for why, text in rows]
    with pytest.raises(DataError, match="no pair"):
        built("wikipedia", Path(_written(tmp_path, dump(("Tea", 0, plain)))))
    war = [("", TEA), ("", BAD), ("", TEA), ("", BAD), ("", TEA)]
    found_in_war, result = built("wikipedia", Path(_written(tmp_path, dump(("Tea", 0, war)))))
    assert len(found_in_war) == 1 and "MUD" in found_in_war[0].rejected
    assert "2 reverts that were reverted themselves" in result["notes"][0]


def _written(folder: Path, text: str) -> Path:
    (folder / "dump.xml").write_text(text)
    return folder / "dump.xml"


def test_wikipedia_as_json_lines_and_an_equal_text_too_far_back(tmp_path: Path):
    rows = [{"title": "Tea", "id": i, "text": t, "comment": ""} for i, t in enumerate([TEA, BAD, TEA])]
    (found,), _ = built("wikipedia", write_jsonl(tmp_path / "w.jsonl", rows))
    assert "MUD" in found.rejected
    far = [TEA, *(f"{TEA}\n{i}" for i in range(20)), TEA]
    rows = [{"title": "Tea", "text": t} for t in far]
    with pytest.raises(DataError, match="no pair of wikipedia replies"):
        built("wikipedia", write_jsonl(tmp_path / "w.jsonl", rows))


def test_passages_show_what_differs():
    assert passage("T", "a\nb\nc", "a\nc") is not None
    found = passage("T", "a\nb\nc", "a\nc")
    assert found and (found.before, found.good, found.bad) == ("a", "b\nc", "c")
    blanked = passage("T", "a\nb", "")
    assert blanked and (blanked.good, blanked.bad) == ("a\nb", "(blank)")
    assert passage("T", "a", "a ") is None and passage("T", "x" * 4000, "y") is None


# ---------------------------------------------------------------- malformed files


@pytest.mark.parametrize(
    ("source", "content", "words"),
    [
        ("stackexchange", posts_xml(QUESTION)[:-30], ["line 3", "not well-formed XML"]),
        ("stackexchange", "<users><row Id='1'/></users>", ["no posts", "Posts.xml"]),
        ("stackexchange", posts_xml({**ANSWERS[0], "Score": "many"}), ["Id 7", "'Score'", "'many'"]),
        ("stackexchange", posts_xml({k: v for k, v in ANSWERS[0].items() if k != "ParentId"}), ["ParentId", "missing"]),
        ("stackexchange", '{"question": "?"}\n', ["line 1", "'answers'", "list of answers"]),
        ("stackexchange", '{"question": "?", "answers": [{"text": 3, "score": 1}]}\n', ["line 1", "'text'"]),
        ("stackexchange", '{"question": "?", "answers": [{"text": "a"}]}\n', ["line 1", "'score'", "missing"]),
        ("stackexchange", posts_xml(QUESTION, *ANSWERS[:1]), ["no pair of stackexchange"]),
        ("reddit", '{"id": "a", "parent_id": "t3_s", "body": "x", "score": null}\n', ["line 1", "'score'", "None"]),
        ("reddit", '{"id": "a", "score": 1}\n', ["line 1", "no submission"]),
        ("reddit", '{"id": "a", "title": "x"}\n{"id"', ["line 2", "JSON"]),
        ("wikipedia", "<mediawiki></mediawiki>", ["no pages", "revision dump"]),
        ("wikipedia", '{"title": "x"}\n', ["line 1", "'text'", "missing"]),
        ("wikipedia", "", ["empty"]),
    ],
)
def test_malformed_files_give_one_clear_message(tmp_path: Path, source: Any, content: str, words: list[str]):
    path = tmp_path / "dump.bin"
    path.write_text(content)
    with pytest.raises(DataError) as problem:
        built(source, path)
    assert "dump.bin" in str(problem.value) and all(word in str(problem.value) for word in words), problem.value
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dump.bin"], "nothing half-written stays"


def test_broken_and_foreign_archives_are_named(tmp_path: Path):
    whole = gzip.compress(posts_xml(QUESTION, *ANSWERS * 50).encode())
    damaged = bz2.compress(posts_xml(QUESTION, *ANSWERS).encode())[:10] + b"no block of bzip2"
    cut = ("cut.xml.gz", whole[:-20], "break off")
    for name, content, words in (cut, ("p.7z", b"7z\xbc\xaf\x27\x1c", "7z"), ("p.xml.bz2", damaged, "damaged")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=words):
            built("stackexchange", tmp_path / name)


@pytest.mark.parametrize("votes", ["NaN", "Infinity", "-1e400", "2.5", "9" * 30, "true"])
def test_votes_that_are_no_numbers_of_votes_are_named(votes: str, tmp_path: Path):
    answers = f'[{{"text": "a", "score": {votes}}}, {{"text": "b", "score": 1}}]'
    (tmp_path / "se.jsonl").write_text(f'{{"question": "q", "answers": {answers}}}\n')
    comment = f'{{"id": "b", "body": "x", "parent_id": "t3_a", "score": {votes}}}'
    (tmp_path / "reddit.jsonl").write_text(f'{{"id": "a", "title": "t"}}\n{comment}\n')
    for source, name, line in (("stackexchange", "se.jsonl", 1), ("reddit", "reddit.jsonl", 2)):
        with pytest.raises(DataError, match=f"line {line}.*whole number of votes"):
            built(source, tmp_path / name)
    if votes.isdigit():
        path = _written(tmp_path, posts_xml(QUESTION, *ANSWERS).replace(' Score="', f' Score="{votes}', 1))
        with pytest.raises(DataError, match="whole number"):
            built("stackexchange", path)


def test_the_target_is_checked_and_nothing_is_half_written(tmp_path: Path):
    path = _written(tmp_path, posts_xml(QUESTION, *ANSWERS))
    with pytest.raises(DataError, match="jsonl"):
        pairs(DataPairs(source="stackexchange", files=[str(path)], target=str(tmp_path / "x.csv")))
    with pytest.raises(FileNotFoundError, match="Make it first"):
        pairs(DataPairs(source="stackexchange", files=[str(path)], target=str(tmp_path / "no" / "x.jsonl")))
    with pytest.raises(ValueError, match="pairs_per_prompt"):
        pairs(DataPairs(source="stackexchange", files=[str(path)], target="x.jsonl", pairs_per_prompt=0))
    packed = tmp_path / "pairs.jsonl.gz"
    for _ in range(2):
        pairs(DataPairs(source="stackexchange", files=[str(path)], target=str(packed)))
        first = packed.read_bytes()
    assert packed.read_bytes() == first and len(load_comparisons(packed)) == 2
