"""data/split.py: rows as read, labels level, what belongs together on one side, what a random split leaks."""

import itertools
import random

import numpy as np
import pytest

from core.errors import UserError
from core.rank_cache import tokenise_rank_file
from core.rank_encoder import RankEncoder
from core.rows import file_sha256
from core.spent import USES, read_uses, row_hash
from data.split_summary import expected_leaks
from tests.conftest import rank_rows, tiny_tokenizer, write_jsonl
from tests.data.split_rows import divided, made_rows, near, run, same_author

# -- rows, parts, files -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "list", "dict"])
def test_rows_are_as_read_in_their_order_and_in_one_part_each(tmp_path, kind):
    rows = made_rows(300, kind=kind)
    parts, summary = run(tmp_path, rows)
    assert list(parts) == list(USES)
    assert sorted((row for own in parts.values() for row in own), key=lambda row: row["id"]) == rows
    assert all(own == sorted(own, key=lambda row: row["id"]) for own in parts.values())
    assert summary["rows"] == {part: len(own) for part, own in parts.items()}
    assert summary["input"] == {
        "path": str(tmp_path / "rows.jsonl"), "sha256": file_sha256(tmp_path / "rows.jsonl"), "rows": 300
    }  # fmt: skip
    for part, share in summary["shares"].items():
        assert abs(share["found"] - share["asked"]) <= 0.01
        assert summary["files"][part]["sha256"] == file_sha256(tmp_path / "out" / f"{part}.jsonl")
    names = [row["label"] if kind == "one" else "a" for row in parts["test"] if kind == "one" or has_a(row)]
    counts = {name: summary["labels"][name]["test"] for name in set(names)}
    assert counts == {name: names.count(name) for name in set(names)}


def has_a(row: dict) -> bool:
    return row["labels"]["a"] == 1 if isinstance(row["labels"], dict) else "a" in row["labels"]


def test_a_csv_keeps_its_cells(tmp_path):
    lines = ["text,labels,n", *(f'"w{k}, x{k} y{k}","[""a""]",{k}' for k in range(40)), 'z,"[""b""]",40']
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    parts, summary = run(tmp_path, str(tmp_path / "rows.csv"))
    rows = [row for own in parts.values() for row in own]
    assert {"text": "w3, x3 y3", "labels": '["a"]', "n": "3"} in rows
    assert len(rows) == 41
    assert summary["labels"]["b"]["train"] == 1


def test_half_a_surrogate_pair_in_another_field_stays(tmp_path):
    rows = made_rows(30) + [{"text": "a b", "label": "a", "name": "\ud800 \u00e9", "id": 30}]
    parts, _ = run(tmp_path, rows)
    assert rows[-1] in [row for own in parts.values() for row in own]


