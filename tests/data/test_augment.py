"""data.augment: files in, files out; what is written and what is dropped; the same for any order of the rows."""

import json
from collections import Counter
from functools import partial

import pytest

from core.errors import UserError
from data import augment
from data.augment import main
from tests.conftest import save_tiny, toy_rows, write_jsonl
from tests.data.augment_rows import augmented, long_rows, made_of


@pytest.fixture
def run(tmp_path):
    """Call with rows and flags: what main returns, and the rows written."""
    return partial(augmented, tmp_path)


# what is written


def test_originals_come_first_and_unchanged(run):
    _, rows = run(long_rows())
    assert rows[:12] == long_rows()
    assert all("augmented" in row for row in rows[12:])


def test_only_new(run):
    result, rows = run(long_rows(), "--only_new")
    assert len(made_of(rows)) == len(rows) == result["made"] == result["written"]


def test_each_method_makes_copies(run):
    result, _ = run(long_rows(), "--copies", "2", "--window", "9")
    assert result["methods"] == {"drop": 24, "swap": 24}


def test_all_but_the_text_stays(run):
    _, rows = run(long_rows(), "--seed", "7")
    for row in made_of(rows):
        source = rows[row["augmented"]["source"] - 1]
        assert {k: v for k, v in row.items() if k not in ("text", "augmented")} == {
            k: v for k, v in source.items() if k != "text"
        }
        assert row["text"] != source["text"]
        assert row["augmented"]["seed"] == 7


def test_source_is_the_line(run, tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text("\n\n" + "".join(json.dumps(row) + "\n" for row in long_rows(2)))
    _, rows = run(str(path), "--methods", "drop")
    assert [row["augmented"]["source"] for row in made_of(rows)] == [3, 4]


def test_same_command_gives_the_same_bytes(run, tmp_path):
    run(long_rows())
    first = (tmp_path / "out" / "aug.jsonl").read_bytes()
    run(long_rows())
    assert (tmp_path / "out" / "aug.jsonl").read_bytes() == first


def test_seeds_differ(run):
    one, other = (made_of(run(long_rows(), "--seed", seed)[1]) for seed in "01")
    assert {row["text"] for row in one} != {row["text"] for row in other}


def test_order_of_the_rows_does_not_matter(run):
    one, other = (made_of(run(rows)[1]) for rows in (long_rows(), long_rows()[::-1]))
    assert {(row["text"], row["id"]) for row in one} == {(row["text"], row["id"]) for row in other}


def test_a_row_does_not_depend_on_the_others(run):
    every, few = (made_of(run(rows)[1]) for rows in (long_rows(), long_rows()[:3]))
    assert [row for row in every if row["id"] < 3] == few


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_several_labels_a_row(run, kind):
    source = toy_rows(30, kind=kind)
    _, rows = run(source, "--methods", "swap")
    assert made_of(rows)
    assert all(row["labels"] == source[row["augmented"]["source"] - 1]["labels"] for row in made_of(rows))


def test_pair_stays(run):
    rows = [row | {"answer": f"y{row['id']} z"} for row in long_rows(4)]
    _, found = run(rows, "--pair_field", "answer", "--methods", "drop")
    assert all(row["answer"] == rows[row["id"]]["answer"] for row in made_of(found))


def test_change_field_may_be_the_pair(run):
    rows = [row | {"answer": f"y{row['id']} z"} for row in long_rows(4)]
    _, found = run(rows, "--pair_field", "answer", "--change_field", "answer", "--methods", "drop")
    assert all(row["text"] == rows[row["id"]]["text"] for row in made_of(found))
    assert {len(row["answer"].split()) for row in made_of(found)} == {1}


def test_joined_fields_need_the_one_that_changes(run):
    rows = [row | {"smell": "suspicious comment"} for row in long_rows(4)]
    with pytest.raises(UserError, match="--change_field smell,text: expected one column, of smell, text"):
        run(rows, "--text_field", "smell,text")
    _, found = run(rows, "--text_field", "smell,text", "--change_field", "text", "--methods", "drop")
    assert {row["smell"] for row in made_of(found)} == {"suspicious comment"}


# what is dropped


def test_short_texts_are_counted(run):
    result, _ = run([{"text": "word", "label": "a"}, {"text": "so so", "label": "b"}], "--methods", "swap")
    assert result["dropped"] == {"no word that swap can change": 2}


def test_a_text_with_two_labels_makes_nothing(run):
    rows = [*long_rows(2), long_rows(1)[0] | {"label": "b"}]
    result, found = run(rows, "--methods", "drop")
    assert result["dropped"]["source: its text has other labels in another row"] == 2
    assert {row["id"] for row in made_of(found)} == {1}


def test_a_text_that_stands_twice_makes_rows_once(run):
    result, _ = run([*long_rows(2), long_rows(1)[0] | {"id": 9}], "--methods", "drop")
    assert result["made"] == 2
    assert result["dropped"] == {"source: its text stands in a row before": 1}


def test_made_rows_that_are_rows_of_the_input_are_dropped(run):
    rows = [{"text": "one two", "label": "a"}, {"text": "two one", "label": "a"}]
    result, _ = run(rows, "--methods", "swap")
    assert result["dropped"] == {"same as a row of the input": 2}


def test_made_rows_of_one_text_are_kept_once(run):
    result, rows = run([{"text": "one two", "label": "a"}], "--methods", "swap", "--copies", "3")
    assert [row["text"] for row in made_of(rows)] == ["two one"]
    assert result["dropped"] == {"same as a row made before": 2}


def test_one_text_made_with_two_labels_is_dropped(run):
    rows = [{"text": "one two", "label": "a"}, {"text": "one three", "label": "b"}]
    for seed in range(9):
        result, found = run(rows, "--methods", "drop", "--seed", str(seed))
        texts = Counter(row["text"] for row in made_of(found))
        assert texts["one"] < 2
        if "same text made with other labels" in result["dropped"]:
            assert result["dropped"]["same text made with other labels"] == 2
            assert not texts["one"]
            return
    raise AssertionError("no seed makes 'one' of both")


def test_excluded_rows_take_what_is_near_them(run, tmp_path):
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"text": long_rows(1)[0]["text"].upper() + " and more"}])
    result, rows = run(long_rows(), "--methods", "drop", "--exclude", dev)
    assert 0 not in {row["id"] for row in made_of(rows)}
    assert result["dropped"] == {"source: near a held-out row": 1}
    assert result["rows_near_held_out"] == 1


