"""data/generate.py from flags to files, against a server in a thread: rows, safety, going on, what is set aside."""

import json

import numpy as np
import pytest

from core.errors import UserError
from core.spent import row_hash
from data import check_run, generate, generate_journal
from tests.conftest import Killed, full_disk, toy_rows, write_jsonl
from tests.data.language_server import (
    ROWS,
    asked_label,
    completion,
    flags,
    generated,
    good,
    made_rows,
    serving,
    shown_texts,
    trouble,
    words_of,
)

TEXTS = {row["text"]: row["label"] for row in ROWS}


def counted(rows: list[dict]) -> dict[str, int]:
    labels = [row["label"] for row in rows]
    return {name: labels.count(name) for name in sorted(set(labels))}


# -- rows -------------------------------------------------------------------------------------------------------


def test_each_label_gets_its_rows_and_each_row_its_origin(tmp_path):
    result, rows, server = generated(tmp_path)
    assert counted(rows) == {"blue": 3, "red": 3}
    assert result["rows"] == 6
    sent = {words_of(request["body"]["seed"]): request for request in server.requests}
    for row in rows:
        origin = row["generated"]
        assert set(origin) == {"model", "prompt_id", "index", "seed", "verdict"}
        assert (origin["model"], origin["verdict"]) == ("tiny", "not checked")
        request = sent[row["text"]]
        assert request["body"]["seed"] == origin["seed"]
        assert asked_label(request) == row["label"]


def test_prompts_show_training_rows_of_their_label_alone(tmp_path):
    _, _, server = generated(tmp_path, shots=3)
    for request in server.requests:
        shown = shown_texts(request)
        assert len(set(shown)) == 3
        assert {TEXTS[text] for text in shown} == {asked_label(request)}


def test_the_journal_holds_the_prompt_of_each_row(tmp_path):
    _, rows, server = generated(tmp_path)
    journal = {(row["prompt_id"], row["index"]): row for row in made_rows(tmp_path, "out.journal")}
    sent = [request["body"]["messages"] for request in server.requests]
    for row in rows:
        found = journal[row["generated"]["prompt_id"], row["generated"]["index"]]
        assert found["messages"] in sent
        assert found["answer"] == row["text"]


def test_only_completions_are_asked_for(tmp_path):
    _, _, server = generated(tmp_path)
    assert {request["path"] for request in server.requests} == {"/v1/chat/completions"}


def test_completions_endpoint_goes_on_with_a_plain_text(tmp_path):
    def reply(request):
        text = f"{words_of(request['body']['seed'])}\n###\nmore"
        return 200, {}, {"choices": [{"text": text, "finish_reason": "length"}]}

    _, rows, server = generated(tmp_path, reply, endpoint="completions")
    assert {request["path"] for request in server.requests} == {"/v1/completions"}
    assert all(request["body"]["prompt"].endswith("\n###\n") for request in server.requests)
    assert sorted(row["text"] for row in rows) == sorted(words_of(r["body"]["seed"]) for r in server.requests)


def test_paraphrases_carry_their_source_and_its_label(tmp_path):
    _, rows, server = generated(tmp_path, mode="paraphrase")
    sent = {words_of(request["body"]["seed"]): request["body"]["messages"] for request in server.requests}
    for row in rows:
        assert row["label"] == TEXTS[row["source_text"]]
        assert sent[row["text"]][-1]["content"].endswith(f"\n\n{row['source_text']}")
    assert len({row["source_text"] for row in rows}) == 6


def test_a_paraphrase_that_says_the_same_is_dropped(tmp_path):
    def copy(request):
        return 200, {}, completion(request["body"]["messages"][-1]["content"].split("\n\n")[-1].upper())

    result, rows, _ = generated(tmp_path, copy, mode="paraphrase", rounds=1)
    assert rows == []
    assert result["dropped"] == {"near-duplicate of a training row": 6}


def test_several_texts_of_one_answer_cost_one_request(tmp_path):
    def reply(request):
        texts = [words_of(request["body"]["seed"] * 10 + k) for k in range(3)]
        return 200, {}, completion(json.dumps(texts))

    result, rows, server = generated(tmp_path, reply, texts_per_prompt=3)
    assert counted(rows) == {"blue": 3, "red": 3}
    assert len(server.requests) == result["answers"] == 2