def test_the_same_file_and_flags_give_the_same_bytes(tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", made_rows(200, kind="list"))
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        run(tmp_path / name, path, "--group_field", "author")
        out = tmp_path / name / "out"
        contents.append({str(f.relative_to(out)): f.read_bytes() for f in out.rglob("*") if f.is_file()})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9


def test_the_order_of_the_file_does_not_matter_and_the_seed_does(tmp_path):
    rows = made_rows(300, kind="list")

    def where(rows: list[dict], *flags: str) -> dict[int, str]:
        parts, _ = run(tmp_path, rows, "--overwrite", *flags)
        return {row["id"]: part for part, own in parts.items() for row in own}

    first = where(rows)
    assert where(random.Random(1).sample(rows, 300)) == first
    assert where(rows, "--seed", "1") != first


# -- what stays together ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "list"])
def test_neither_near_duplicates_nor_authors_are_divided(tmp_path, kind):
    rows = made_rows(400, 1, kind)
    parts, summary = run(tmp_path, rows)
    assert divided(parts, near) == 0
    assert divided(parts, same_author) > 0
    drawn = random.Random(0).choices(USES, [0.7, 0.1, 0.1, 0.1], k=400)
    random_parts = {use: [row for row, own in zip(rows, drawn, strict=True) if own == use] for use in USES}
    assert divided(random_parts, near) > 30  # what this checks is not so by itself
    parts, with_authors = run(tmp_path, rows, "--overwrite", "--group_field", "author")
    assert divided(parts, near) == divided(parts, same_author) == 0
    assert with_authors["groups"]["all"] < summary["groups"]["all"]
    assert with_authors["groups"]["rows_without"] == {"author": sum(row["author"] is None for row in rows)}
    assert with_authors["near_duplicates"] == summary["near_duplicates"] | {
        "expected_in_a_random_split": with_authors["near_duplicates"]["expected_in_a_random_split"]
    }


def test_near_is_a_flag(tmp_path):
    rows = [
        {"text": f"a{k // 2} b{k // 2} c{k // 2} d{k // 2} {k}", "label": "xy"[k % 2]} for k in range(100)
    ]
    _, summary = run(tmp_path, rows)
    assert summary["near_duplicates"]["rows"] == 0  # 4 of 6 words
    _, summary = run(tmp_path, rows, "--near", "0.6", "--overwrite")
    assert [summary["near_duplicates"][key] for key in ("groups", "rows", "largest")] == [50, 100, 2]


def test_rows_of_two_fields_stay_with_both(tmp_path):
    rows = [
        {"text": f"t{k} u{k}", "label": "xy"[k % 2], "a": f"{k // 4}", "b": f"{(k + 2) // 4}"}
        for k in range(8)
    ]
    rows += [{"text": f"t{k} u{k}", "label": "xy"[k % 2], "a": "", "b": None} for k in range(8, 40)]
    parts, summary = run(tmp_path, rows, "--group_field", "a,b")
    assert summary["groups"]["all"] == 33
    assert summary["groups"]["largest"] == 8
    assert divided(parts, lambda a, b: bool(a["a"]) and bool(b["a"])) == 0


def test_copies_without_a_word_stay_together_and_odd_labels_are_told(tmp_path, capsys):
    rows = made_rows(60)
    rows[5] |= {"text": "?!", "label": "a"}
    rows[40] |= {"text": " ?!", "label": "b"}
    rows[50] |= {"text": "?!", "label": "a"}
    rows[7] = rows[8] | {"id": 7}
    parts, summary = run(tmp_path, rows)
    assert divided(parts, lambda a, b: row_hash(a["text"]) == row_hash(b["text"])) == 0
    odd = summary["exact_duplicates"]["with_different_labels"]
    assert [6, 41, 51] in odd
    assert [8, 9] not in odd
    assert f"with different labels: {len(odd)} (lines 6, 41, 51" in capsys.readouterr().out


# -- labels -----------------------------------------------------------------------------------------------------


def test_rare_labels_go_to_train_first_and_are_told(tmp_path, capsys):
    rows = [{"text": f"t{k} u{k}", "label": "often"} for k in range(94)]
    rare = ["one", "two", "two", "three", "three", "three"]
    rows += [{"text": f"r{k} s{k}", "label": name} for k, name in enumerate(rare)]
    parts, summary = run(tmp_path, rows)
    for name in ("one", "two", "three"):
        assert summary["labels"][name]["train"] >= 1
        assert sum(summary["labels"][name].values()) == rare.count(name)
    assert summary["labels"]["one"] == {"train": 1, "validation": 0, "calibration": 0, "test": 0}
    for part in USES[1:]:
        without = [name for name in ("one", "two", "three") if not summary["labels"][name][part]]
        told = next(line for line in summary["warnings"] if f"a {part} row" in line)
        assert told == f"labels without a {part} row: {', '.join(sorted(without))}"
    assert summary["warnings"][0] in capsys.readouterr().out
    assert not any("a train row" in line for line in summary["warnings"])


def test_a_label_that_no_row_has_is_told(tmp_path):
    rows = [row | {"labels": row["labels"] | {"never": 0}} for row in made_rows(60, kind="dict")]
    _, summary = run(tmp_path, rows)
    assert "labels without a train row: never" in summary["warnings"]


def test_a_prompt_that_all_rows_share_is_told(tmp_path):
    prompt = " ".join(f"p{k}" for k in range(60))
    rows = [{"text": f"{prompt} {k}", "bare": f"t{k} u{k}", "label": "xy"[k % 2]} for k in range(60)]
    rows += [{"text": f"t{k} u{k}", "bare": f"t{k} u{k}", "label": "xy"[k % 2]} for k in range(60, 140)]
    _, summary = run(tmp_path, rows)
    assert any("60 rows are one group of near-duplicates" in line for line in summary["warnings"])
    parts, summary = run(tmp_path, rows, "--text_field", "bare", "--overwrite")
    assert summary["warnings"] == []


# -- ranking rows -----------------------------------------------------------------------------------------------


def test_ranking_rows_are_recognised_and_stay_with_their_page(tmp_path):
    rows = rank_rows(120, 3)
    for k, row in enumerate(rows):
        row["context"] += " " + " ".join(f"p{k // 3}x{j}" for j in range(40))
    parts, summary = run(tmp_path, rows)
    page = [[row["context"].split()[-1] for row in own] for own in parts.values()]
    assert sum(map(len, page)) == 120
    assert sum(len(set(own)) for own in page) == 40
    assert [row for own in parts.values() for row in own if row["rewards"] is None] == []
    assert summary["kind"] == "ranking rows"
    assert set(summary["labels"]) == {"2 candidates", "3 candidates"}
    level = {part: count / len(parts[part]) for part, count in summary["labels"]["2 candidates"].items()}
    assert max(level.values()) - min(level.values()) < 0.25
    encoder = RankEncoder(tiny_tokenizer(), 64, "", "bert")
    path = str(tmp_path / "out" / "test.jsonl")
    ranked = tokenise_rank_file(path, "--test_data", encoder, str(tmp_path / "cache"))
    assert read_uses(tmp_path / "out")["test"].tolist() == ranked.hashes.tolist()
    rows[4]["rewards"] = [1.0]
    with pytest.raises(UserError, match=r"rows.jsonl: 1 bad row:\n  line 5: 1 rewards for"):
        run(tmp_path, rows, "--overwrite")


# -- what a random split would have leaked ----------------------------------------------------------------------


def test_expected_leaks_against_all_splits():
    groups, counts = [0, 0, 0, 1, 1, 2, 3, 4], {"train": 4, "validation": 1, "test": 3}
    total, leaks = 0, {"divided": 0, "validation": 0, "test": 0}
    for parts in set(itertools.permutations([part for part, n in counts.items() for _ in range(n)])):
        total += 1
        for i, part in enumerate(parts):
            others = {parts[j] for j, group in enumerate(groups) if group == groups[i] and j != i}
            leaks["divided"] += bool(others - {part})
            if part != "train":
                leaks[part] += "train" in others
    found = expected_leaks([3, 2, 1, 1, 1], counts)
    assert found == pytest.approx({name: n / total for name, n in leaks.items()}, rel=1e-12)


def test_expected_leaks_at_the_ends():
    assert expected_leaks([1] * 10, {"train": 5, "test": 5}) == {"divided": 0, "test": 0}
    assert expected_leaks([10], {"train": 5, "test": 5}) == {"divided": 10, "test": 5}


def test_the_summary_says_what_a_random_split_would_have_leaked(tmp_path, capsys):
    """Against 300 drawn splits of the same sizes."""
    rows = made_rows(200, 4)
    parts, summary = run(tmp_path, rows)
    expected = summary["near_duplicates"]["expected_in_a_random_split"]
    near_ones = [[j for j, b in enumerate(rows) if i != j and near(a, b)] for i, a in enumerate(rows)]
    rng, places, found = random.Random(0), [p for p, own in parts.items() for _ in own], []
    for _ in range(300):
        rng.shuffle(places)
        tests = [i for i, part in enumerate(places) if part == "test"]
        found.append(sum(any(places[j] == "train" for j in near_ones[i]) for i in tests))
    assert np.mean(found) > 3
    assert abs(np.mean(found) - expected["test"]) < 1  # groups by way of a third row make it a little more
    told = f"{expected['test']:.1f} of {len(parts['test'])} test rows"
    assert told in capsys.readouterr().out