def test_what_comes_near_an_excluded_row_is_dropped(run, tmp_path):
    rows = [{"text": "one two three", "label": "a"}]
    dev = write_jsonl(
        tmp_path / "dev.jsonl", [{"text": "one two"}, {"text": "two three"}, {"text": "one three"}]
    )
    result, found = run(rows, "--methods", "drop", "--exclude", dev)
    assert not made_of(found)
    assert result["dropped"] == {"near a held-out row": 1}
    assert result["rows_near_held_out"] == 0


def test_excluded_rows_by_a_share_of_words(run, tmp_path):
    dev = write_jsonl(tmp_path / "dev.jsonl", [{"text": " ".join(f"w0x{k}" for k in range(8))}])
    flags = ("--methods", "swap", "--exclude", dev)
    assert run(long_rows(1), *flags, "--near", "0.9")[0]["made"] == 1  # 8 of 10 words
    assert run(long_rows(1), *flags, "--near", "0.8")[0]["made"] == 0


# --paraphrases


def said(tmp_path, *pairs: tuple[str, str]) -> str:
    rows = [{"source_text": source, "text": text, "model": "m"} for source, text in pairs]
    return write_jsonl(tmp_path / "said.jsonl", rows)


def test_paraphrases_take_the_place_of_their_source(run, tmp_path):
    text = long_rows(1)[0]["text"]
    path = said(tmp_path, (text.replace(" ", "  "), "in other words"), (text, "put otherwise"), ("none", "x"))
    result, rows = run(long_rows(), "--methods", "paraphrase", "--paraphrases", path, "--copies", "3")
    assert {(row["id"], row["text"], row["label"]) for row in made_of(rows)} == {
        (0, "in other words", "a"),
        (0, "put otherwise", "a"),
    }
    assert result["dropped"] == {"no paraphrase": 34}