@pytest.mark.parametrize("kind", ["list", "dict"])
def test_several_labels_a_row_keep_their_form(tmp_path, kind):
    rows = [row for row in toy_rows(60, 0, kind) if kind == "list" or any(row["labels"].values())]
    known = {json.dumps(row["labels"], sort_keys=True) for row in rows}
    _, found, server = generated(tmp_path, rows=rows)
    assert {json.dumps(row["labels"], sort_keys=True) for row in found} <= known
    names = [row["labels"] if kind == "list" else [k for k, v in row["labels"].items() if v] for row in found]
    assert all(sum(label in own for own in names) >= 3 for label in ("red", "green", "blue"))
    assert any(' and "' in request["body"]["messages"][0]["content"] for request in server.requests)


def test_other_columns_and_only_some_labels(tmp_path):
    rows = [{"post": row["text"], "topic": row["label"]} for row in ROWS]
    _, found, _ = generated(tmp_path, rows=rows, text_field="post", label_field="topic", labels=["red"])
    assert {row["topic"] for row in found} == {"red"}
    assert all(row["post"] for row in found)


def test_descriptions_stand_in_the_prompts(tmp_path):
    (tmp_path / "what.json").write_text('{"red": "of roses and rubies"}')
    _, _, server = generated(tmp_path, descriptions=tmp_path / "what.json")
    for request in server.requests:
        said = "of roses and rubies" in request["body"]["messages"][0]["content"]
        assert said == (asked_label(request) == "red")


# -- what is dropped, and asked for again -----------------------------------------------------------------------


def test_garbage_is_counted_by_reason_with_an_example(tmp_path):
    bad = ["", "I'm sorry, but I cannot help with that.", "...", "one two three four " * 4, "\ud800 half"]

    def reply(request):
        return (200, {}, completion(bad.pop(0))) if bad else good(request)

    result, rows, _ = generated(tmp_path, reply, concurrency=1)
    assert counted(rows) == {"blue": 3, "red": 3}
    reasons = {
        "empty answer",
        "refusal",
        "no word in it",
        "longer than every training text",
        "broken characters",
    }
    assert result["dropped"] == dict.fromkeys(reasons, 1)
    summary = json.loads((tmp_path / "out.summary.json").read_text())
    assert summary["dropped"]["no word in it"]["example"] == '"..."'


def test_an_answer_cut_off_is_no_row(tmp_path):
    result, rows, _ = generated(tmp_path, lambda request: (200, {}, completion("a cut", "length")), rounds=2)
    assert rows == []
    assert result["dropped"] == {"cut off at --max_new_tokens": 12}


def test_rounds_end_the_asking(tmp_path):
    _, rows, server = generated(tmp_path, lambda request: (200, {}, completion("red rose")), rounds=3)
    assert [row["text"] for row in rows] == ["red rose"]
    assert len(server.requests) == 6 + 5 + 5


def test_near_duplicates_of_training_and_scored_rows_are_dropped(tmp_path):
    near = [f"{ROWS[0]['text']}!", "Never seen: zwei drei vier", ROWS[0]["text"].upper()]
    val = write_jsonl(tmp_path / "val.jsonl", [{"text": "never seen zwei drei vier"}])

    def reply(request):
        return (200, {}, completion(near.pop())) if near else good(request)

    result, rows, _ = generated(tmp_path, reply, exclude=[val], concurrency=1)
    assert len(rows) == 6
    assert result["dropped"] == {
        "near-duplicate of a training row": 2,
        "near-duplicate of a row to be scored on": 1,
    }


# -- rows to be scored on stay out ------------------------------------------------------------------------------


def test_no_prompt_shows_a_row_near_to_an_excluded_one(tmp_path):
    close = {row["text"] + " indeed" for row in ROWS[:5]}
    val = write_jsonl(tmp_path / "val.jsonl", [{"text": text} for text in close])
    _, _, server = generated(tmp_path, exclude=[val], shots=6, rows_per_label=6)
    shown = {text for request in server.requests for text in shown_texts(request)}
    assert shown == {row["text"] for row in ROWS[5:]}


def test_no_paraphrase_of_a_row_near_to_an_excluded_one(tmp_path):
    val = write_jsonl(tmp_path / "val.jsonl", [{"text": row["text"]} for row in ROWS[:5]])
    _, rows, _ = generated(tmp_path, exclude=[val], mode="paraphrase", rows_per_label=6)
    assert {row["source_text"] for row in rows} == {row["text"] for row in ROWS[5:]}


@pytest.mark.parametrize("use", ["test", "validation", "calibration"])
def test_rows_that_the_split_keeps_for_scoring_are_refused(tmp_path, use):
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / f"{use}.npy", np.array([row_hash(ROWS[2]["text"])], np.uint64))
    with pytest.raises(UserError, match=rf"--train_data .*: 1 of its 12 rows are {use} rows of"):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1"))


def test_other_parts_of_the_split_are_excluded_unasked(tmp_path):
    (tmp_path / "split.json").write_text("{}")
    for k, use in enumerate(("validation", "calibration", "test")):
        write_jsonl(tmp_path / f"{use}.jsonl", [{"text": words_of(900 + k)}])
    texts = [words_of(900 + k) for k in range(3)]

    def reply(request):
        return (200, {}, completion(texts.pop())) if texts else good(request)

    result, _, _ = generated(tmp_path, reply)
    assert result["dropped"] == {"near-duplicate of a row to be scored on": 3}


def test_a_test_row_known_by_its_hash_is_dropped(tmp_path):
    (tmp_path / "rows").mkdir()
    np.save(tmp_path / "rows" / "test.npy", np.array([row_hash("a secret row")], np.uint64))
    answers = ["a  secret row"]
    result, _, _ = generated(
        tmp_path, lambda request: (200, {}, completion(answers.pop())) if answers else good(request)
    )
    assert result["dropped"] == {"a row to be scored on": 1}


@pytest.mark.parametrize(
    "field, was", [("text_field", "content"), ("text_field", "smell,text"), ("pair_field", "answer")]
)
def test_a_split_of_other_columns_is_refused_before_anything_is_asked(tmp_path, field, was):
    fields = {"text_field": "text", "pair_field": "", "label_field": ""} | {field: was}
    (tmp_path / "split.json").write_text(json.dumps({"fields": fields}))
    with serving() as server:
        with pytest.raises(
            UserError, match=rf"--train_data .*: .*split.json was made with --{field} '{was}'"
        ):
            generate.main(flags(tmp_path, server.url))
        assert server.requests == []


def test_a_run_of_pairs_is_refused_before_anything_is_asked(tmp_path):
    (tmp_path / "run").mkdir()
    form = {"text_field": "text", "pair_field": "answer", "label_field": ""}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"model": {"row_format": form}}))
    with serving() as server:
        with pytest.raises(UserError, match=r"--check_run .*run: was trained with .*--pair_field 'answer'"):
            generate.main(flags(tmp_path, server.url, check_run=tmp_path / "run"))
        assert server.requests == []


def test_no_prompt_shows_a_row_that_chose_in_the_run(tmp_path, fake_predict):
    run = tmp_path / "run"
    (run / "rows").mkdir(parents=True)
    np.save(
        run / "rows" / "validation.npy", np.array([row_hash(ROWS[k]["text"]) for k in range(5)], np.uint64)
    )
    _, _, server = generated(tmp_path, check_run=run, shots=6)
    shown = {text for request in server.requests for text in shown_texts(request)}
    assert shown == {row["text"] for row in ROWS[5:]}


# -- what a trained run doubts ----------------------------------------------------------------------------------

FAKE_PREDICT = """
import json, os, sys
assert "OPENAI_API_KEY" not in os.environ
rows = [json.loads(line) for line in open(sys.argv[sys.argv.index("--data") + 1])]
with open(sys.argv[sys.argv.index("--output") + 1], "w") as out:
    for row in rows:
        red = 0.9 if "sure" in row["text"] else 0.55
        print(json.dumps({"label": "red", "probabilities": {"red": red, "blue": round(1 - red, 6)}}), file=out)
"""


@pytest.fixture
def fake_predict(tmp_path, monkeypatch):
    """A predict.py that says red, surely where the text says so; the environment's key must not reach it."""
    (tmp_path / "predict.py").write_text(FAKE_PREDICT)
    monkeypatch.setattr(check_run, "PREDICT", tmp_path / "predict.py")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-for-others")


def test_doubted_rows_are_set_aside_with_the_verdict(tmp_path, fake_predict):
    def reply(request):
        seed = request["body"]["seed"]
        sure = " sure" if asked_label(request) == "red" and seed % 2 else ""
        return 200, {}, completion(words_of(seed) + sure)

    more = {"check_run": "RUN", "least_probability": 0.6, "rounds": 5, "rows_per_label": 2}
    result, rows, _ = generated(tmp_path, reply, **more)
    assert [(row["label"], row["generated"]["verdict"]) for row in rows] == [("red", "agrees")] * 2
    assert [row["generated"]["probability"] for row in rows] == [0.9, 0.9]
    aside = made_rows(tmp_path, "out.set_aside")
    assert {(row["label"], row["generated"]["verdict"]) for row in aside} == {
        ("red", "unsure"),
        ("blue", "another label"),
    }
    assert result["set_aside"] == len(aside)
    assert {row["generated"]["predicted"] for row in aside} == {"red"}