def test_paraphrases_as_data_generate_writes_them(run, tmp_path):
    rows = [{"content": row["text"], "label": row["label"]} for row in long_rows(2)]
    origin = {"model": "m", "prompt_id": "p", "seed": 3, "verdict": "agrees"}
    said = {"content": "in other words", "label": "z", "source_text": rows[1]["content"], "generated": origin}
    path = write_jsonl(tmp_path / "said.jsonl", [said])
    flags = ("--methods", "paraphrase", "--paraphrases", path, "--text_field", "content")
    (made,) = made_of(run(rows, *flags)[1])
    assert made.pop("augmented")["method"] == "paraphrase"
    assert made == {"content": "in other words", "label": "b", "generated": origin}


def test_paraphrases_of_other_rows_are_refused(run, tmp_path):
    with pytest.raises(UserError, match="no source_text is a text of"):
        run(long_rows(), "--methods", "paraphrase", "--paraphrases", said(tmp_path, ("none", "x")))


def test_paraphrases_without_a_source_are_told(run, tmp_path):
    path = write_jsonl(tmp_path / "said.jsonl", [{"text": "x"}])
    with pytest.raises(UserError, match="line 1: no field 'source_text'"):
        run(long_rows(), "--methods", "paraphrase", "--paraphrases", path)


# bad input


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--methods", "drop,fly"], "--methods drop,fly: expected different ones of drop, swap"),
        (["--methods", "drop,drop"], "expected different ones"),
        (["--methods", "nearest"], "--methods nearest: needs a --model_name"),
        (["--methods", "mask"], "--methods mask: needs a --model_name"),
        (["--methods", "paraphrase"], "give both or none"),
        (["--paraphrases", "x.jsonl"], "give both or none"),
        (["--rate", "0"], "--rate: 0: expected a number from 0.01 to 0.9"),
        (["--copies", "0"], "--copies"),
        (["--exclude", "gone.jsonl"], "--exclude gone.jsonl: no such file"),
        (["--change_field", "id"], "--change_field id: expected one column, of text"),
        (["--output", "aug.csv"], "--output aug.csv: expected a name that ends in .jsonl"),
    ],
)
def test_bad_flags(run, flags, told):
    with pytest.raises(UserError, match=told):
        run(long_rows(), *flags)


def test_output_is_not_the_input(run, tmp_path):
    with pytest.raises(UserError, match="is read, too"):
        run(long_rows(), "--output", str(tmp_path / "train.jsonl"))


def test_augmented_rows_are_not_augmented_again(run, tmp_path):
    run(long_rows())
    with pytest.raises(UserError, match=r"line 13 was made by data.augment"):
        main(["--input", str(tmp_path / "out" / "aug.jsonl"), "--output", str(tmp_path / "b.jsonl")])


def test_rows_without_labels_are_told(run):
    with pytest.raises(UserError, match="line 1: no field 'label' or 'labels'"):
        run([{"text": "a b"}])


def test_bad_input_leaves_no_file(run, tmp_path):
    with pytest.raises(UserError):
        run([{"text": "a b"}])
    assert not (tmp_path / "out").exists()


def test_the_methods_together_and_what_is_printed(run, tmp_path, capsys):
    name = save_tiny(tmp_path / "bert")
    rows = toy_rows(40)
    result, found = run(rows, "--methods", "drop,swap,nearest", "--model_name", name, "--least_cosine", "-1")
    assert set(result["methods"]) == {"drop", "swap", "nearest"}
    out = capsys.readouterr().out
    assert json.loads(out.splitlines()[-1]) == result
    assert out.count("\n  was ") == augment.EXAMPLES
    assert len(found) == len(rows) + result["made"]