def test_a_run_of_other_labels_is_refused_before_anything_is_asked(tmp_path, fake_predict):
    rows = [row | {"label": row["label"].replace("blue", "green")} for row in ROWS]
    with serving() as server:
        with pytest.raises(UserError, match="--check_run RUN: does not know the label 'green'"):
            generate.main(flags(tmp_path, server.url, rows, check_run="RUN"))
        assert server.requests == []


def test_a_run_of_another_kind_of_labels_is_refused_before_anything_is_asked(tmp_path, fake_predict):
    rows = [row | {"label": [row["label"]]} for row in ROWS]
    with serving() as server:
        with pytest.raises(UserError, match="gives one label a row, the rows have several labels a row"):
            generate.main(flags(tmp_path, server.url, rows, check_run="RUN"))
        assert server.requests == []


# -- going on ---------------------------------------------------------------------------------------------------


def test_killed_at_any_answer_the_same_command_goes_on_and_asks_nothing_twice(tmp_path, monkeypatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    for folder in (whole, part):
        folder.mkdir()
    generated(whole)
    add = generate_journal.Journal.add

    for _ in range(6):
        written = []

        def killed(self, prompts, answers, written=written):
            if not written:  # nothing is written after the kill
                add(self, prompts, answers)
            written.append(answers)
            raise Killed

        with serving() as server, monkeypatch.context() as patch:
            patch.setattr(generate_journal.Journal, "add", killed)
            with pytest.raises(Killed):
                generate.main(flags(part, server.url, concurrency=1))
    assert not (part / "out.jsonl").exists()
    with serving() as server:
        generate.main(flags(part, server.url))
        assert server.requests == []
    assert (part / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()
    journal = made_rows(part, "out.journal")
    assert len(journal) == len({(row["prompt_id"], row["index"]) for row in journal}) == 6


def test_a_torn_last_line_of_the_journal_is_asked_for_again(tmp_path):
    _, before, _ = generated(tmp_path)
    path = tmp_path / "out.journal.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    _, rows, server = generated(tmp_path)
    assert len(server.requests) == 1
    assert rows == before
    assert len(made_rows(tmp_path, "out.journal")) == 6


def test_more_rows_ask_for_the_rest_alone(tmp_path):
    _, before, _ = generated(tmp_path)
    _, rows, server = generated(tmp_path, rows_per_label=5)
    assert len(server.requests) == 4
    assert [row for row in rows if row in before] == before


@pytest.mark.parametrize(
    "more", [{"seed": 1}, {"temperature": 0.5}, {"shots": 2}, {"model": "other"}, {"top_p": 0.5}]
)
def test_other_flags_take_none_of_the_old_answers(tmp_path, more):
    generated(tmp_path)
    _, _, server = generated(tmp_path, **more)
    assert len(server.requests) == 6


def test_without_shots_equal_prompts_have_seeds_of_their_own(tmp_path):
    _, rows, server = generated(tmp_path, shots=0)
    assert len({row["generated"]["prompt_id"] for row in rows}) == 2
    assert len({request["body"]["seed"] for request in server.requests}) == 6


def test_a_failed_request_is_asked_for_by_the_next_command(tmp_path, monkeypatch):
    state = {"left": 1}

    def reply(request):
        if state["left"]:
            state["left"] -= 1
            return trouble(400, "too long for me")
        return good(request)

    result, rows, _ = generated(tmp_path, reply, rounds=1)
    assert (result["failed_requests"], len(rows)) == (1, 5)
    assert "too long for me" in json.loads((tmp_path / "out.summary.json").read_text())["notes"][-1]
    result, rows, server = generated(tmp_path, rounds=1)
    assert (result["failed_requests"], len(rows), len(server.requests)) == (0, 6, 1)


def test_two_commands_on_one_output_are_refused(tmp_path):
    journal = generate_journal.Journal(tmp_path / "out.journal.jsonl")
    with pytest.raises(UserError, match="another command is at work on it"):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1"))
    journal.close()


def test_a_full_disk_keeps_the_old_output(tmp_path):
    _, _, _ = generated(tmp_path)
    before = (tmp_path / "out.jsonl").read_bytes()
    limit = (tmp_path / "out.journal.jsonl").stat().st_size
    with serving() as server, full_disk(limit + 100), pytest.raises(UserError, match="the disk is full"):
        generate.main(flags(tmp_path, server.url, rows_per_label=9))
    assert (tmp_path / "out.jsonl").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


# -- tokens and cost --------------------------------------------------------------------------------------------


def test_tokens_and_cost_are_those_the_server_tells(tmp_path):
    result, _, _ = generated(tmp_path, price_in=2, price_out=10)
    assert (result["prompt_tokens"], result["completion_tokens"]) == (600, 60)
    assert result["dollars"] == pytest.approx((600 * 2 + 60 * 10) / 1e6)


def test_answers_without_usage_are_counted_as_unknown(tmp_path, capsys):
    usages = [None, None]

    def reply(request):
        usage = usages.pop() if usages else (100, 10)
        return 200, {}, completion(words_of(request["body"]["seed"]), usage=usage)

    result, _, _ = generated(tmp_path, reply, price_in=1, price_out=1)
    assert result["answers_of_unknown_tokens"] == 2
    assert result["dollars"] == pytest.approx(4 * 110 / 1e6)
    assert "2 answers unknown" in capsys.readouterr().out


def test_the_last_line_is_the_result(tmp_path, capsys):
    result, _, _ = generated(tmp_path)
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


# -- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "more, message",
    [
        ({"output": "out.csv"}, r"--output out.csv: expected a file that ends in .jsonl"),
        ({"model": None}, "--model: give the server's name"),
        ({"local": "x"}, "--local: runs the model here; leave out --base_url"),
        ({"price_in": 1}, "--price_in, --price_out: give both, or none"),
        ({"labels": ["green"]}, "--labels: 'green' is no label of .*: blue, red"),
        ({"text_field": "a,b"}, "--text_field a,b: expected one column"),
        ({"exclude": ["-"]}, "standard input is not read here"),
        ({"exclude": ["nowhere.jsonl"]}, "--exclude nowhere.jsonl: no such file"),
        ({"rows_per_label": 0}, "--rows_per_label: 0: expected a whole number at least 1"),
        ({"base_url": "ftp://x/v1"}, "--base_url: is no address of a server"),
        ({"base_url": "localhost:8000"}, "--base_url: is no address of a server"),
        ({"descriptions": "nowhere.json"}, "--descriptions nowhere.json: cannot be read as JSON"),
    ],
)
def test_bad_flags_are_one_clear_message(tmp_path, more, message):
    given = {"base_url": "http://127.0.0.1:9/v1"} | more
    with pytest.raises(UserError, match=message):
        generate.main(flags(tmp_path, "", **given))


@pytest.mark.parametrize(
    "content, message",
    [
        ('{"green": "x"}', "'green' is no label"),
        ('["red"]', "expected {label: description}"),
        ("{", "read as JSON"),
    ],
)
def test_bad_descriptions(tmp_path, content, message):
    (tmp_path / "what.json").write_text(content)
    with pytest.raises(UserError, match=message):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1", descriptions=tmp_path / "what.json"))


def test_bad_training_rows_are_all_told(tmp_path):
    with pytest.raises(UserError, match=r"2 bad rows:\n.*line 1: .*\n.*line 3"):
        generate.main(flags(tmp_path, "http://x/v1", [{"text": ""}, ROWS[0], {"text": "a"}]))


def test_a_foreign_file_is_not_replaced(tmp_path):
    (tmp_path / "out.jsonl").write_text("mine")
    with pytest.raises(UserError, match="is there, without a journal of its own"):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1"))
    assert (tmp_path / "out.jsonl").read_text() == "mine"


def test_the_output_is_none_of_the_files_read(tmp_path):
    with pytest.raises(UserError, match=r"would replace .*train.jsonl, which is read"):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1", output=tmp_path / "train.jsonl"))


def test_a_label_without_a_row_to_show(tmp_path):
    val = write_jsonl(tmp_path / "val.jsonl", ROWS[:6])
    with pytest.raises(UserError, match="no row of 'red' is left for a prompt to show"):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1", exclude=[val]))


def test_a_journal_that_is_none(tmp_path):
    (tmp_path / "out.journal.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(UserError, match=r"line 1 is no answer that data.generate wrote"):
        generate.main(flags(tmp_path, "http://127.0.0.1:9/v1"))


def test_without_a_key_openai_is_not_asked(tmp_path, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="set the environment variable OPENAI_API_KEY"):
        generate.main(flags(tmp_path))


def test_rows_go_into_training_as_they_are(tmp_path):
    """What train.py reads: the labels' column and kind are those of the training rows."""
    from data.split_rows import read_table

    generated(tmp_path)
    args = generate.parse_flags(flags(tmp_path, "http://x/v1"))
    kind = generate.LabelColumn()
    read_table(str(tmp_path / "train.jsonl"), "--train_data", args, kind)
    read_table(str(tmp_path / "out.jsonl"), "--train_data", args, kind)
    assert kind.kind == "one"
    assert set(kind.index) == {"red", "blue"}
